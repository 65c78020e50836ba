// The plugin: finds out whether this page is a session of a GPU pool, and only then does anything.

import { JupyterLab } from '@jupyterlab/application';
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import { IDocumentManager } from '@jupyterlab/docmanager';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Desk } from './desk';
import { Meter } from './meter';
import { Page } from './page';
import { placeOf } from './place';
import type { IPlace } from './place';
import { Service } from './service';
import { Watch } from './watch';
import type { ILook, INews, IWorld } from './watch';
import { meter } from './words';
import type { ITrans } from './words';

const NAME = 'jupyterhub-gpupool';
const SECOND = 1000;

const world: IWorld = {
  now: () => Date.now(),
  random: Math.random,
  visible: () => document.visibilityState === 'visible',
  after: (milliseconds, call) => {
    const timer = window.setTimeout(call, milliseconds);
    return () => window.clearTimeout(timer);
  }
};

/** Seconds until the session ends, from what was known a while ago. */
function left(look: ILook): number | null {
  const then = look.lease?.warning?.deadline_seconds ?? look.lease?.time_left_seconds ?? null;
  return then === null ? null : Math.max(0, then - (world.now() - look.at) / SECOND);
}

function addMeter(app: JupyterFrontEnd, statusBar: IStatusBar | null, address: string): Meter {
  const made = new Meter(address);
  made.id = `${NAME}:meter`;
  if (statusBar) {
    statusBar.registerStatusItem(made.id, { item: made, align: 'right', rank: 900 });
  } else {
    // Notebook 7 has no status bar.
    made.addClass('jp-GPUPool-mod-top');
    app.shell.add(made, 'top', { rank: 900 });
  }
  return made;
}

function addCommands(
  app: JupyterFrontEnd,
  palette: ICommandPalette | null,
  desk: Desk,
  now: () => ILook,
  address: string,
  trans: ITrans
): void {
  const active = () => now().lease?.state === 'active';
  const warned = () => Boolean(now().lease?.warning);
  const commands: [string, string, () => boolean, () => unknown][] = [
    ['extend', trans.__('GPU pool: extend this session'), () => active() && warned(), () => desk.extend()],
    ['release', trans.__('GPU pool: release this session…'), active, () => desk.release()],
    ['details', trans.__('GPU pool: details of the warning'), warned, () => desk.details()],
    ['open', trans.__('GPU pool: open the page of the pool'), () => true, () => window.open(address, '_blank', 'noopener')]
  ];
  for (const [name, label, isEnabled, execute] of commands) {
    const command = `gpupool:${name}`;
    app.commands.addCommand(command, { label, isEnabled, execute });
    palette?.addItem({ command, category: trans.__('GPU pool') });
  }
}

function follow(
  app: JupyterFrontEnd,
  who: IPlace,
  statusBar: IStatusBar | null,
  palette: ICommandPalette | null,
  page: Page,
  trans: ITrans
): void {
  const service = new Service(who.prefix, who.user, (url, init) => fetch(url, init));
  const desk = new Desk(service, page, trans, lease => watch.put(lease));
  let look: ILook = { lease: null, ended: null, away: false, at: 0 };
  let shown: Meter | null = null;
  let ticking: number | undefined;

  const show = () => {
    shown?.display(look.lease === null ? null : meter(look.lease, left(look), look.away, trans));
  };
  const tick = () => {
    desk.tick();
    show();
    if (!desk.counting) {
      window.clearInterval(ticking);
      ticking = undefined;
    }
  };
  const changed = (news: ILook) => {
    look = news;
    if (look.lease !== null && shown === null) {
      shown = addMeter(app, statusBar, who.prefix);
      addCommands(app, palette, desk, () => look, who.prefix, trans);
    }
    desk.look(look);
    show();
    if (desk.counting && ticking === undefined) {
      ticking = window.setInterval(tick, SECOND);
    }
  };

  const others = new BroadcastChannel(`${NAME}:${who.prefix}:${who.user}`);
  const watch = new Watch(service, who.server, world, { post: news => others.postMessage(news) }, changed);
  others.onmessage = (event: MessageEvent<INews>) => void watch.hear(event.data);
  document.addEventListener('visibilitychange', () => {
    if (world.visible()) {
      desk.look(look);
      watch.poke();
    }
  });
  window.addEventListener('online', () => watch.poke());
  void watch.start();
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: `${NAME}:plugin`,
  description: 'Shows the GPU of a session, warns before it is taken back, and says why it was.',
  autoStart: true,
  optional: [IStatusBar, IDocumentManager, ICommandPalette, JupyterLab.IInfo, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    statusBar: IStatusBar | null,
    documents: IDocumentManager | null,
    palette: ICommandPalette | null,
    info: JupyterLab.IInfo | null,
    translator: ITranslator | null
  ): void => {
    const who = placeOf(name => PageConfig.getOption(name), window.location.hostname);
    if (who !== null) {
      const words = translator ?? nullTranslator;
      const trans = words.load('jupyterhub_gpupool');
      const page = new Page(app, documents, info, words, trans);
      void app.restored.then(() => follow(app, who, statusBar, palette, page, trans));
    }
  }
};

export default plugin;
