// Published Socket.IO clients against two instances of an unchanged app behind the proxy (conf/app.toml).
// Started by tests/tests/clients.rs.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { io } from 'socket.io-client';

const PROXY = process.env.WEIR_PROXY;
const COOKIE = process.env.WEIR_STICKY_COOKIE;
const DEADLINE = 15_000;

/** A client of its own session cookie, as a browser would have; connected and greeted. */
async function connect(t, sid, options = {}) {
  const socket = io(PROXY, {
    forceNew: true, reconnectionDelay: 20, reconnectionDelayMax: 200, timeout: DEADLINE,
    extraHeaders: { cookie: `${COOKIE}=${sid}` }, ...options,
  });
  t.after(() => socket.close());
  return { socket, hello: await once(socket, 'hello') };
}

function once(emitter, name) {
  return new Promise((resolve, reject) => {
    const at = new Error(`no '${name}' within ${DEADLINE} ms`);
    const failed = (e) => { at.message += `: last connect error: ${e.message}`; };
    const timer = setTimeout(() => reject(at), DEADLINE);
    emitter.on('connect_error', failed);
    emitter.once(name, (value) => { clearTimeout(timer); emitter.off('connect_error', failed); resolve(value); });
  });
}

const echo = (socket, data) => socket.timeout(DEADLINE).emitWithAck('echo', data);

async function upgraded(socket) {
  const { engine } = socket.io;
  if (engine.transport.name !== 'websocket') await once(engine, 'upgrade');
  assert.equal(engine.transport.name, 'websocket');
}

test('polling first, then the upgrade to WebSocket: the same server all along', async (t) => {
  const { socket, hello } = await connect(t, 'first');
  assert.equal(hello.transport, 'polling');
  assert.match(hello.forwardedFor, /127\.0\.0\.1$/);
  await upgraded(socket);
  for (let n = 0; n < 20; n += 1) assert.deepEqual(await echo(socket, n), { server: hello.server, data: n });
});

test('polling only: every request of a session reaches its server', async (t) => {
  const { socket, hello } = await connect(t, 'poller', { transports: ['polling'] });
  for (let n = 0; n < 20; n += 1) assert.deepEqual(await echo(socket, n), { server: hello.server, data: n });
  assert.equal(socket.io.engine.transport.name, 'polling');
});

test('WebSocket only', async (t) => {
  const { socket, hello } = await connect(t, 'direct', { transports: ['websocket'] });
  assert.equal(hello.transport, 'websocket');
  const bytes = randomBytes(200_000);
  const { data } = await echo(socket, bytes);
  assert.ok(bytes.equals(data));
});

test('forty clients use both servers, and each comes back to its own', async (t) => {
  const sids = Array.from({ length: 40 }, (_, n) => `client-${n}`);
  const home = new Map();
  const sockets = await Promise.all(sids.map(async (sid) => {
    const { socket, hello } = await connect(t, sid);
    home.set(sid, hello.server);
    return [sid, socket];
  }));
  assert.deepEqual([...new Set(home.values())].sort(), ['a', 'b']);
  for (let round = 0; round < 3; round += 1) {
    await Promise.all(sockets.map(async ([sid, socket]) => {
      const again = once(socket, 'hello');
      socket.disconnect().connect();
      assert.equal((await again).server, home.get(sid));
      await upgraded(socket);
      assert.equal((await echo(socket, sid)).server, home.get(sid));
    }));
  }
});

test('a room: what one says, all of its server hear', async (t) => {
  const clients = await Promise.all([1, 2, 3].map(() => connect(t, 'one-household')));
  await Promise.all(clients.map(({ socket }) => socket.timeout(DEADLINE).emitWithAck('join', 'kitchen')));
  const heard = Promise.all(clients.map(({ socket }) => once(socket, 'said')));
  clients[0].socket.emit('say', 'kitchen', 'dinner');
  assert.deepEqual(await heard, ['dinner', 'dinner', 'dinner']);
});

test('the app\'s pages and uploads pass unchanged', async () => {
  const headers = { cookie: `${COOKIE}=browser` };
  const signal = () => AbortSignal.timeout(DEADLINE);
  const page = await (await fetch(`${PROXY}/some/page?q=1`, { headers, signal: signal() })).json();
  assert.equal(page.method, 'GET');
  assert.equal(page.url, '/some/page?q=1');
  assert.equal(page.host, new URL(PROXY).host);
  const body = randomBytes(3 << 20);
  const upload = await (await fetch(`${PROXY}/upload`, { method: 'POST', headers, body, signal: signal() })).json();
  assert.equal(upload.size, body.length);
  assert.equal(upload.sha256, createHash('sha256').update(body).digest('hex'));
  assert.equal(upload.server, page.server);
});
