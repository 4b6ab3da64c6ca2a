// The published JavaScript SDK against a running server. Started by tests/tests/clients.rs.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';
import { DEADLINE, api, collect, event, inSeconds, jwt, relay, server, unique, within } from './lib.js';

const FAST = { websocket: WebSocket, minReconnectDelay: 20, maxReconnectDelay: 200, timeout: 8000 };

/** A client that is gone when its test ends, however that ends. */
function newClient(t, options = {}, url = server.ws) {
  const client = new Centrifuge(url, { ...FAST, ...options });
  t.after(() => client.disconnect());
  return client;
}

async function connected(t, options, url) {
  const client = newClient(t, options, url);
  const up = event(client, 'connected');
  client.connect();
  const ctx = await up;
  return { client, ctx };
}

async function subscribed(client, channel, options = {}) {
  const sub = client.newSubscription(channel, { minResubscribeDelay: 20, maxResubscribeDelay: 200, ...options });
  const done = event(sub, 'subscribed');
  sub.subscribe();
  return { sub, ctx: await done };
}

/** Answers of one connection come in order: after this, what was sent before has been handled. */
const fence = (client) => assert.rejects(client.rpc('no-such-method', {}), { code: 108 });

function defer() {
  const d = {};
  d.promise = new Promise((resolve, reject) => Object.assign(d, { resolve, reject }));
  return d;
}

test('anonymous: connects with a client id over WebSocket', async (t) => {
  const { ctx } = await connected(t);
  assert.match(ctx.client, /^[0-9a-f-]{36}$/);
  assert.equal(ctx.transport, 'websocket');
});

test('token: the user and the info are those of its claims', async (t) => {
  const { client } = await connected(t, { token: jwt({ sub: 'ann', exp: inSeconds(600), info: { name: 'Ann' } }) });
  const channel = unique('chat:');
  const { sub } = await subscribed(client, channel);
  const { clients } = await sub.presence();
  const [info] = Object.values(clients);
  assert.equal(info.user, 'ann');
  assert.deepEqual(info.connInfo, { name: 'Ann' });
});

test('token: a bad signature ends the connection for good with 3500', async (t) => {
  const client = newClient(t, { token: jwt({ sub: 'eve' }, { secret: 'another secret, just as long as it..' }) });
  const down = event(client, 'disconnected');
  client.connect();
  assert.equal((await down).code, 3500);
});

test('token: an expired one is answered 109, and the client fetches another', async (t) => {
  let fetched = 0;
  const client = newClient(t, {
    token: jwt({ sub: 'ann', exp: inSeconds(-60) }),
    getToken: async () => { fetched += 1; return jwt({ sub: 'ann', exp: inSeconds(600) }); },
  });
  const up = event(client, 'connected');
  client.connect();
  await up;
  assert.equal(fetched, 1);
});

test('token: a short one is refreshed, and the connection stays the same', async (t) => {
  let fetched = 0;
  const refreshed = defer();
  const client = newClient(t, {
    token: jwt({ sub: 'ann', exp: inSeconds(2) }),
    getToken: async () => {
      fetched += 1;
      if (fetched === 2) refreshed.resolve();
      return jwt({ sub: 'ann', exp: inSeconds(2) });
    },
  });
  const ups = collect(client, 'connected');
  const downs = collect(client, 'connecting');
  client.connect();
  await ups.count(1);
  await within(refreshed.promise, 'two refreshes');
  await fence(client);
  assert.equal(ups.length, 1);
  assert.deepEqual(downs.map((d) => d.code), [0]);
});

test('publish: by a client and by the API, in one stream of offsets, with the publisher\'s info', async (t) => {
  const channel = unique('chat:');
  const { client, ctx } = await connected(t, { token: jwt({ sub: 'ann' }) });
  const { sub, ctx: at } = await subscribed(client, channel);
  assert.equal(at.recoverable, true);
  assert.equal(at.positioned, true);
  assert.equal(at.streamPosition.offset, 0);
  const seen = collect(sub, 'publication');
  await sub.publish({ n: 1, text: 'zwölf 💧 \u2028\n' });
  const result = await api('publish', { channel, data: { n: 2 } });
  await seen.count(2);
  assert.deepEqual(seen.map((p) => p.offset), [1, 2]);
  assert.deepEqual(seen[0].data, { n: 1, text: 'zwölf 💧 \u2028\n' });
  assert.equal(seen[0].info.user, 'ann');
  assert.equal(seen[0].info.client, ctx.client);
  assert.equal(seen[1].info, undefined);
  assert.equal(result.offset, 2);
  assert.equal(result.epoch, at.streamPosition.epoch);
});

test('publish: many commands in one frame are handled in order', async (t) => {
  const channel = unique('chat:');
  const { client } = await connected(t);
  const { sub } = await subscribed(client, channel);
  const seen = collect(sub, 'publication');
  client.startBatching();
  const sent = Array.from({ length: 40 }, (_, n) => sub.publish({ n }));
  client.stopBatching();
  await within(Promise.all(sent), 'the replies');
  await seen.count(40);
  assert.deepEqual(seen.map((p) => p.data.n), [...Array(40).keys()]);
  assert.deepEqual(seen.map((p) => p.offset), [...Array(40).keys()].map((n) => n + 1));
});

test('subscribe: sixty channels batched with connect', async (t) => {
  const client = newClient(t);
  const channels = Array.from({ length: 60 }, () => unique('chat:'));
  const subs = channels.map((channel) => client.newSubscription(channel));
  const ready = Promise.all(subs.map((sub) => event(sub, 'subscribed')));
  subs.forEach((sub) => sub.subscribe());
  client.connect();
  await ready;
  const got = Promise.all(subs.map((sub) => event(sub, 'publication')));
  await api('broadcast', { channels, data: 'all' });
  assert.ok((await got).every((p) => p.data === 'all' && p.offset === 1));
});

test('unsubscribe and subscribe again, fifty times: one copy of each message, none afterwards', async (t) => {
  const channel = unique('chat:');
  const { client } = await connected(t);
  const { client: witness } = await connected(t);
  const { sub: control } = await subscribed(witness, channel);
  const { sub } = await subscribed(client, channel);
  for (let i = 0; i < 50; i += 1) {
    sub.unsubscribe();
    const again = event(sub, 'subscribed');
    sub.subscribe();
    // Every other time the unsubscribe overtakes the reply to the subscribe.
    if (i % 2) sub.unsubscribe(); else await again;
    if (i % 2) { again.catch(() => {}); const last = event(sub, 'subscribed'); sub.subscribe(); await last; }
  }
  const seen = collect(sub, 'publication');
  const controlled = collect(control, 'publication');
  await api('publish', { channel, data: 'once' });
  await seen.count(1);
  sub.unsubscribe();
  await fence(client);
  await api('publish', { channel, data: 'unheard' });
  await controlled.count(2);
  await fence(client);
  assert.deepEqual(seen.map((p) => p.data), ['once']);
});

test('presence: who is there, how many, and their coming and going', async (t) => {
  const channel = unique('chat:');
  const { client: a, ctx: first } = await connected(t, { token: jwt({ sub: 'ann' }) });
  const { sub } = await subscribed(a, channel, { joinLeave: true });
  const join = event(sub, 'join', (j) => j.info.user === 'bob');
  const leave = event(sub, 'leave', (l) => l.info.user === 'bob', 2 * DEADLINE);
  const { client: b, ctx: second } = await connected(t, { token: jwt({ sub: 'bob' }) });
  await subscribed(b, channel);
  assert.equal((await join).info.client, second.client);
  const { clients } = await sub.presence();
  assert.deepEqual(Object.keys(clients).sort(), [first.client, second.client].sort());
  assert.deepEqual(await sub.presenceStats(), { numClients: 2, numUsers: 2 });
  b.disconnect();
  await leave;
  assert.deepEqual(await sub.presenceStats(), { numClients: 1, numUsers: 1 });
});

test('history: by limit, from a position, and backwards', async (t) => {
  const channel = unique('chat:');
  for (let n = 1; n <= 10; n += 1) await api('publish', { channel, data: { n } });
  const { client } = await connected(t);
  const { sub } = await subscribed(client, channel);
  const numbers = (page) => page.publications.map((p) => p.data.n);
  const top = await sub.history({ limit: 0 });
  assert.equal(top.offset, 10);
  assert.deepEqual(top.publications, []);
  assert.deepEqual(numbers(await sub.history({ limit: 3 })), [1, 2, 3]);
  assert.deepEqual(numbers(await sub.history({ limit: 3, reverse: true })), [10, 9, 8]);
  const since = { offset: 4, epoch: top.epoch };
  assert.deepEqual(numbers(await sub.history({ limit: 100, since })), [5, 6, 7, 8, 9, 10]);
  assert.deepEqual(numbers(await sub.history({ limit: 2, since, reverse: true })), [3, 2]);
  await assert.rejects(sub.history({ limit: 1, since: { offset: 4, epoch: 'nope' } }), { code: 112 });
});

test('recovery: what was published while the connection was cut arrives after it, in order, once', async (t) => {
  const link = await relay();
  t.after(() => link.close());
  const channel = unique('chat:');
  const { client } = await connected(t, {}, link.url);
  const { sub } = await subscribed(client, channel);
  const seen = collect(sub, 'publication');
  await api('publish', { channel, data: 1 });
  await seen.count(1);
  for (let round = 0; round < 3; round += 1) {
    const gone = event(client, 'connecting');
    const back = event(sub, 'subscribed');
    link.cut();
    await gone;
    for (let n = 0; n < 5; n += 1) await api('publish', { channel, data: 2 + round * 6 + n });
    link.heal();
    const ctx = await back;
    assert.equal(ctx.wasRecovering, true);
    assert.equal(ctx.recovered, true);
    await api('publish', { channel, data: 7 + round * 6 });
    await seen.count(7 + round * 6);
  }
  assert.deepEqual(seen.map((p) => p.data), [...Array(19).keys()].map((n) => n + 1));
  assert.deepEqual(seen.map((p) => p.offset), [...Array(19).keys()].map((n) => n + 1));
});

test('recovery: ten megabytes arrive all, once and in order, and the client is never cut for them', async (t) => {
  const link = await relay();
  t.after(() => link.close());
  const channel = unique('chat:');
  const { client } = await connected(t, {}, link.url);
  const { sub } = await subscribed(client, channel);
  const seen = collect(sub, 'publication');
  const gone = event(client, 'connecting');
  const back = event(sub, 'subscribed');
  link.cut();
  await gone;
  const data = 'x'.repeat(11_000);
  for (let n = 0; n < 950; n += 1) await api('publish', { channel, data: `${n}${data}` });
  const again = collect(client, 'connecting');
  link.heal();
  const ctx = await back;
  assert.equal(ctx.recovered, true);
  // While it is being given what it missed.
  for (let n = 950; n < 960; n += 1) await api('publish', { channel, data: `${n}${data}` });
  await seen.count(960);
  assert.deepEqual(seen.map((p) => p.offset), [...Array(960).keys()].map((n) => n + 1));
  assert.ok(seen.every((p, n) => p.data === `${n}${data}`));
  assert.equal(client.state, 'connected');
  assert.ok(again.every((c) => c.code !== 3008), JSON.stringify(again));
});

test('recovery: when history no longer reaches back, the client is told so', async (t) => {
  const link = await relay();
  t.after(() => link.close());
  const channel = unique('short:');
  const { client } = await connected(t, {}, link.url);
  const { sub } = await subscribed(client, channel);
  const seen = collect(sub, 'publication');
  const gone = event(client, 'connecting');
  const back = event(sub, 'subscribed');
  link.cut();
  await gone;
  for (let n = 1; n <= 10; n += 1) await api('publish', { channel, data: n });
  link.heal();
  const ctx = await back;
  assert.equal(ctx.wasRecovering, true);
  assert.equal(ctx.recovered, false);
  assert.equal(ctx.streamPosition.offset, 10);
  await api('publish', { channel, data: 11 });
  await seen.count(1);
  assert.deepEqual(seen.map((p) => p.offset), [11]);
});

test('errors: each refusal has its code, and the connection lives on', async (t) => {
  const { client, ctx } = await connected(t);
  const { sub } = await subscribed(client, unique('plain-'));
  await assert.rejects(client.rpc('anything', { a: 1 }), { code: 108 });
  await assert.rejects(sub.presence(), { code: 108 });
  await assert.rejects(sub.presenceStats(), { code: 108 });
  await assert.rejects(sub.history({ limit: 1 }), { code: 108 });
  await assert.rejects(client.publish(unique('chat:'), 'not subscribed there'), { code: 103 });
  const unknown = client.newSubscription(unique('no-such-namespace:'));
  const refused = event(unknown, 'unsubscribed');
  unknown.subscribe();
  assert.equal((await refused).code, 102);
  await fence(client);
  assert.equal(client.state, 'connected');
  assert.equal(ctx.client.length, 36);
});

test('private channels: refused without a token, open with one for that channel', async (t) => {
  const channel = unique('priv:');
  const { client } = await connected(t, { token: jwt({ sub: 'ann' }) });
  const closed = client.newSubscription(channel);
  const refused = event(closed, 'unsubscribed');
  closed.subscribe();
  assert.equal((await refused).code, 103);
  client.removeSubscription(closed);
  const { sub } = await subscribed(client, channel, { token: jwt({ sub: 'ann', channel }) });
  const seen = event(sub, 'publication');
  await api('publish', { channel, data: 'secret' });
  assert.equal((await seen).data, 'secret');
});

test('server-side subscriptions: by the token and by the API', async (t) => {
  const user = unique('user-');
  const [byToken, byApi] = [unique('chat:'), unique('chat:')];
  const client = newClient(t, { token: jwt({ sub: user, channels: [byToken] }) });
  const subs = collect(client, 'subscribed');
  const pubs = collect(client, 'publication');
  client.connect();
  await subs.count(1);
  await api('subscribe', { user, channel: byApi });
  await subs.count(2);
  assert.deepEqual(subs.map((s) => s.channel), [byToken, byApi]);
  await api('publish', { channel: byToken, data: 't' });
  await api('publish', { channel: byApi, data: 'a' });
  await pubs.count(2);
  assert.deepEqual(pubs.map((p) => [p.channel, p.data]).sort(), [[byToken, 't'], [byApi, 'a']].sort());
  const gone = event(client, 'unsubscribed');
  await api('unsubscribe', { user, channel: byApi });
  assert.equal((await gone).channel, byApi);
});

test('API disconnect: for good by default, with a reconnect if the code says so', async (t) => {
  const user = unique('user-');
  const { client } = await connected(t, { token: jwt({ sub: user }) });
  const gone = event(client, 'connecting');
  const back = event(client, 'connected');
  await api('disconnect', { user, disconnect: { code: 4000, reason: 'come back' } });
  assert.deepEqual(await gone, { code: 4000, reason: 'come back' });
  await back;
  const ended = event(client, 'disconnected');
  await api('disconnect', { user });
  assert.equal((await ended).code, 3503);
});

test('a message over the limit: closed with 1009, and the SDK stays away', async (t) => {
  const { client } = await connected(t);
  const { sub } = await subscribed(client, unique('chat:'));
  const ended = event(client, 'disconnected');
  sub.publish('x'.repeat(100_000)).catch(() => {});
  assert.match((await ended).reason, /size limit/);
});

test('send: nobody takes it here, so the connection ends with 3508', async (t) => {
  const { client } = await connected(t);
  const ended = event(client, 'disconnected');
  await client.send({ a: 1 });
  assert.equal((await ended).code, 3508);
});
