// What the service answers, as far as it is used here. Unknown figures are null, never zero.

/** A warning in force. `deadline_seconds` is null while nobody was told yet: then nothing counts down. */
export interface IWarning {
  id: string;
  rule: string;
  reason: string;
  delivered_at: string | null;
  deadline_seconds: number | null;
  /** Whether the session will really be stopped; false where the pool only watches or warns. */
  stops: boolean;
  extendable: boolean;
  /** Sentences. */
  lost: string;
  kept: string;
}

export interface ISaved {
  documents: string[];
  failed: string[];
}

export interface ILease {
  id: string;
  user: string | null;
  server: string;
  profile: string;
  state: 'queued' | 'starting' | 'active' | 'stopping' | 'closed';
  kind: string;
  memory_mib: number | null;
  memory_used_mib: number | null;
  utilization: number | null;
  time_left_seconds: number | null;
  extend_seconds: number;
  extendable_seconds: number;
  warning: IWarning | null;
  simulated?: boolean;
  /** Of a session that has ended or is being stopped: why, and what was saved. */
  why?: string | null;
  saved?: ISaved | null;
  /** Of one that has ended: where the same is asked for again. */
  again?: string | null;
}

/** The answer to the first question: who is logged in, and the token for all others. */
export interface ISession {
  user: string | null;
  xsrf: string;
}
