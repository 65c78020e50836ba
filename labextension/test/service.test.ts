import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Service, ServiceError } from '../src/service';
import { Hub, lease, settle } from './fakes';

const PREFIX = '/hub-base/services/gpupool/';

function made(): { hub: Hub; service: Service } {
  const hub = new Hub();
  hub.leases = [lease()];
  return { hub, service: new Service(PREFIX, 'ada', hub.fetch) };
}

async function trouble(asked: Promise<unknown>): Promise<ServiceError> {
  try {
    await asked;
  } catch (problem) {
    if (problem instanceof ServiceError) {
      return problem;
    }
    throw problem;
  }
  throw new Error('it succeeded');
}

test('the first question logs in, all others carry its token', async () => {
  const { hub, service } = made();
  assert.deepEqual((await service.leases()).map(one => one.id), ['l1']);
  await service.extend('l1');
  assert.deepEqual(hub.sent.map(one => `${one.method} ${one.path}`), [
    'GET session',
    'GET leases',
    'POST leases/l1/extend'
  ]);
  assert.equal(hub.sent[0].init.mode, 'no-cors');
  assert.equal(hub.sent[0].init.credentials, 'same-origin');
  assert.deepEqual(hub.sent.slice(1).map(one => one.token), ['token-1', 'token-1']);
});

test('many questions at once log in once', async () => {
  const { hub, service } = made();
  await Promise.all([service.leases(), service.leases(), service.lease('l1')]);
  assert.equal(hub.asked().filter(one => one === 'GET session').length, 1);
});

test('a token that no longer counts is renewed once', async () => {
  const { hub, service } = made();
  await service.leases();
  hub.token = 'token-2';
  await service.leases();
  assert.deepEqual(hub.asked(), ['GET session', 'GET leases', 'GET leases', 'GET session', 'GET leases']);
});

test('a service that takes no token is not asked for ever', async () => {
  const { hub, service } = made();
  const no = { status: 403, body: { reason: 'not-authenticated', message: 'no' } };
  hub.first = [{ body: { user: 'ada', xsrf: 'x' } }, no];
  assert.equal((await trouble(service.leases())).trouble, 'away');
  assert.equal(hub.sent.length, 2);
});

for (const [what, answer, expected] of [
  ['a hub without a pool', { status: 404, html: 'Not Found' }, 'absent'],
  ['the login page', { html: '<form>' }, 'login'],
  ['somebody without the right', { status: 403, body: { reason: 'forbidden' } }, 'forbidden'],
  ['that of a login that crossed another one', { status: 403, html: 'Forbidden' }, 'login'],
  ['somebody else', { body: { user: 'grace', xsrf: 'x' } }, 'forbidden'],
  ['a proxy without the service', { status: 503, html: 'Service Unavailable' }, 'away'],
  ['no answer', 'broken', 'away']
] as const) {
  test(`the first answer may be ${what}: ${expected}`, async () => {
    const { hub, service } = made();
    hub.first = [answer];
    assert.equal((await trouble(service.leases())).trouble, expected);
    assert.equal(hub.sent.length, 1);
  });
}

test('an answer that stops in its midst is given up', async t => {
  const late: (() => void)[] = [];
  t.mock.method(globalThis, 'setTimeout', (call: () => void) => late.push(call));
  t.mock.method(globalThis, 'clearTimeout', (timer: number) => (late[timer - 1] = () => undefined));
  const stuck = new Service('/x/', 'ada', async (_url, init) => {
    const body = new ReadableStream({
      start: stream => init.signal!.addEventListener('abort', () => stream.error(new Error('aborted')))
    });
    return new Response(body, { headers: { 'content-type': 'application/json' } });
  });
  const asked = trouble(stuck.leases());
  await settle();
  late.forEach(call => call());
  assert.equal((await asked).trouble, 'away');
});

test('what the service refuses comes with its sentence', async () => {
  const { hub, service } = made();
  await service.leases();
  hub.first = [{ status: 409, body: { status: 409, reason: 'cap', message: 'It was extended by 3 min.' } }];
  const problem = await trouble(service.extend('l1'));
  assert.deepEqual([problem.trouble, problem.status, problem.message], ['refused', 409, 'It was extended by 3 min.']);
});

test('a page of a proxy in place of an answer counts as no answer', async () => {
  const { hub, service } = made();
  await service.leases();
  hub.first = [{ status: 404, html: '404 page not found' }];
  assert.equal((await trouble(service.leases())).trouble, 'away');
});

test('long lists of documents go in parts that the service takes', async () => {
  const { hub, service } = made();
  const documents = Array.from({ length: 150 }, (_, index) => `${index}.ipynb`);
  await service.saved('l1', { documents, failed: ['x'.repeat(2000)] });
  const bodies = hub.sent.filter(one => one.path.endsWith('/saved')).map(one => one.body as Record<string, string[]>);
  assert.deepEqual(bodies.map(one => [one.documents.length, one.failed.length]), [
    [100, 1],
    [50, 0]
  ]);
  assert.equal(bodies[0].failed[0].length, 1000);
});

test('an id of any kind stays one part of the address', async () => {
  const { hub, service } = made();
  await trouble(service.lease('../x'));
  assert.equal(hub.sent[1].path, 'leases/..%2Fx');
});
