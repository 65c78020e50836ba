import assert from 'node:assert/strict';
import { test } from 'node:test';

import { isPath, queueAgain } from '../src/again';
import type { IForm } from '../src/again';

const AGAIN = '/hub/spawn/ada/two?opt-profile=half';
const FORM: IForm = { action: '/hub/spawn/ada/two?_xsrf=x', fields: [['profile', 'half']] };

interface ISent {
  url: string;
  init: RequestInit;
}

function hub(page: Partial<Response>, posted: Partial<Response>): { sent: ISent[]; fetch: typeof fetch } {
  const sent: ISent[] = [];
  const answer = async (url: string, init: RequestInit) => {
    sent.push({ url, init });
    return { ok: true, text: async () => 'page', ...(init.method === 'POST' ? posted : page) } as Response;
  };
  return { sent, fetch: answer as typeof fetch };
}

test('the form of the same server is sent, and leads to the place in the queue', async () => {
  const { sent, fetch } = hub({}, { type: 'opaqueredirect' });
  assert.equal(await queueAgain(AGAIN, 'half', fetch, () => FORM), '/hub/spawn/ada/two');
  assert.deepEqual(sent.map(one => one.url), [AGAIN, FORM.action]);
  assert.equal(String(sent[1].init.body), 'profile=half');
  assert.equal(sent[1].init.redirect, 'manual');
});

test('where the form cannot be sent, the person is led to it', async () => {
  const refused = hub({}, { type: 'basic', status: 403 });
  assert.equal(await queueAgain(AGAIN, 'half', refused.fetch, () => FORM), AGAIN);
  const login = hub({}, {});
  assert.equal(await queueAgain(AGAIN, 'half', login.fetch, () => null), AGAIN);
  const away = hub({ ok: false }, {});
  assert.equal(await queueAgain(AGAIN, 'half', away.fetch, () => FORM), AGAIN);
  const broken = async () => Promise.reject(new TypeError('Failed to fetch'));
  assert.equal(await queueAgain(AGAIN, 'half', broken, () => FORM), AGAIN);
});

test('only paths of this host are gone to', () => {
  assert.deepEqual(['/hub/spawn', '//evil', '/\\evil', 'https://evil', 'javascript:x'].map(isPath), [
    true,
    false,
    false,
    false,
    false
  ]);
});
