// Plain HTTP through the proxy (conf/app.toml) to an unchanged app. Started by tests/tests/clients.rs.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import { test } from 'node:test';

const PROXY = new URL(process.env.WEIR_PROXY);
const DEADLINE = 15_000;
const soon = () => ({ signal: AbortSignal.timeout(DEADLINE) });
const sha256 = (data) => createHash('sha256').update(data).digest('hex');

function request(path, options = {}) {
  return http.request({ host: PROXY.hostname, port: PROXY.port, path, timeout: DEADLINE, ...soon(), ...options });
}

/** The whole answer. */
async function read(sent) {
  const [response] = await once(sent, 'response', soon());
  const body = Buffer.concat(await response.toArray());
  return { status: response.statusCode, headers: response.headers, body, trailers: response.trailers, response };
}

const get = (path, options) => { const sent = request(path, options); sent.end(); return read(sent); };
const json = ({ body }) => JSON.parse(body);

test('a kept-alive connection serves request after request', async (t) => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const ports = new Set();
  for (let n = 0; n < 50; n += 1) {
    const sent = request('/echo', { agent });
    sent.end();
    assert.equal((await read(sent)).status, 200);
    ports.add(sent.socket.localPort);
  }
  assert.equal(ports.size, 1, 'the proxy closed a connection between two requests');
});

test('after the app has closed its idle connections the next request is served all the same', async (t) => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  // Around the app's own limit (1 s) a connection may close as it is used.
  for (const pause of [0, 950, 1000, 1050, 1500]) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    const sent = request('/echo', { agent });
    sent.end();
    assert.equal((await read(sent)).status, 200, `after ${pause} ms`);
  }
});

test('uploads: with a length, in chunks, and none', async () => {
  for (const size of [0, 1, 100_000, 8 << 20]) {
    const data = randomBytes(size);
    for (const headers of [{ 'Content-Length': size }, { 'Transfer-Encoding': 'chunked' }]) {
      const sent = request('/echo', { method: 'POST', headers });
      for (let at = 0; at < size; at += 60_000) sent.write(data.subarray(at, at + 60_000));
      sent.end();
      const seen = json(await read(sent));
      assert.deepEqual([seen.size, seen.sha256, seen.method], [size, sha256(data), 'POST'], JSON.stringify(headers));
    }
  }
});

test('Expect: 100-continue is the app\'s to answer, either way', async () => {
  const sent = request('/echo', { method: 'PUT', headers: { Expect: '100-continue', 'Content-Length': 5 } });
  sent.flushHeaders();
  await once(sent, 'continue', soon());
  sent.end('hello');
  assert.equal(json(await read(sent)).size, 5);
  const refused = request('/echo', { method: 'PUT', headers: { Expect: '100-continue', 'X-Own': 'too large', 'Content-Length': 5_000_000 } });
  let told = false;
  refused.on('continue', () => { told = true; });
  refused.flushHeaders();
  assert.equal((await read(refused)).status, 413);
  assert.equal(told, false);
  refused.destroy();
});

test('a large download comes whole, at the client\'s pace', async () => {
  const sent = request('/download');
  sent.end();
  const [response] = await once(sent, 'response', soon());
  let size = 0;
  for await (const chunk of response) {
    size += chunk.length;
    if (size % (16 << 20) < chunk.length) await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.equal(size, 64 << 20);
});

test('HEAD has a length and no body, 304 and 204 have neither, and the connection goes on', async (t) => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const head = await get('/page', { method: 'HEAD', agent });
  assert.deepEqual([head.status, head.headers['content-length'], head.body.length], [200, String(1 << 20), 0]);
  const unchanged = await get('/page', { agent, headers: { 'If-None-Match': head.headers.etag } });
  assert.deepEqual([unchanged.status, unchanged.body.length, unchanged.headers.etag], [304, 0, head.headers.etag]);
  const nothing = await get('/nothing', { agent });
  assert.deepEqual([nothing.status, nothing.body.length], [204, 0]);
  const page = await get('/page', { agent });
  assert.deepEqual([page.status, page.body.length], [200, 1 << 20]);
});

test('the app\'s own answers and headers stay its own', async () => {
  assert.deepEqual((await get('/cookies')).headers['set-cookie'], ['a=1; HttpOnly', 'b=2; Path=/']);
  const moved = await get('/moved');
  assert.deepEqual([moved.status, moved.headers.location], [302, '/page']);
  const failed = await get('/failed');
  assert.deepEqual([failed.status, failed.headers['x-own'], failed.body.toString()], [500, 'kept', 'the app\'s own words']);
  assert.equal((await get('/none')).status, 404);
  for (const method of ['PUT', 'PATCH', 'DELETE', 'OPTIONS']) assert.equal(json(await get('/echo', { method })).method, method);
});

test('trailers may be dropped; the body they followed is whole', async () => {
  const { status, body } = await get('/trailers');
  assert.deepEqual([status, body.toString()], [200, 'body']);
  const sent = request('/echo', { method: 'POST', headers: { 'Transfer-Encoding': 'chunked', Trailer: 'X-Sum' } });
  sent.write('hello');
  sent.addTrailers({ 'X-Sum': '1' });
  sent.end();
  assert.equal(json(await read(sent)).size, 5);
});

test('early hints do not stand in the way of the answer', async () => {
  const { status, body } = await get('/early');
  assert.deepEqual([status, body.toString()], [200, 'after the hints']);
});

test('fifty clients at once', async () => {
  const data = randomBytes(200_000);
  await Promise.all(Array.from({ length: 50 }, async () => {
    const sent = request('/echo', { method: 'POST', headers: { 'Content-Length': data.length } });
    sent.end(data);
    assert.equal(json(await read(sent)).sha256, sha256(data));
  }));
});
