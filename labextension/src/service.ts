// The pool's service, through the hub's login. All that can go wrong has one of a few names.

import type { ILease, ISaved, ISession } from './shapes';

/**
 * `absent`: there is no pool here. `login`: nobody is logged in at the hub. `forbidden`: it is somebody without the
 * right to use the pool, or somebody else. `away`: hub or service do not answer now. `refused`: the service says no, with a sentence for the person.
 */
export type Trouble = 'absent' | 'login' | 'forbidden' | 'away' | 'refused';

export class ServiceError extends Error {
  constructor(
    readonly trouble: Trouble,
    message = '',
    readonly status = 0
  ) {
    super(message);
  }
}

export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

const PATIENCE = 20_000; // milliseconds after which a request counts as not answered, also in the midst of its answer
const MOST_PATHS = 100; // that the service takes at once
const LONGEST_PATH = 1000;

export class Service {
  /** `user`: whose session the page shows. Anybody else who looks at it is not the service's business. */
  constructor(
    readonly prefix: string,
    readonly user: string,
    private readonly _fetch: Fetch
  ) {}

  /** Log in, or find out that this cannot be done; asked once however many want to know. */
  open(): Promise<ISession> {
    this._opening ??= this._open().finally(() => {
      this._opening = null;
    });
    return this._opening;
  }

  async leases(): Promise<ILease[]> {
    return (await this._ask<{ leases: ILease[] }>('GET', 'leases')).leases;
  }

  lease(id: string): Promise<ILease> {
    return this._ask('GET', this._path(id));
  }

  /** Say that a warning stands before somebody's eyes. */
  seen(id: string, warning: string): Promise<ILease> {
    return this._ask('POST', `${this._path(id)}/seen`, { warning, by: 'jupyterlab' });
  }

  extend(id: string): Promise<ILease> {
    return this._ask('POST', `${this._path(id)}/extend`, {});
  }

  release(id: string): Promise<ILease> {
    return this._ask('DELETE', this._path(id));
  }

  /** Tell which documents were saved, and which could not be. */
  async saved(id: string, saved: ISaved): Promise<void> {
    const documents = saved.documents.map(path => path.slice(0, LONGEST_PATH));
    const failed = saved.failed.map(path => path.slice(0, LONGEST_PATH));
    while (documents.length || failed.length) {
      const part = { documents: documents.splice(0, MOST_PATHS), failed: failed.splice(0, MOST_PATHS) };
      await this._ask('POST', `${this._path(id)}/saved`, part);
    }
  }

  private _path(id: string): string {
    return `leases/${encodeURIComponent(id)}`;
  }

  private async _open(): Promise<ISession> {
    // With any other mode the hub's check wants a token that only this answer gives. Where the browser has no login
    // at the service yet, this very request goes through the hub's and comes back.
    const answer = await this._send(`${this.prefix}api/session`, { mode: 'no-cors', redirect: 'follow' });
    if (answer.status === 404) {
      throw new ServiceError('absent');
    }
    if (answer.status === 401 || answer.status === 403) {
      // The service says so in JSON. Anything else is the login's: two of one browser that cross end like this, both.
      throw new ServiceError(isJSON(answer) ? 'forbidden' : 'login');
    }
    if (!answer.ok) {
      throw new ServiceError('away');
    }
    if (!isJSON(answer)) {
      throw new ServiceError('login');
    }
    const session = read<ISession>(answer);
    if (session.user !== this.user) {
      throw new ServiceError('forbidden');
    }
    this._token = session.xsrf;
    return session;
  }

  private async _ask<T>(method: string, path: string, body?: unknown): Promise<T> {
    const renewed = this._token === null;
    if (renewed) {
      await this.open();
    }
    const headers: Record<string, string> = { 'X-XSRFToken': this._token ?? '' };
    if (body !== undefined) {
      headers['Content-Type'] = 'application/json';
    }
    const answer = await this._send(`${this.prefix}api/${path}`, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body)
    });
    if (answer.status >= 500 || answer.status === 429 || !isJSON(answer)) {
      throw new ServiceError('away');
    }
    if (answer.ok) {
      return read<T>(answer);
    }
    const problem = read<{ reason: string; message: string }>(answer);
    if (answer.status === 403 && problem.reason === 'not-authenticated') {
      this._token = null;
      if (renewed) {
        throw new ServiceError('away');
      }
      return this._ask(method, path, body);
    }
    throw new ServiceError('refused', problem.message, answer.status);
  }

  private async _send(url: string, init: RequestInit): Promise<IAnswer> {
    const givenUp = new AbortController();
    const timer = setTimeout(() => givenUp.abort(), PATIENCE);
    try {
      const answer = await this._fetch(url, {
        credentials: 'same-origin',
        cache: 'no-store',
        signal: givenUp.signal,
        ...init
      });
      const type = answer.headers.get('content-type') ?? '';
      return { status: answer.status, ok: answer.ok, type, text: await answer.text() };
    } catch {
      throw new ServiceError('away');
    } finally {
      clearTimeout(timer);
    }
  }

  private _token: string | null = null;
  private _opening: Promise<ISession> | null = null;
}

/** An answer that has come as a whole. */
interface IAnswer {
  status: number;
  ok: boolean;
  type: string;
  text: string;
}

function isJSON(answer: IAnswer): boolean {
  return answer.type.startsWith('application/json');
}

function read<T>(answer: IAnswer): T {
  try {
    return JSON.parse(answer.text) as T;
  } catch {
    throw new ServiceError('away'); // cut off in the middle
  }
}
