// What the desk needs of the page, done with JupyterLab's means.

import type { JupyterFrontEnd, JupyterLab } from '@jupyterlab/application';
import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import type { IDocumentManager } from '@jupyterlab/docmanager';
import type { IDocumentWidget } from '@jupyterlab/docregistry';
import type { ITranslator } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';

import { isPath, queueAgain } from './again';
import type { IForm } from './again';
import type { IAction, IPage, Kind } from './desk';
import { saveAll } from './saving';
import type { IDocument } from './saving';
import type { ILease, ISaved } from './shapes';
import type { ITrans } from './words';

/** Where documents can be open. */
const AREAS = ['main', 'left', 'right', 'down'];

export class Page implements IPage {
  constructor(
    private readonly _app: JupyterFrontEnd,
    private readonly _documents: IDocumentManager | null,
    private readonly _info: JupyterLab.IInfo | null,
    translator: ITranslator,
    private readonly _trans: ITrans
  ) {
    const theirs = translator.load('jupyterlab');
    this._unreachable = [theirs.__('Server unavailable or unreachable'), theirs.__('Server Connection Error')];
    this._announcer.className = 'jp-GPUPool-Announcer';
    this._announcer.setAttribute('role', 'status');
    this._announcer.setAttribute('aria-live', 'polite');
    document.body.append(this._announcer);
  }

  now(): number {
    return Date.now();
  }

  visible(): boolean {
    return document.visibilityState === 'visible';
  }

  notify(kind: Kind, message: string, actions: IAction[], seconds?: number): string {
    const autoClose = seconds === undefined ? false : seconds * 1000;
    const name = Notification.emit(message, kind, { autoClose, actions: buttons(actions) });
    if (autoClose) {
      // Else it would stay in the list of notifications.
      window.setTimeout(() => Notification.dismiss(name), autoClose);
    }
    return name;
  }

  update(name: string, message: string, actions: IAction[], again: boolean): void {
    const toast = document.getElementById(name);
    // JupyterLab shows a notification that is changed, also one that the person has put away.
    if (toast === null && !again) {
      return;
    }
    // It was read out when it appeared; a countdown that is read out each second helps nobody.
    toast?.querySelector('[role="alert"]')?.setAttribute('aria-live', 'off');
    Notification.update({ id: name, message, actions: buttons(actions), autoClose: false });
  }

  shows(name: string): boolean {
    // JupyterLab keeps notifications to itself where the person has silenced them, and loads what shows them late.
    return document.getElementById(name) !== null;
  }

  dismiss(name: string): void {
    Notification.dismiss(name);
  }

  say(text: string): void {
    this._announcer.textContent = text;
  }

  async ask(title: string, lines: string[], yes: string): Promise<boolean> {
    const buttons = [Dialog.cancelButton(), Dialog.warnButton({ label: yes })];
    const answer = await showDialog({ title, body: paragraphs(lines), buttons, defaultButton: 0 });
    return answer.button.accept;
  }

  tell(title: string, lines: string[]): void {
    const buttons = [Dialog.okButton({ label: this._trans.__('Close') })];
    void showDialog({ title, body: paragraphs(lines), buttons });
  }

  save(): Promise<ISaved> {
    return saveAll(this._open());
  }

  serverIsGone(gone: boolean): void {
    if (this._info) {
      this._info.isConnected = !gone; // JupyterLab then asks the server for nothing
    }
    Dialog.tracker.widgetAdded.disconnect(this._close, this);
    if (gone) {
      Dialog.tracker.forEach(dialog => this._close(null, dialog));
      Dialog.tracker.widgetAdded.connect(this._close, this);
    }
  }

  async again(lease: ILease): Promise<void> {
    if (lease.again && isPath(lease.again)) {
      const there = await queueAgain(lease.again, lease.profile, (url, init) => fetch(url, init), readForm);
      window.location.assign(there);
    }
  }

  private *_open(): Iterable<IDocument> {
    for (const area of AREAS) {
      for (const widget of this._app.shell.widgets(area)) {
        const context = this._documents?.contextForWidget(widget as IDocumentWidget);
        if (context) {
          yield context;
        }
      }
    }
  }

  // JupyterLab's own question whether the server should be restarted covers the note that says why it is gone, and the
  // button that asks for the same slice again.
  private _close(_: unknown, dialog: Dialog<unknown>): void {
    window.setTimeout(() => {
      const title = dialog.node.querySelector('.jp-Dialog-header')?.textContent?.trim() ?? '';
      if (this._unreachable.includes(title)) {
        dialog.reject();
        if (this._info) {
          // Said again, because the question's end says otherwise.
          window.setTimeout(() => (this._info!.isConnected = false), 0);
        }
      }
    }, 0);
  }

  private readonly _unreachable: string[];
  private readonly _announcer = document.createElement('div');
}

function buttons(actions: IAction[]): Notification.IAction[] {
  return actions.map(({ label, caption, display, run }) => ({
    label,
    caption,
    displayType: display,
    callback: event => {
      // A button that opens something leaves the notification where it is.
      if (display === 'default') {
        event.preventDefault();
      }
      run();
    }
  }));
}

function paragraphs(lines: string[]): Widget {
  const body = new Widget();
  for (const line of lines) {
    const paragraph = document.createElement('p');
    paragraph.textContent = line;
    body.node.append(paragraph);
  }
  return body;
}

function readForm(html: string, profile: string): IForm | null {
  // Nothing of a document that is only parsed is run or loaded.
  const form = new DOMParser().parseFromString(html, 'text/html').querySelector<HTMLFormElement>('form#spawn_form');
  const action = form?.getAttribute('action') ?? '';
  const wanted = [...(form?.querySelectorAll<HTMLInputElement>('input[name="profile"]') ?? [])].find(
    one => one.value === profile && !one.disabled
  );
  if (!form || !wanted || !isPath(action)) {
    return null;
  }
  wanted.checked = true;
  const fields: [string, string][] = [];
  for (const [name, value] of new FormData(form)) {
    if (typeof value === 'string') {
      fields.push([name, value]);
    }
  }
  return { action, fields };
}
