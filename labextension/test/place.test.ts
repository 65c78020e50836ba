import assert from 'node:assert/strict';
import { test } from 'node:test';

import { placeOf } from '../src/place';

const HUB = { hubPrefix: '/base/hub/', hubUser: 'grace', hubServerUser: 'ada', hubServerName: 'two', hubHost: '' };

function place(given: Record<string, string>, hostname = 'hub.example') {
  return placeOf(name => given[name] ?? '', hostname);
}

test('in a session the service is beside the hub, and the owner counts, not the one who looks', () => {
  assert.deepEqual(place(HUB), { user: 'ada', server: 'two', prefix: '/base/services/gpupool/' });
  assert.equal(place({ ...HUB, hubServerUser: '' })?.user, 'grace');
});

test('outside a hub there is nothing to ask', () => {
  assert.equal(place({}), null);
  assert.equal(place({ ...HUB, hubPrefix: '' }), null);
  assert.equal(place({ ...HUB, hubUser: '', hubServerUser: '' }), null);
});

test('on a domain of the user there is nothing to ask, under any other name of the hub there is', () => {
  const hubHost = 'https://hub.example:8443';
  assert.equal(place({ ...HUB, hubHost }, 'ada.hub.example'), null);
  for (const hostname of ['hub.example', '192.0.2.7', 'github.example']) {
    assert.equal(place({ ...HUB, hubHost }, hostname)?.user, 'ada', hostname);
  }
});
