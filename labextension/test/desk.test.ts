import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Desk } from '../src/desk';
import { Service } from '../src/service';
import type { ILease, IWarning } from '../src/shapes';
import { FakePage, Hub, lease, marked, settle, trans, untranslated, warning, World } from './fakes';

class Scene {
  hub = new Hub();
  world = new World();
  page = new FakePage(this.world);
  answered: ILease[] = [];
  desk: Desk;

  constructor(words = trans) {
    this.desk = new Desk(new Service('/hub-base/services/gpupool/', 'ada', this.hub.fetch), this.page, words, one => {
      this.answered.push(one);
      this.look(one);
    });
  }

  look(one: ILease | null, ended: ILease | null = null): void {
    this.desk.look({ lease: one, ended, away: false, at: this.world.now() });
  }

  /** A warning that counts down. */
  async warn(seconds: number, given: Partial<IWarning> = {}, others: Partial<ILease> = {}): Promise<ILease> {
    const told = warning({ delivered_at: 'now', deadline_seconds: seconds, ...given });
    const warned = lease({ warning: told, ...others });
    this.hub.leases = [warned];
    this.look(warned);
    await settle();
    return warned;
  }

  async seconds(count: number): Promise<void> {
    for (let second = 0; second < count; second += 1) {
      this.world.time += 1000;
      this.desk.tick();
    }
    await settle();
  }

  get first(): string {
    return this.page.lasting[0].message.split('\n')[0];
  }
}

test('a warning is shown, told to the service, and only then counts down', async () => {
  const scene = new Scene();
  const warned = lease({ warning: warning() });
  scene.hub.leases = [warned];
  scene.look(warned);
  assert.equal(scene.first, 'This session will stop.');
  await settle();
  const seen = scene.hub.sent.find(one => one.path.endsWith('/seen'));
  assert.deepEqual(seen?.body, { warning: 'w1', by: 'jupyterlab' });
  assert.equal(scene.answered.length, 1);
  assert.equal(scene.first, 'This session stops in 5 min.');
  await scene.seconds(61);
  assert.equal(scene.first, 'This session stops in 3 min.');
  assert.equal(scene.page.updates, 3);
  await scene.seconds(130);
  assert.equal(scene.first, 'This session stops in 1 min 45 s.');
  assert.equal(scene.page.lasting.length, 1);
});

test('a warning that nobody can see is not told as seen', async () => {
  const scene = new Scene();
  scene.world.seen = false;
  const warned = lease({ warning: warning() });
  scene.hub.leases = [warned];
  scene.look(warned);
  await settle();
  assert.deepEqual([scene.page.lasting, scene.hub.asked()], [[], []]);
  scene.world.seen = true;
  scene.look(warned);
  await settle();
  assert.equal(scene.page.lasting.length, 1);
  assert.ok(scene.hub.asked().includes('POST leases/l1/seen'));
});

test('a warning that is not shown, because notifications are silenced, is not told as seen', async () => {
  const scene = new Scene();
  scene.page.silent = true;
  const warned = lease({ warning: warning() });
  scene.hub.leases = [warned];
  scene.look(warned);
  await scene.seconds(3);
  scene.look(warned);
  await settle();
  assert.deepEqual(scene.hub.asked(), []);
  scene.page.silent = false;
  await scene.seconds(1);
  assert.deepEqual(scene.hub.asked(), ['GET session', 'POST leases/l1/seen']);
});

test('a service that does not take it is asked once with each look, not each second', async () => {
  const scene = new Scene();
  const warned = lease({ warning: warning() });
  scene.hub.leases = [warned];
  scene.hub.always = 'broken';
  scene.look(warned);
  await scene.seconds(3);
  assert.equal(scene.hub.asked().length, 1);
  scene.look(warned);
  await scene.seconds(3);
  assert.equal(scene.hub.asked().length, 1);
});

test('a warning that was delivered is not told again', async () => {
  const scene = new Scene();
  await scene.warn(300);
  assert.deepEqual(scene.hub.asked(), []);
});

test('what could not be told is told with the next look', async () => {
  const scene = new Scene();
  const warned = lease({ warning: warning() });
  scene.hub.leases = [warned];
  scene.hub.always = 'broken';
  scene.look(warned);
  await settle();
  scene.hub.always = null;
  scene.hub.asked();
  scene.look(warned);
  await settle();
  assert.ok(scene.hub.asked().includes('POST leases/l1/seen'));
  assert.equal(scene.page.lasting.length, 1);
});

test('small differences between two answers do not make the countdown jump', async () => {
  const scene = new Scene();
  await scene.warn(100);
  await scene.seconds(5);
  scene.look(lease({ warning: warning({ delivered_at: 'now', deadline_seconds: 96 }) }));
  assert.equal(scene.first, 'This session stops in 1 min 35 s.');
  scene.look(lease({ warning: warning({ delivered_at: 'now', deadline_seconds: 80 }) }));
  assert.equal(scene.first, 'This session stops in 1 min 20 s.');
});

test('a warning that is over is taken away, and the next one is a new one', async () => {
  const scene = new Scene();
  await scene.warn(300);
  scene.look(lease());
  assert.deepEqual(scene.page.lasting, []);
  assert.equal(scene.desk.counting, false);
  await scene.warn(200, { id: 'w2' });
  assert.equal(scene.page.lasting.length, 1);
});

test('a notification that was put away comes back once, a minute before the end', async () => {
  const scene = new Scene();
  await scene.warn(90);
  scene.page.put.add('n1');
  await scene.seconds(20);
  assert.ok(scene.page.put.has('n1'));
  await scene.seconds(11);
  assert.ok(!scene.page.put.has('n1'));
  scene.page.put.add('n1');
  await scene.seconds(40);
  assert.ok(scene.page.put.has('n1'));
});

test('a screen reader hears of the end a few times only', async () => {
  const scene = new Scene();
  await scene.warn(90);
  await scene.seconds(90);
  assert.deepEqual(
    scene.page.said.map(text => text.replace('This session will be stopped in ', '')),
    ['1 min.', '30 s.', '10 s.']
  );
});

test('documents are saved near the end, once more just before it, and that is told', async () => {
  const scene = new Scene();
  await scene.warn(90);
  await scene.seconds(29);
  assert.equal(scene.page.saves, 0);
  await scene.seconds(2);
  assert.equal(scene.page.saves, 1);
  const told = scene.hub.sent.find(one => one.path === 'leases/l1/saved');
  assert.deepEqual(told?.body, { documents: ['a.ipynb'], failed: [] });
  await scene.seconds(60);
  assert.equal(scene.page.saves, 2);
});

test('under a short warning documents are saved at once', async () => {
  const scene = new Scene();
  await scene.warn(30);
  assert.equal(scene.page.saves, 1);
});

test('where nothing has changes, nothing is told', async () => {
  const scene = new Scene();
  scene.page.unsaved = { documents: [], failed: [] };
  await scene.warn(30);
  assert.deepEqual([scene.page.saves, scene.hub.asked()], [1, []]);
});

test('a hidden page saves in time, but shows nothing', async () => {
  const scene = new Scene();
  scene.world.seen = false;
  await scene.warn(100);
  scene.look(scene.hub.leases[0]);
  assert.deepEqual([scene.page.saves, scene.page.lasting], [1, []]);
});

test('documents are saved once where the end has begun before the page hears of it', async () => {
  for (const seen of [true, false]) {
    const scene = new Scene();
    scene.world.seen = seen;
    scene.hub.leases = [lease({ state: 'stopping' })];
    scene.look(lease());
    for (let look = 0; look < 3; look += 1) {
      scene.look(scene.hub.leases[0]);
      await settle();
    }
    assert.equal(scene.page.saves, 1);
    assert.deepEqual(scene.hub.asked(), ['GET session', 'POST leases/l1/saved']);
    scene.hub.leases = [lease({ id: 'l2', state: 'stopping' })];
    scene.look(scene.hub.leases[0]);
    await settle();
    assert.equal(scene.page.saves, 2, 'the next session has its own end');
  }
});

test('what was typed after the last save of a warning is saved when the end begins', async () => {
  const scene = new Scene();
  await scene.warn(30);
  await scene.seconds(21);
  assert.equal(scene.page.saves, 2);
  scene.look(lease({ state: 'stopping' }));
  await settle();
  assert.equal(scene.page.saves, 3);
});

test('where nothing will be stopped, nothing is saved and nothing threatens', async () => {
  const scene = new Scene();
  await scene.warn(30, { stops: false });
  await scene.seconds(30);
  assert.equal(scene.page.saves, 0);
  assert.deepEqual(scene.page.said, []);
  assert.match(scene.first, /Nothing is stopped/);
});

test('Extend is offered while it is possible, and what comes of it is shown', async () => {
  const scene = new Scene();
  await scene.warn(30);
  scene.page.press('Extend');
  await settle();
  assert.equal(scene.answered[0].warning, null);
  assert.deepEqual([...scene.page.notes.values()].map(note => note.message), ['The session was extended.']);
});

test('at the cap there is no Extend, and the reason is in the details', async () => {
  const scene = new Scene();
  await scene.warn(30, { extendable: false }, { extend_seconds: 0 });
  assert.throws(() => scene.page.press('Extend'));
  scene.page.press('Details');
  assert.ok(scene.page.told[0].includes('It was extended as far as its profile allows.'));
  assert.ok(scene.page.told[0].includes('Lost: Variables.'));
});

test('what the service refuses is shown with its sentence', async () => {
  const scene = new Scene();
  await scene.warn(30);
  scene.hub.first = [{ status: 409, body: { reason: 'cap', message: 'It was extended by 3 min already' } }];
  scene.page.press('Extend');
  await settle();
  assert.ok(scene.page.lasting.some(note => note.message === 'It was extended by 3 min already.'));
});

test('Release asks once, saves, tells, and releases', async () => {
  const scene = new Scene();
  await scene.warn(300);
  scene.page.press('Release');
  await settle();
  assert.deepEqual(scene.page.asked, ['Release this session?']);
  const done = scene.hub.asked().filter(one => one !== 'GET session');
  assert.deepEqual(done, ['POST leases/l1/saved', 'DELETE leases/l1']);
  assert.equal(scene.answered[0].state, 'stopping');
  assert.equal(scene.page.saves, 1);
});

test('Release does nothing when the person thinks better of it', async () => {
  const scene = new Scene();
  await scene.warn(300);
  scene.page.yes = false;
  scene.page.press('Release');
  await settle();
  assert.deepEqual([scene.page.saves, scene.hub.asked()], [0, []]);
});

test('Release keeps the session where a document cannot be saved, until told otherwise', async () => {
  const scene = new Scene();
  scene.page.unsaved = { documents: [], failed: ['b.ipynb'] };
  scene.look(lease());
  scene.hub.leases = [lease()];
  await scene.desk.release();
  assert.ok(!scene.hub.asked().includes('DELETE leases/l1'));
  assert.match(scene.page.lasting[0].message, /b\.ipynb/);
  scene.page.press('Release anyway');
  await settle();
  assert.ok(scene.hub.asked().includes('DELETE leases/l1'));
});

test('after the end a note says why and what was saved, and queues again', async () => {
  const scene = new Scene();
  await scene.warn(30);
  const ended = lease({
    state: 'closed',
    why: 'no GPU activity for 24 min',
    saved: { documents: ['a', 'b'], failed: ['c'] },
    again: '/hub/spawn/ada/?profile=half'
  });
  scene.look(null, ended);
  scene.look(null, ended);
  assert.deepEqual(scene.page.lasting.map(note => note.message.split('\n')), [
    [
      'This session has ended.',
      'No GPU activity for 24 min.',
      '2 documents were saved. 1 could not be.'
    ]
  ]);
  scene.page.press('Queue again');
  assert.deepEqual([scene.page.went[0].profile, scene.page.gone], ['half', true]);
  scene.look(lease({ id: 'l2' }));
  assert.deepEqual([scene.page.lasting, scene.page.gone], [[], false]);
});

test('every word of the buttons and of what they do can be translated', async () => {
  const scene = new Scene(marked);
  const { page } = scene;
  page.unsaved = { documents: [], failed: ['1'] };
  await scene.warn(70, { reason: '2', lost: '3', kept: '4' });
  page.press('«Extend»');
  page.press('«Details»');
  await settle();
  await scene.warn(70, { id: 'w2', reason: '2' });
  await scene.seconds(61);
  page.press('«Release»');
  await settle();
  page.press('«Release anyway»');
  await settle();
  scene.hub.always = 'broken';
  await scene.desk.extend();
  scene.look(null, lease({ state: 'closed', why: '5', again: '/hub/spawn' }));
  const actions = page.shown.flatMap(note => note.actions).flatMap(one => [one.label, one.caption]);
  const texts = [...page.shown.map(note => note.message), ...actions, ...page.said, ...page.asked, ...page.told.flat()];
  assert.ok(texts.length > 20);
  for (const text of texts) {
    assert.doesNotMatch(untranslated(text), /\p{L}/u, text);
  }
});
