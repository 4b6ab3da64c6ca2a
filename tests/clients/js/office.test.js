// Sixty Socket.IO clients of one address, as an office has them: polling first, then the upgrade, through README's
// example as it stands. Started by tests/tests/clients.rs.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { io } from 'socket.io-client';

const PROXY = process.env.WEIR_PROXY;
const CLIENTS = 60;
const DEADLINE = 30_000;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

test('sixty clients of one address: no error, whatever their number', async (t) => {
  const errors = [];
  const sockets = Array.from({ length: CLIENTS }, (_, n) => {
    const socket = io(PROXY, { forceNew: true, timeout: DEADLINE });
    t.after(() => socket.close());
    socket.on('connect_error', (e) => errors.push(`${n}: connect: ${e.message}`));
    socket.on('disconnect', (why) => { if (why !== 'io client disconnect') errors.push(`${n}: ${why}`); });
    return socket;
  });
  const until = async (what, holds) => {
    for (const end = Date.now() + DEADLINE; !sockets.every(holds);) {
      assert.ok(Date.now() < end, `${what}: ${sockets.filter(holds).length} of ${CLIENTS}; ${errors.join('; ')}`);
      await sleep(20);
    }
  };
  await until('connected', (socket) => socket.connected);
  for (let round = 0; round < 5; round += 1) {
    const answers = await Promise.all(sockets.map((s) => s.timeout(DEADLINE).emitWithAck('echo', round)));
    assert.ok(answers.every(({ data }) => data === round));
    assert.equal(new Set(answers.map(({ server }) => server)).size, 1, 'one address goes to one server');
    await sleep(500);
  }
  // Those beyond `handshake_burst` stay with polling until they come again; the others are upgraded.
  assert.ok(sockets.filter((s) => s.io.engine.transport.name === 'websocket').length >= 40);
  assert.deepEqual(errors, []);
  for (const socket of sockets) socket.disconnect();
});
