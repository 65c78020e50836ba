// What the person reads. Pure; what the service or people wrote is passed on as text.

import type { ILease, ISaved, IWarning } from './shapes';

/** What is used of JupyterLab's translation bundles. */
export interface ITrans {
  __(text: string, ...values: (string | number)[]): string;
  /** The count is %1. */
  _n(one: string, many: string, count: number): string;
}

/** JupyterLab cuts longer notifications off. */
export const LONGEST_MESSAGE = 140;

export function duration(seconds: number, trans: ITrans): string {
  const whole = Math.max(0, Math.round(seconds));
  const minutes = Math.floor(whole / 60);
  const hours = Math.floor(minutes / 60);
  if (whole < 60) {
    return trans.__('%1 s', whole);
  }
  if (minutes < 60) {
    return whole % 60 ? trans.__('%1 min %2 s', minutes, whole % 60) : trans.__('%1 min', minutes);
  }
  return minutes % 60 ? trans.__('%1 h %2 min', hours, minutes % 60) : trans.__('%1 h', hours);
}

/** What is left, never more: to the second only at the very end, because each change is drawn anew and draws the eye. */
export function remaining(seconds: number, trans: ITrans): string {
  if (seconds <= 30) {
    return duration(Math.ceil(seconds), trans);
  }
  const step = seconds <= 120 ? 5 : 60;
  return duration(Math.floor(seconds / step) * step, trans);
}

export function percent(value: number | null, trans: ITrans): string {
  return value === null ? trans.__('unknown') : trans.__('%1 %', Math.round(value));
}

export function memory(mib: number | null, trans: ITrans): string {
  if (mib === null) {
    return trans.__('unknown');
  }
  return mib < 1024 ? trans.__('%1 MiB', Math.round(mib)) : trans.__('%1 GiB', (mib / 1024).toFixed(1));
}

/** A text that is at most so long. */
export function cut(text: string, longest: number): string {
  return text.length <= longest ? text : `${text.slice(0, Math.max(0, longest - 1)).trimEnd()}…`;
}

// --- the meter -------------------------------------------------------------------------------------------------------

export interface IMeter {
  text: string;
  /** The same in whole sentences. */
  label: string;
  mood: 'plain' | 'warned' | 'away';
  /** 0 to 1; null: unknown, or there is none. */
  utilization: number | null;
  memory: number | null;
}

/** `left`: seconds until the session ends, null where no end is in sight. */
export function meter(lease: ILease | null, left: number | null, away: boolean, trans: ITrans): IMeter {
  const rest = { mood: 'plain' as IMeter['mood'], utilization: null, memory: null };
  const opens = trans.__('Opens the page of the GPU pool.');
  if (away || lease === null) {
    const label = trans.__('The GPU pool does not answer: use and time left are unknown.');
    return { ...rest, text: trans.__('GPU: unknown'), label: `${label} ${opens}`, mood: 'away' };
  }
  if (lease.state !== 'active') {
    const text = stateInWords(lease, trans);
    return { ...rest, text, label: `${text}. ${opens}` };
  }
  const parts = figures(lease, trans);
  const warned = lease.warning !== null;
  const stops = lease.warning !== null && lease.warning.stops;
  if (left !== null && (stops || !warned)) {
    const time = remaining(left, trans);
    parts.short.push(stops ? trans.__('stops in %1', time) : trans.__('%1 left', time));
    const ends = stops ? trans.__('The session will be stopped in %1.', time) : trans.__('Time left: %1.', time);
    parts.long.push(ends);
  } else if (warned) {
    parts.short.push(trans.__('warned'));
    parts.long.push(trans.__('There is a warning about this session.'));
  } else {
    parts.long.push(trans.__('No end of the session is in sight.'));
  }
  return {
    text: parts.short.join(' · '),
    label: [...parts.long, opens].join(' '),
    mood: warned ? 'warned' : 'plain',
    utilization: lease.utilization === null ? null : share(lease.utilization, 100),
    memory: share(lease.memory_used_mib, lease.memory_mib)
  };
}

function figures(lease: ILease, trans: ITrans): { short: string[]; long: string[] } {
  if (lease.memory_mib === null) {
    return { short: [trans.__('no GPU')], long: [trans.__('This session has no GPU.')] };
  }
  const limit = memory(lease.memory_mib, trans);
  const used = memory(lease.memory_used_mib, trans);
  const busy = percent(lease.utilization, trans);
  const short = [trans.__('GPU %1', busy), trans.__('%1 of %2', used, limit)];
  const long = [
    trans.__('GPU utilization: %1.', busy),
    trans.__('GPU memory: %1 of the %2 of your slice.', used, limit)
  ];
  if (lease.simulated) {
    short.unshift(trans.__('simulated'));
    long.unshift(trans.__('The GPU is simulated, computing happens on the CPU.'));
  }
  return { short, long };
}

function share(part: number | null, whole: number | null): number | null {
  return part === null || !whole ? null : Math.min(1, Math.max(0, part / whole));
}

function stateInWords(lease: ILease, trans: ITrans): string {
  switch (lease.state) {
    case 'queued':
      return trans.__('GPU: in the queue');
    case 'starting':
      return trans.__('GPU: starting');
    case 'stopping':
      return trans.__('GPU: being stopped');
    default:
      return trans.__('GPU: session ended');
  }
}

// --- warnings --------------------------------------------------------------------------------------------------------

/** The notification: when, why, what is lost and what stays. `left` is null while nothing counts down. */
export function warningMessage(warning: IWarning, left: number | null, trans: ITrans): string {
  const first = !warning.stops
    ? trans.__('The GPU pool warns about this session. Nothing is stopped.')
    : left === null
      ? warning.rule === 'memory'
        ? trans.__('This session stops if it holds too much GPU memory for longer.')
        : trans.__('This session will stop.')
      : trans.__('This session stops in %1.', remaining(left, trans));
  const last = warning.stops ? trans.__('Files stay, memory is lost.') : '';
  const why = cut(sentence(warning.reason), LONGEST_MESSAGE - first.length - last.length - 2);
  return [first, why, last].filter(Boolean).join('\n');
}

/** All that is known of a warning, for those who want to read it. */
export function warningDetails(lease: ILease, warning: IWarning, trans: ITrans): string[] {
  const lines = [sentence(warning.reason)];
  if (warning.stops) {
    lines.push(trans.__('Lost: %1', warning.lost), trans.__('Kept: %1', warning.kept));
  } else {
    lines.push(trans.__('The pool only warns at present: nothing will be stopped.'));
  }
  lines.push(extensionInWords(lease, warning, trans));
  return lines.filter(Boolean);
}

export function extensionInWords(lease: ILease, warning: IWarning, trans: ITrans): string {
  if (!warning.extendable) {
    return warning.rule === 'idle'
      ? trans.__('It was extended as far as its profile allows.')
      : trans.__('This cannot be put off by extending the session.');
  }
  return trans.__('It can be extended by up to %1 more.', duration(lease.extendable_seconds, trans));
}

/** A reason of the service as a sentence. */
export function sentence(text: string): string {
  const trimmed = text.trim();
  if (!trimmed) {
    return '';
  }
  const whole = trimmed[0].toUpperCase() + trimmed.slice(1);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
}

// --- the end ---------------------------------------------------------------------------------------------------------

/** The note after the end: why, and what was saved. */
export function endedMessage(lease: ILease, trans: ITrans): string {
  const first = trans.__('This session has ended.');
  const last = savedInWords(lease.saved ?? null, trans);
  const why = cut(sentence(lease.why ?? ''), LONGEST_MESSAGE - first.length - last.length - 2);
  return [first, why, last].filter(Boolean).join('\n');
}

export function savedInWords(saved: ISaved | null, trans: ITrans): string {
  if (saved === null || saved.documents.length + saved.failed.length === 0) {
    return '';
  }
  const count = saved.documents.length;
  const done = trans._n('%1 document was saved.', '%1 documents were saved.', count);
  const left = saved.failed.length;
  if (!left) {
    return done;
  }
  const missed = trans._n('%1 could not be.', '%1 could not be.', left);
  return `${done} ${missed}`;
}
