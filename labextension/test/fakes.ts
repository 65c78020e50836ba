// Stand-ins for the service, the clock and the page.

import type { IAction, IPage, Kind } from '../src/desk';
import type { ILease, ISaved, IWarning } from '../src/shapes';
import type { IWorld } from '../src/watch';
import type { ITrans } from '../src/words';

const fill = (text: string, values: (string | number)[]) =>
  text.replace(/%(\d)/g, (_, index: string) => String(values[Number(index) - 1]));

export const trans: ITrans = {
  __: (text, ...values) => fill(text, values),
  _n: (one, many, count) => fill(count === 1 ? one : many, [count])
};

/** Translates everything into «the same». */
export const marked: ITrans = {
  __: (...given) => `«${trans.__(...given)}»`,
  _n: (...given) => `«${trans._n(...given)}»`
};

/** What is left of a text without all that has been translated. */
export function untranslated(text: string): string {
  const shorter = text.replace(/«[^«»]*»/g, '');
  return shorter === text ? text : untranslated(shorter);
}

export function warning(given: Partial<IWarning> = {}): IWarning {
  return {
    id: 'w1',
    rule: 'idle',
    reason: 'no GPU activity for 24 min, the kernel is idle',
    delivered_at: null,
    deadline_seconds: null,
    stops: true,
    extendable: true,
    lost: 'Variables.',
    kept: 'Files in the home.',
    ...given
  };
}

export function lease(given: Partial<ILease> = {}): ILease {
  return {
    id: 'l1',
    user: 'ada',
    server: '',
    profile: 'half',
    state: 'active',
    kind: 'share',
    memory_mib: 20480,
    memory_used_mib: 3174.4,
    utilization: 37.4,
    time_left_seconds: null,
    extend_seconds: 60,
    extendable_seconds: 180,
    warning: null,
    ...given
  };
}

/** A browser whose time goes on when told to. */
export class World implements IWorld {
  time = 1_000_000;
  seen = true;
  timers: { at: number; call: () => void }[] = [];

  now(): number {
    return this.time;
  }

  random(): number {
    return 1;
  }

  visible(): boolean {
    return this.seen;
  }

  after(milliseconds: number, call: () => void): () => void {
    const timer = { at: this.time + milliseconds, call };
    this.timers.push(timer);
    return () => {
      this.timers = this.timers.filter(one => one !== timer);
    };
  }

  /** Milliseconds until the next timer; null where nothing will happen any more. */
  get next(): number | null {
    return this.timers.length ? Math.min(...this.timers.map(one => one.at)) - this.time : null;
  }

  /** Let time go on until the next timer, and what it starts come to its end. */
  async pass(): Promise<void> {
    const first = this.timers.sort((a, b) => a.at - b.at).shift();
    if (!first) {
      throw new Error('nothing is waited for');
    }
    this.time = first.at;
    first.call();
    await settle();
  }
}

export async function settle(): Promise<void> {
  for (let turn = 0; turn < 30; turn += 1) {
    await new Promise<void>(resolve => setImmediate(resolve));
  }
}

export interface ISent {
  method: string;
  path: string;
  body: unknown;
  token: string | undefined;
  init: RequestInit;
}

type Answer = { status?: number; body?: unknown; html?: string } | 'broken';

/** The service as a function of the request; keeps what was sent. */
export class Hub {
  sent: ISent[] = [];
  token = 'token-1';
  user: string | null = 'ada';
  leases: ILease[] = [];
  closed: Record<string, ILease> = {};
  /** Answers that come first, for any request. */
  first: Answer[] = [];
  /** An answer for each request while it is set. */
  always: Answer | null = null;

  readonly fetch = async (url: string, init: RequestInit): Promise<Response> => {
    const path = url.replace('/hub-base/services/gpupool/api/', '');
    const headers = (init.headers ?? {}) as Record<string, string>;
    const body = init.body === undefined ? undefined : (JSON.parse(init.body as string) as unknown);
    this.sent.push({ method: init.method ?? 'GET', path, body, token: headers['X-XSRFToken'], init });
    const answer = this.first.shift() ?? this.always ?? this._answer(path, headers['X-XSRFToken'], init.method);
    if (answer === 'broken') {
      throw new TypeError('Failed to fetch');
    }
    const type = answer.html === undefined ? 'application/json' : 'text/html; charset=utf-8';
    const text = answer.html ?? JSON.stringify(answer.body ?? {});
    return new Response(text, { status: answer.status ?? 200, headers: { 'content-type': type } });
  };

  /** What was asked since the last call, as words. */
  asked(): string[] {
    const found = this.sent.map(one => `${one.method} ${one.path}`);
    this.sent = [];
    return found;
  }

  private _answer(path: string, token: string | undefined, method = 'GET'): Answer {
    if (path === 'session') {
      return { body: { user: this.user, xsrf: this.token } };
    }
    if (token !== this.token) {
      return { status: 403, body: { reason: 'not-authenticated', message: 'Nobody is logged in.' } };
    }
    if (path === 'leases') {
      return { body: { leases: this.leases } };
    }
    const [, id, verb] = path.split('/');
    const found = this.leases.find(one => one.id === id) ?? this.closed[id];
    if (!found) {
      return { status: 404, body: { reason: 'not-found', message: 'There is no lease of yours with this id.' } };
    }
    if (method === 'DELETE') {
      return { status: 202, body: { ...found, state: 'stopping' } };
    }
    if (verb === 'seen') {
      const told = warning({ ...found.warning!, delivered_at: 'now', deadline_seconds: 300 });
      return { body: { ...found, warning: told } };
    }
    return { body: verb === 'extend' ? { ...found, warning: null } : found };
  }
}

export interface INote {
  kind: Kind;
  message: string;
  actions: IAction[];
  seconds?: number;
}

/** A page that keeps what it was told. */
export class FakePage implements IPage {
  notes = new Map<string, INote>();
  shown: INote[] = []; // all that were ever there
  put = new Set<string>(); // put away by the person
  said: string[] = [];
  asked: string[] = [];
  told: string[][] = [];
  went: ILease[] = [];
  saves = 0;
  updates = 0;
  gone = false;
  silent = false; // notifications are silenced
  yes = true;
  unsaved: ISaved = { documents: ['a.ipynb'], failed: [] };
  private _count = 0;

  constructor(readonly world: World) {}

  now(): number {
    return this.world.now();
  }

  visible(): boolean {
    return this.world.visible();
  }

  notify(kind: Kind, message: string, actions: IAction[], seconds?: number): string {
    const name = `n${(this._count += 1)}`;
    this.notes.set(name, { kind, message, actions, seconds });
    this.shown.push(this.notes.get(name)!);
    return name;
  }

  update(name: string, message: string, actions: IAction[], again: boolean): void {
    this.updates += 1;
    if (again) {
      this.put.delete(name);
    }
    if (!this.put.has(name)) {
      this.notes.set(name, { ...this.notes.get(name)!, message, actions });
    }
  }

  shows(name: string): boolean {
    return !this.silent && this.notes.has(name);
  }

  dismiss(name: string): void {
    this.notes.delete(name);
  }

  say(text: string): void {
    this.said.push(text);
  }

  async ask(title: string, lines: string[], yes: string): Promise<boolean> {
    this.asked.push(title);
    this.told.push([...lines, yes]);
    return this.yes;
  }

  tell(title: string, lines: string[]): void {
    this.told.push([title, ...lines]);
  }

  async save(): Promise<ISaved> {
    this.saves += 1;
    return this.unsaved;
  }

  serverIsGone(gone: boolean): void {
    this.gone = gone;
  }

  async again(lease: ILease): Promise<void> {
    this.went.push(lease);
  }

  /** The notifications that stay. */
  get lasting(): INote[] {
    return [...this.notes.values()].filter(note => note.seconds === undefined);
  }

  press(label: string): void {
    const action = this.lasting.flatMap(note => note.actions).find(one => one.label === label);
    if (!action) {
      throw new Error(`there is no button ${label}`);
    }
    action.run();
  }
}
