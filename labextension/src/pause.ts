// How long to wait before a question is asked again, in milliseconds.

import type { Trouble } from './service';

const FIRST = 2_000;
const LONGEST = 60_000;
const LONGEST_WITHOUT_LOGIN = 600_000; // each try goes to the hub's login page and back

/** After so many failures in a row (1, 2, …): twice as long each time, spread, so that not all browsers come at once. */
export function pauseAfter(failures: number, trouble: Trouble, random: () => number): number {
  const longest = trouble === 'login' ? LONGEST_WITHOUT_LOGIN : LONGEST;
  const whole = Math.min(longest, FIRST * 2 ** Math.min(failures - 1, 20));
  return whole * (0.5 + random() / 2);
}

/** Somewhat more than a regular interval, so that many pages do not fall into step. */
export function spread(interval: number, random: () => number): number {
  return interval * (1 + random() / 5);
}
