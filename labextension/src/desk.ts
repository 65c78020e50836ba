// Tells the person: a warning with its countdown, the end, and what the buttons do. Knows nothing of JupyterLab; what it
// needs of the page is behind IPage, so that the whole story can be tried out without a browser.

import { ServiceError } from './service';
import type { Service } from './service';
import type { ILease, ISaved, IWarning } from './shapes';
import type { ILook } from './watch';
import * as words from './words';
import type { ITrans } from './words';

export interface IAction {
  label: string;
  caption: string;
  display: 'default' | 'accent' | 'warn';
  run: () => void;
}

export type Kind = 'info' | 'success' | 'warning' | 'error';

/** The page that the person looks at. */
export interface IPage {
  now(): number;
  visible(): boolean;
  /** Show a notification that stays until it is dismissed, or for `seconds`; returns its name. */
  notify(kind: Kind, message: string, actions: IAction[], seconds?: number): string;
  /** Change a notification; one that the person has put away comes back only if `again`. */
  update(name: string, message: string, actions: IAction[], again: boolean): void;
  /** Whether a notification stands on the page now. */
  shows(name: string): boolean;
  dismiss(name: string): void;
  /** Tell a screen reader, when it has a moment. */
  say(text: string): void;
  /** Ask once; true for yes. */
  ask(title: string, lines: string[], yes: string): Promise<boolean>;
  tell(title: string, lines: string[]): void;
  /** Save all documents with changes. */
  save(): Promise<ISaved>;
  /** Whether the server behind this page is known to be gone: then nobody need ask for it, or be asked about it. */
  serverIsGone(gone: boolean): void;
  /** Ask for the same session again, and go where it is shown. */
  again(lease: ILease): Promise<void>;
}

/** Seconds before the end at which documents are saved, and saved again; a hidden page may only act once a minute. */
export const SAVE_AT = [60, 10];
export const SAVE_AT_HIDDEN = 120;
/** Seconds before the end at which a notification that was put away comes back, once. */
export const REMIND_AT = 60;
/** Seconds before the end at which a screen reader is told. */
export const TELL_AT = [300, 60, 30, 10];
const SHORT = 6; // seconds for which a word on what was done stays
const SLACK = 2; // seconds by which two answers may disagree on the end

/** One warning, as long as it is in force. */
interface IShown {
  warning: IWarning;
  name: string;
  message: string;
  ends: number | null;
  left: number;
  /** Seconds that were left when documents were saved last. */
  savedAt: number;
}

export class Desk {
  constructor(
    private readonly _service: Service,
    private readonly _page: IPage,
    private readonly _trans: ITrans,
    private readonly _answered: (lease: ILease) => void
  ) {}

  /** Whether something counts down, so that :meth:`tick` wants to be called each second. */
  get counting(): boolean {
    return this._shown !== null;
  }

  /** Take notice of what is known now. */
  look(look: ILook): void {
    this._lease = look.lease;
    if (look.lease !== null) {
      this._forgetEnd();
      this._saveAtEnd(look.lease);
    }
    const warning = look.lease?.state === 'active' ? look.lease.warning : null;
    if (warning === null) {
      this._forgetWarning();
    } else if (this._shown?.warning.id === warning.id) {
      this._goOn(this._shown, warning, look.at);
    } else if (this._page.visible()) {
      this._forgetWarning();
      this._warn(warning, look.at);
    } else {
      this._saveUnseen(look.lease!, warning, look.at);
    }
    if (look.ended !== null && look.ended.id !== this._ended) {
      this._end(look.ended);
    }
  }

  /** Let the countdown go on; to be called about each second while there is one. */
  tick(): void {
    const shown = this._shown;
    if (shown !== null) {
      this._tellOnceShown(shown);
    }
    if (shown === null || shown.ends === null || this._lease === null) {
      return;
    }
    const left = Math.max(0, (shown.ends - this._page.now()) / 1000);
    const passed = (at: number) => left <= at && shown.left > at;
    const message = this._message(shown, left);
    if (this._page.visible() && (message !== shown.message || passed(REMIND_AT))) {
      shown.message = message;
      this._page.update(shown.name, message, this._actions(shown), passed(REMIND_AT));
    }
    if (shown.warning.stops && TELL_AT.some(passed)) {
      this._page.say(this._trans.__('This session will be stopped in %1.', words.duration(left, this._trans)));
    }
    shown.left = left;
    this._saveInTime(shown, left);
  }

  /** Extend the session; what comes of it is told. */
  async extend(): Promise<void> {
    const lease = this._lease;
    if (lease === null) {
      return;
    }
    await this._act(async () => {
      this._answered(await this._service.extend(lease.id));
      this._page.notify('success', this._trans.__('The session was extended.'), [], SHORT);
    });
  }

  /** Release the session: ask once, save what there is, and end it only where nothing is lost by that. */
  async release(): Promise<void> {
    const lease = this._lease;
    if (lease === null) {
      return;
    }
    const lines = [
      this._trans.__('Kernels, variables and terminals of this session end. Files in your home stay.'),
      this._trans.__('Documents with changes are saved first.')
    ];
    const title = this._trans.__('Release this session?');
    if (!(await this._page.ask(title, lines, this._trans.__('Release')))) {
      return;
    }
    const { failed } = await this._save(lease.id);
    if (failed.length === 0) {
      await this._release(lease.id);
      return;
    }
    const text = this._trans.__('Not released, because this could not be saved: %1', failed.join(', '));
    const anyway = {
      label: this._trans.__('Release anyway'),
      caption: this._trans.__('Release the session; what is not saved is lost'),
      display: 'warn' as const,
      run: () => void this._release(lease.id)
    };
    this._page.notify('error', words.cut(text, words.LONGEST_MESSAGE), [anyway]);
  }

  /** Show all that is known of the warning. */
  details(): void {
    const warning = this._lease?.warning;
    if (this._lease && warning) {
      const lines = words.warningDetails(this._lease, warning, this._trans);
      this._page.tell(this._trans.__('Warning of the GPU pool'), lines);
    }
  }

  private async _release(id: string): Promise<void> {
    await this._act(async () => {
      const lease = await this._service.release(id);
      this._savedAtEnd = id; // by the one who pressed the button
      this._answered(lease);
      this._page.notify('info', this._trans.__('The session is being ended.'), [], SHORT);
    });
  }

  private async _act(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (problem) {
      const refused = problem instanceof ServiceError && problem.trouble === 'refused';
      const text = refused
        ? words.sentence((problem as ServiceError).message)
        : this._trans.__('The GPU pool did not answer. Try again in a moment.');
      this._page.notify('error', words.cut(text, words.LONGEST_MESSAGE), []);
    }
  }

  // --- a warning -----------------------------------------------------------------------------------------------------

  private _warn(warning: IWarning, at: number): void {
    const ends = endOf(warning, at);
    const left = ends === null ? Infinity : (ends - this._page.now()) / 1000;
    const shown: IShown = { warning, name: '', message: '', ends, left, savedAt: Infinity };
    shown.message = this._message(shown, ends === null ? null : Math.max(0, left));
    shown.name = this._page.notify('warning', shown.message, this._actions(shown));
    this._shown = shown;
    this._untold = warning.delivered_at === null;
    this._tellOnceShown(shown);
    this._saveInTime(shown, left);
  }

  private _tellOnceShown(shown: IShown): void {
    if (this._untold && this._lease && this._page.visible() && this._page.shows(shown.name)) {
      this._untold = false;
      void this._tellSeen(this._lease.id, shown);
    }
  }

  private async _tellSeen(id: string, shown: IShown): Promise<void> {
    try {
      this._answered(await this._service.seen(id, shown.warning.id));
    } catch {
      // Whoever was not told is told again: by the next look, or by mail.
      if (this._shown === shown) {
        this._failed = true;
      }
    }
  }

  private _goOn(shown: IShown, warning: IWarning, at: number): void {
    this._untold = warning.delivered_at === null && (this._untold || this._failed);
    this._failed = false;
    const ends = endOf(warning, at);
    const same = ends !== null && shown.ends !== null && Math.abs(ends - shown.ends) <= SLACK * 1000;
    shown.warning = warning;
    if (!same) {
      shown.ends = ends;
      shown.savedAt = Infinity; // the end has moved: what is changed until then is saved too
    }
    this.tick();
  }

  private _forgetWarning(): void {
    if (this._shown !== null) {
      this._page.dismiss(this._shown.name);
      this._shown = null;
      this._untold = this._failed = false;
    }
  }

  private _message(shown: IShown, left: number | null): string {
    return words.warningMessage(shown.warning, left, this._trans);
  }

  private _actions(shown: IShown): IAction[] {
    const trans = this._trans;
    const actions: IAction[] = [];
    const lease = this._lease;
    if (shown.warning.extendable && lease !== null && lease.extend_seconds > 0) {
      const by = words.duration(lease.extend_seconds, trans);
      actions.push({
        label: trans.__('Extend'),
        caption: trans.__('Extend this session by %1', by),
        display: 'accent',
        run: () => void this.extend()
      });
    }
    actions.push(
      {
        label: trans.__('Release'),
        caption: trans.__('End this session now and free its GPU'),
        display: 'default',
        run: () => void this.release()
      },
      {
        label: trans.__('Details'),
        caption: trans.__('What decided it, what is lost, what stays'),
        display: 'default',
        run: () => this.details()
      }
    );
    return actions;
  }

  // --- saving --------------------------------------------------------------------------------------------------------

  private _saveInTime(shown: IShown, left: number): void {
    const steps = this._page.visible() ? SAVE_AT : [SAVE_AT_HIDDEN, ...SAVE_AT];
    if (shown.warning.stops && this._lease && steps.some(at => left <= at && shown.savedAt > at)) {
      shown.savedAt = left;
      void this._save(this._lease.id);
    }
  }

  /** Nobody looks, so nothing is shown and nothing counts as seen; somebody may have been told otherwise. */
  private _saveUnseen(lease: ILease, warning: IWarning, at: number): void {
    const ends = endOf(warning, at);
    const soon = ends !== null && (ends - this._page.now()) / 1000 <= SAVE_AT_HIDDEN;
    if (soon && warning.stops && this._savedUnseen !== warning.id) {
      this._savedUnseen = warning.id;
      void this._save(lease.id);
    }
  }

  /** The end has begun, by this page's warning or without one: the last moment, once. */
  private _saveAtEnd(lease: ILease): void {
    if (lease.state === 'stopping' && this._savedAtEnd !== lease.id) {
      this._savedAtEnd = lease.id;
      void this._save(lease.id);
    }
  }

  private async _save(id: string): Promise<ISaved> {
    const saved = await this._page.save();
    if (saved.documents.length + saved.failed.length > 0) {
      this._service.saved(id, saved).catch(() => {
        this._page.say(this._trans.__('The GPU pool could not be told what was saved.'));
      });
    }
    return saved;
  }

  // --- the end -------------------------------------------------------------------------------------------------------

  private _end(lease: ILease): void {
    this._forgetEnd();
    this._ended = lease.id;
    const actions: IAction[] = [];
    if (lease.again) {
      actions.push({
        label: this._trans.__('Queue again'),
        caption: this._trans.__('Ask for the same kind of session again'),
        display: 'accent',
        run: () => void this._page.again(lease)
      });
    }
    this._page.serverIsGone(true);
    this._note = this._page.notify('warning', words.endedMessage(lease, this._trans), actions);
  }

  private _forgetEnd(): void {
    if (this._note !== null) {
      this._page.dismiss(this._note);
      this._page.serverIsGone(false);
      this._note = null;
    }
  }

  private _lease: ILease | null = null;
  private _shown: IShown | null = null;
  /** Whether the service is to be told that the warning stands on the page. */
  private _untold = false;
  /** Whether it could not be told, so that it is tried again with the next look. */
  private _failed = false;
  private _savedUnseen = '';
  /** The session whose documents were saved when its end had begun. */
  private _savedAtEnd = '';
  private _ended = '';
  private _note: string | null = null;
}

function endOf(warning: IWarning, at: number): number | null {
  return warning.deadline_seconds === null ? null : at + warning.deadline_seconds * 1000;
}
