// Keeps an eye on the lease of this page's session: asks the service in turn, and shares the answers with the other
// tabs of this browser. Asking in turn, because a stream for each tab would use up the few connections that a browser
// allows to one host, and the notebook needs them.

import { pauseAfter, spread } from './pause';
import { Service, ServiceError } from './service';
import type { ILease } from './shapes';

/** What is known. `at`: when that was, in milliseconds of the clock. */
export interface ILook {
  lease: ILease | null;
  /** The session of this page that has ended last, unless there is a new one. */
  ended: ILease | null;
  /** Whether the service does not answer now. */
  away: boolean;
  at: number;
}

/** Everything that a browser provides. */
export interface IWorld {
  now(): number;
  random(): number;
  visible(): boolean;
  /** Call once after so many milliseconds; returns what takes it back. */
  after(milliseconds: number, call: () => void): () => void;
}

/** To the other tabs, such as a BroadcastChannel. */
export interface IChannel {
  post(message: INews): void;
}

export interface INews {
  leases: ILease[];
  at: number;
}

const VISIBLE = 10_000;
const WARNED = 5_000;
const HIDDEN = 30_000;
const ENDING = 2_000;
const ENDED = 30_000;
/** Looks for a pool or a lease where there was none, before the page is left alone for good. */
export const WITHOUT_POOL = [10_000, 60_000, 300_000];
const FRESH = 2_000; // milliseconds for which an answer is not asked for again

export class Watch {
  constructor(
    private readonly _service: Service,
    private readonly _server: string,
    private readonly _world: IWorld,
    private readonly _channel: IChannel | null,
    private readonly _changed: (look: ILook) => void
  ) {}

  /** Whether there is nothing to watch here, found out for good. */
  get givenUp(): boolean {
    return this._givenUp;
  }

  /** Look now, and from then on in turn. */
  async start(): Promise<void> {
    await this._round();
  }

  /** Look now where the last answer is not from this moment: the page came to the fore, or the network back. */
  poke(force = false): void {
    if (this._givenUp || this._busy || (!force && this._world.now() - this._askedAt < FRESH)) {
      return;
    }
    void this._round();
  }

  /** Take over what another tab has been told. */
  async hear(news: INews): Promise<void> {
    if (this._givenUp || this._busy || news.at <= this._look.at) {
      return;
    }
    this._failures = 0;
    await this._guarded(() => this._take(news.leases, news.at, 0));
  }

  /** Take over a lease that an action has answered with. */
  put(lease: ILease): void {
    if (lease.id === this._look.lease?.id && lease.state !== 'closed') {
      this._show({ lease, ended: null, away: false, at: this._world.now() });
    }
    this._schedule();
  }

  private async _round(): Promise<void> {
    await this._guarded(async () => {
      const leases = (await this._service.leases()).filter(lease => lease.user === this._service.user);
      const at = this._world.now();
      this._failures = 0;
      this._channel?.post({ leases, at });
      await this._take(leases, at, 1);
    });
  }

  private async _guarded(work: () => Promise<void>): Promise<void> {
    if (this._busy) {
      return;
    }
    this._busy = true;
    this._askedAt = this._world.now();
    try {
      await work();
    } catch (problem) {
      this._trouble(problem instanceof ServiceError ? problem : new ServiceError('away'));
    } finally {
      this._busy = false;
      this._schedule();
    }
  }

  /** `looks`: how many looks of this page's own it was; what other tabs tell must not use them up. */
  private async _take(leases: ILease[], at: number, looks: number): Promise<void> {
    const lease = leases.find(one => one.server === this._server) ?? null;
    if (lease !== null) {
      this._mine = lease.id;
      this._misses = 0;
      this._show({ lease, ended: null, away: false, at });
      return;
    }
    if (this._mine === null) {
      this._misses += this._look.ended === null ? looks : 0;
      this._show({ ...this._look, lease: null, away: false, at });
      return;
    }
    const last = await this._last(this._mine);
    if (last !== null && last.state !== 'closed') {
      this._show({ lease: last, ended: null, away: false, at });
      return;
    }
    this._mine = null;
    this._show({ lease: null, ended: last, away: false, at });
  }

  private async _last(id: string): Promise<ILease | null> {
    try {
      return await this._service.lease(id);
    } catch (problem) {
      if (problem instanceof ServiceError && problem.trouble === 'refused') {
        return null; // the pool does not know it any more
      }
      throw problem;
    }
  }

  private _trouble(problem: ServiceError): void {
    this._failures += 1;
    this._lastTrouble = problem;
    // What was never there is left alone; what was there once comes back.
    const known = this._look.lease !== null || this._look.ended !== null;
    if (!known && problem.trouble === 'absent') {
      this._misses += 1;
    } else if (!known && (problem.trouble === 'forbidden' || problem.trouble === 'refused')) {
      this._givenUp = true;
    } else if (known && this._failures > 1) {
      this._show({ ...this._look, away: true });
    }
  }

  private _show(look: ILook): void {
    this._look = look;
    this._changed(look);
  }

  private _schedule(): void {
    this._cancel();
    this._cancel = () => undefined;
    const wait = this._givenUp ? null : this._wait();
    if (wait === null) {
      this._givenUp = true;
    } else {
      this._cancel = this._world.after(wait, () => void this._round());
    }
  }

  private _wait(): number | null {
    if (this._misses > 0) {
      return this._misses > WITHOUT_POOL.length ? null : WITHOUT_POOL[this._misses - 1];
    }
    if (this._failures > 0) {
      return pauseAfter(this._failures, this._lastTrouble.trouble, this._world.random);
    }
    return spread(this._interval(), this._world.random);
  }

  private _interval(): number {
    const { lease, ended } = this._look;
    if (lease?.state === 'stopping') {
      return ENDING;
    }
    if (!this._world.visible()) {
      return HIDDEN;
    }
    if (lease === null && ended !== null) {
      return ENDED;
    }
    return lease?.warning ? WARNED : VISIBLE;
  }

  private _look: ILook = { lease: null, ended: null, away: false, at: -1 };
  private _mine: string | null = null;
  private _busy = false;
  private _givenUp = false;
  private _failures = 0;
  private _misses = 0;
  private _askedAt = -Infinity;
  private _lastTrouble = new ServiceError('away');
  private _cancel: () => void = () => undefined;
}
