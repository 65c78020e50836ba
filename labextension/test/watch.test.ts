import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Service } from '../src/service';
import { Watch, WITHOUT_POOL } from '../src/watch';
import type { ILook, INews } from '../src/watch';
import { Hub, lease, settle, warning, World } from './fakes';

class Scene {
  hub = new Hub();
  world = new World();
  looks: ILook[] = [];
  posted: INews[] = [];
  watch: Watch;

  constructor(server = '') {
    const service = new Service('/hub-base/services/gpupool/', 'ada', this.hub.fetch);
    const channel = { post: (news: INews) => void this.posted.push(news) };
    this.watch = new Watch(service, server, this.world, channel, look => this.looks.push(look));
  }

  get last(): ILook {
    return this.looks[this.looks.length - 1];
  }

  async start(): Promise<void> {
    await this.watch.start();
    this.hub.asked();
  }

  async rounds(count: number): Promise<void> {
    for (let round = 0; round < count; round += 1) {
      await this.world.pass();
    }
  }
}

test('the lease of this very server is found among the others', async () => {
  const scene = new Scene('two');
  scene.hub.leases = [
    lease({ id: 'a' }),
    lease({ id: 'b', server: 'two' }),
    lease({ id: 'c', user: 'grace', server: 'two' })
  ];
  await scene.start();
  assert.equal(scene.last.lease?.id, 'b');
  assert.deepEqual(scene.posted[0].leases.map(one => one.id), ['a', 'b']);
});

test('an admin finds nothing of others in this page', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease({ user: 'grace' })];
  await scene.start();
  assert.equal(scene.last.lease, null);
});

test('a visible page asks every ten seconds, under a warning every five, a hidden one every thirty', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  assert.equal(scene.world.next, 12_000);
  scene.hub.leases = [lease({ warning: warning() })];
  await scene.rounds(1);
  assert.equal(scene.world.next, 6_000);
  scene.world.seen = false;
  await scene.rounds(1);
  assert.equal(scene.world.next, 36_000);
  assert.deepEqual(scene.hub.asked(), ['GET leases', 'GET leases']);
});

test('what another tab was told is not asked again', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  scene.world.time += 9_000;
  await scene.watch.hear({ leases: [lease({ utilization: 5 })], at: scene.world.time });
  assert.equal(scene.last.lease?.utilization, 5);
  assert.equal(scene.world.next, 12_000);
  assert.deepEqual(scene.hub.asked(), []);
  assert.equal(scene.posted.length, 1);
});

test('old news of another tab changes nothing', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  await scene.watch.hear({ leases: [], at: scene.world.time - 1 });
  assert.equal(scene.looks.length, 1);
});

for (const [what, answer] of [
  ['no pool', { status: 404, html: 'Not Found' }],
  ['no lease', null]
] as const) {
  test(`where there is ${what}, a page falls silent after a few looks`, async () => {
    const scene = new Scene();
    scene.hub.always = answer;
    await scene.start();
    for (const pause of WITHOUT_POOL) {
      assert.equal(scene.world.next, pause);
      await scene.rounds(1);
    }
    assert.equal(scene.world.next, null);
    assert.ok(scene.watch.givenUp);
    assert.ok(scene.looks.every(look => look.lease === null && !look.away));
    scene.hub.asked();
    scene.watch.poke(true);
    await scene.watch.hear({ leases: [lease()], at: scene.world.time + 1 });
    await settle();
    assert.deepEqual(scene.hub.asked(), []);
  });
}

test('what other tabs tell does not use up the looks of a page without a lease', async () => {
  const scene = new Scene('two');
  scene.hub.leases = [lease()];
  await scene.start();
  for (let news = 1; news < 9; news += 1) {
    await scene.watch.hear({ leases: [lease()], at: scene.world.time + news });
  }
  assert.ok(!scene.watch.givenUp);
  await scene.watch.hear({ leases: [lease({ id: 'b', server: 'two' })], at: scene.world.time + 9 });
  assert.equal(scene.last.lease?.id, 'b');
});

test('where somebody has no right, one look is all', async () => {
  const scene = new Scene();
  scene.hub.user = 'grace';
  await scene.start();
  assert.equal(scene.world.next, null);
  assert.equal(scene.looks.length, 0);
});

test('a hub that is away is asked with growing pauses, and all is well when it is back', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  scene.hub.always = { status: 503, html: '' };
  const pauses: (number | null)[] = [];
  for (let round = 0; round < 8; round += 1) {
    await scene.rounds(1);
    pauses.push(scene.world.next);
  }
  assert.deepEqual(pauses, [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
  assert.deepEqual([scene.last.away, scene.last.lease?.id], [true, 'l1']);
  scene.hub.always = null;
  await scene.rounds(1);
  assert.deepEqual([scene.last.away, scene.world.next], [false, 12_000]);
});

test('a proxy that has forgotten the service for a while does not end the watch', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  scene.hub.always = { status: 404, html: '404 page not found' };
  await scene.rounds(6);
  scene.hub.always = null;
  await scene.rounds(1);
  assert.equal(scene.last.away, false);
});

test('one failure is not shown yet', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  scene.hub.first = ['broken'];
  await scene.rounds(2);
  assert.ok(scene.looks.every(look => !look.away));
});

test('a page that comes to the fore looks at once, but not twice in a moment', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  scene.watch.poke();
  await settle();
  assert.deepEqual(scene.hub.asked(), []);
  scene.world.time += 5_000;
  scene.watch.poke();
  await settle();
  assert.deepEqual(scene.hub.asked(), ['GET leases']);
  assert.equal(scene.world.timers.length, 1);
});

test('the end of a session is followed until it is certain', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  scene.hub.leases = [];
  scene.hub.closed = { l1: lease({ state: 'stopping' }) };
  await scene.rounds(1);
  assert.deepEqual([scene.last.lease?.state, scene.last.ended], ['stopping', null]);
  assert.equal(scene.world.next, 2_400);
  scene.hub.closed = { l1: lease({ state: 'closed', why: 'It was idle.', again: '/hub/spawn/ada/?profile=half' }) };
  await scene.rounds(1);
  assert.deepEqual([scene.last.lease, scene.last.ended?.why], [null, 'It was idle.']);
  assert.equal(scene.world.next, 36_000);
  scene.hub.leases = [lease({ id: 'l2' })];
  await scene.rounds(1);
  assert.deepEqual([scene.last.lease?.id, scene.last.ended], ['l2', null]);
});

test('a session that the pool has forgotten is no reason to ask on', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease()];
  await scene.start();
  scene.hub.leases = [];
  await scene.rounds(1);
  assert.deepEqual([scene.last.lease, scene.last.ended], [null, null]);
  await scene.rounds(WITHOUT_POOL.length + 1);
  assert.equal(scene.world.next, null);
});

test('the answer to an action is shown at once', async () => {
  const scene = new Scene();
  scene.hub.leases = [lease({ warning: warning() })];
  await scene.start();
  scene.watch.put(lease({ extendable_seconds: 0 }));
  assert.deepEqual([scene.last.lease?.warning, scene.last.lease?.extendable_seconds], [null, 0]);
  scene.watch.put(lease({ id: 'other' }));
  assert.equal(scene.last.lease?.id, 'l1');
  assert.equal(scene.world.timers.length, 1);
});
