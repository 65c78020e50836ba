import assert from 'node:assert/strict';
import { test } from 'node:test';

import { pauseAfter, spread } from '../src/pause';

test('pauses grow, up to a minute', () => {
  const pauses = [1, 2, 3, 4, 5, 6, 7, 1000].map(count => pauseAfter(count, 'away', () => 1));
  assert.deepEqual(pauses, [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
});

test('without a login they grow to ten minutes', () => {
  assert.equal(pauseAfter(1000, 'login', () => 1), 600_000);
});

test('pauses of many browsers are spread', () => {
  assert.equal(pauseAfter(1, 'away', () => 0), 1_000);
  assert.equal(spread(10_000, () => 0), 10_000);
  assert.equal(spread(10_000, () => 1), 12_000);
});
