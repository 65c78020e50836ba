import assert from 'node:assert/strict';
import { test } from 'node:test';

import { saveAll } from '../src/saving';
import type { IDocument } from '../src/saving';

function document(path: string, save: () => Promise<void>, given: object = {}): IDocument {
  return { path, isDisposed: false, model: { dirty: true, readOnly: false, ...given }, save };
}

const well = async () => undefined;

test('each document with changes is saved once, and each answer told', async () => {
  let count = 0;
  const twice = document('twice.ipynb', async () => void (count += 1));
  const found = await saveAll([
    twice,
    twice,
    document('clean.ipynb', well, { dirty: false }),
    document('foreign.ipynb', well, { readOnly: true }),
    { ...document('gone.ipynb', well), isDisposed: true },
    document('full.ipynb', () => Promise.reject(new Error('the disk is full')))
  ]);
  assert.deepEqual(found, { documents: ['twice.ipynb'], failed: ['full.ipynb'] });
  assert.equal(count, 1);
});

test('a save that waits for an answer holds up none of the others', async () => {
  const asks = document('asks.ipynb', () => new Promise(() => undefined));
  assert.deepEqual(await saveAll([asks, document('b.ipynb', well)], 20), {
    documents: ['b.ipynb'],
    failed: ['asks.ipynb']
  });
});
