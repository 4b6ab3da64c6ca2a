// Node's own HTTP server with a short keep-alive: requests meet its closing again and again. Started by
// tests/tests/clients.rs.
import assert from 'node:assert/strict';
import { createServer, request } from 'node:http';
import { after, test } from 'node:test';

const PROXY = new URL(process.env.WEIR_PROXY);
const KEEP = 100;
// What Node adds of its own.
const SLACK = 1000;

let connections = 0;
const handled = new Map();
const app = createServer(async (incoming, response) => {
  let body = '';
  for await (const piece of incoming) body += piece;
  handled.set(incoming.url, (handled.get(incoming.url) ?? 0) + 1);
  response.end(`${incoming.method} ${body.length}`);
});
app.on('connection', () => { connections += 1; });
app.keepAliveTimeout = KEEP;
app.keepAliveTimeoutBuffer = SLACK;

const ask = (method, path, body) => new Promise((resolve, reject) => {
  const asked = request({ host: PROXY.hostname, port: PROXY.port, method, path, agent: false }, (response) => {
    let text = '';
    response.on('data', (piece) => { text += piece; });
    response.on('end', () => resolve({ status: response.statusCode, text }));
  });
  asked.on('error', reject);
  asked.end(body);
});

after(() => { app.closeAllConnections(); app.close(); });

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** So many at once, so often, each about when the server closes the connection of the last one. */
async function around(rounds, width, one) {
  for (let round = 0; round < rounds; round += 1) {
    await Promise.all(Array.from({ length: width }, async (_, n) => {
      await sleep(KEEP + SLACK - 10 + (n % 21));
      await one(round * width + n);
    }));
  }
}

test('requests that meet a server closing its kept connection', { timeout: 60_000 }, async () => {
  await new Promise((resolve) => { app.listen(Number(process.env.WEIR_APP_PORT), '127.0.0.1', resolve); });
  const wrong = [];
  await around(8, 63, async (n) => {
    const method = ['GET', 'PUT', 'DELETE'][n % 3];
    const { status, text } = await ask(method, `/${n}`, n % 3 === 1 ? 'x'.repeat(10_000) : undefined);
    if (status !== 200 || text !== `${method} ${n % 3 === 1 ? 10_000 : 0}`) wrong.push(`${n}: ${method} ${status} ${text}`);
  });
  assert.deepEqual(wrong, []);
  assert.ok(connections > 100, `${connections} connections: the server has closed few`);
});

test('a POST comes to the server once at most', { timeout: 60_000 }, async () => {
  let failed = 0;
  await around(5, 63, async (n) => {
    const { status } = await ask('POST', `/post/${n}`, 'data');
    const times = handled.get(`/post/${n}`) ?? 0;
    assert.ok(status === 200 ? times === 1 : status === 502 && times <= 1, `${n}: ${status}, handled ${times} times`);
    failed += status === 200 ? 0 : 1;
  });
  assert.ok(failed < 60, `${failed} failed`);
});
