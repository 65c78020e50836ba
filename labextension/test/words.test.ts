import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as words from '../src/words';
import { lease, marked, trans, untranslated, warning } from './fakes';

test('durations are written as on the pool’s own pages', () => {
  const found = [0, 59.4, 59.6, 60, 61, 3599, 3600, 7260].map(one => words.duration(one, trans));
  assert.deepEqual(found, ['0 s', '59 s', '1 min', '1 min', '1 min 1 s', '59 min 59 s', '1 h', '2 h 1 min']);
});

test('what is left is never more than there is, and to the second only at the very end', () => {
  const left = [0, 9.2, 30, 30.4, 34.9, 118.2, 120, 121, 179, 3_599].map(one => words.remaining(one, trans));
  const wanted = ['0 s', '10 s', '30 s', '30 s', '30 s', '1 min 55 s', '2 min', '2 min', '2 min', '59 min'];
  assert.deepEqual(left, wanted);
});

test('figures: what is not known is said to be unknown, and zero is zero', () => {
  assert.deepEqual([words.percent(null, trans), words.percent(0, trans)], ['unknown', '0 %']);
  assert.deepEqual(
    [null, 0, 1023, 1024, 20480].map(one => words.memory(one, trans)),
    ['unknown', '0 MiB', '1023 MiB', '1.0 GiB', '20.0 GiB']
  );
});

test('the meter shows use, memory and time left', () => {
  const found = words.meter(lease({ time_left_seconds: 2_520 }), 2_520, false, trans);
  assert.equal(found.text, 'GPU 37 % · 3.1 GiB of 20.0 GiB · 42 min left');
  assert.match(found.label, /^GPU utilization: 37 %\. GPU memory: 3\.1 GiB of the 20\.0 GiB of your slice\./);
  assert.match(found.label, /Time left: 42 min\. Opens the page of the GPU pool\.$/);
  assert.deepEqual([found.mood, found.utilization, found.memory], ['plain', 0.374, 0.155]);
});

test('the meter shows unknown figures as unknown', () => {
  const found = words.meter(lease({ utilization: null, memory_used_mib: null }), null, false, trans);
  assert.equal(found.text, 'GPU unknown · unknown of 20.0 GiB');
  assert.deepEqual([found.utilization, found.memory], [null, null]);
  assert.match(found.label, /No end of the session is in sight/);
});

test('the meter of a service that is away shows no old figures', () => {
  const found = words.meter(lease(), 100, true, trans);
  assert.deepEqual([found.text, found.mood, found.utilization], ['GPU: unknown', 'away', null]);
  assert.match(found.label, /does not answer/);
});

test('simulated GPUs say so', () => {
  const found = words.meter(lease({ simulated: true }), null, false, trans);
  assert.match(found.text, /^simulated · GPU/);
  assert.match(found.label, /^The GPU is simulated/);
});

test('a session without a GPU says so', () => {
  assert.equal(words.meter(lease({ memory_mib: null }), null, false, trans).text, 'no GPU');
});

test('under a warning the meter says when the session stops', () => {
  const warned = lease({ warning: warning({ deadline_seconds: 92 }) });
  const found = words.meter(warned, 92, false, trans);
  assert.deepEqual([found.text.split(' · ')[2], found.mood], ['stops in 1 min 30 s', 'warned']);
  assert.match(words.meter(lease({ warning: warning() }), null, false, trans).text, /warned$/);
  const only = lease({ warning: warning({ stops: false, deadline_seconds: 90 }) });
  assert.match(words.meter(only, 90, false, trans).text, /warned$/, 'nothing runs out where nothing is stopped');
});

test('states other than active are named', () => {
  for (const [state, text] of [
    ['queued', 'in the queue'],
    ['starting', 'starting'],
    ['stopping', 'being stopped']
  ] as const) {
    assert.ok(words.meter(lease({ state }), null, false, trans).text.includes(text));
  }
});

test('a warning says when, why, what is lost and what stays', () => {
  assert.deepEqual(words.warningMessage(warning(), 92, trans).split('\n'), [
    'This session stops in 1 min 30 s.',
    'No GPU activity for 24 min, the kernel is idle.',
    'Files stay, memory is lost.'
  ]);
});

test('an overrun whose time stands still is not said to end the session whatever is done', () => {
  const first = (rule: string) => words.warningMessage(warning({ rule }), null, trans).split('\n')[0];
  assert.equal(first('memory'), 'This session stops if it holds too much GPU memory for longer.');
  assert.equal(first('idle'), 'This session will stop.');
});

test('however long the reason is, JupyterLab cuts off neither the time nor what is lost', () => {
  for (const left of [null, 5, 36_059]) {
    const text = words.warningMessage(warning({ reason: 'x'.repeat(500) }), left, trans);
    assert.ok(text.length <= words.LONGEST_MESSAGE, String(text.length));
    assert.match(text, /…\nFiles stay/);
  }
  const ended = lease({ why: 'y'.repeat(500), saved: { documents: ['a'], failed: [] } });
  const text = words.endedMessage(ended, trans);
  assert.ok(text.length <= words.LONGEST_MESSAGE);
  assert.match(text, /1 document was saved\.$/);
});

test('why something cannot be extended is said', () => {
  assert.match(words.extensionInWords(lease(), warning({ extendable: false }), trans), /as far as its profile allows/);
  const age = warning({ extendable: false, rule: 'max_age' });
  assert.match(words.extensionInWords(lease(), age, trans), /cannot be put off/);
  assert.match(words.extensionInWords(lease(), warning(), trans), /by up to 3 min more/);
});

test('reasons become sentences', () => {
  assert.deepEqual(['', ' idle ', 'Done.', 'what?'].map(words.sentence), ['', 'Idle.', 'Done.', 'What?']);
});

test('every word of the extension’s own can be translated', () => {
  // Letters that are not marked as translated can only be what the service has written: here that has none.
  const theirs = warning({ reason: '1', lost: '2', kept: '3' });
  const warned = lease({ warning: theirs, simulated: true, why: '4', saved: { documents: ['a'], failed: ['b'] } });
  const states = ['queued', 'starting', 'active', 'stopping', 'closed'] as const;
  const leases = [lease(), warned, lease({ memory_mib: null, utilization: null }), ...states.map(state => lease({ state }))];
  const meters = leases
    .flatMap(one => [60, 4000, null].flatMap(left => [false, true].map(away => words.meter(one, left, away, marked))))
    .flatMap(one => [one.text, one.label]);
  const warnings = [true, false].flatMap(stops =>
    [true, false].flatMap(extendable => {
      const one = { ...theirs, stops, extendable };
      const messages = [61, null].map(left => words.warningMessage(one, left, marked));
      return [...messages, ...words.warningDetails(warned, one, marked)];
    })
  );
  for (const text of [...meters, ...warnings, words.endedMessage(warned, marked)]) {
    assert.doesNotMatch(untranslated(text), /\p{L}/u, text);
  }
});
