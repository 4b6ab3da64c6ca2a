// The `ws` client against a `ws` server behind the proxy (conf/app.toml): what WebSockets can do passes unchanged.
// Started by tests/tests/clients.rs.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { test } from 'node:test';
import WebSocket from 'ws';

const PROXY = process.env.WEIR_PROXY;
const DEADLINE = 15_000;

const soon = () => ({ signal: AbortSignal.timeout(DEADLINE) });

/** Open; what the server says before that is not missed. */
async function open(t, path = '/', options = {}, protocols = []) {
  const ws = new WebSocket(PROXY.replace('http', 'ws') + path, protocols, options);
  t.after(() => ws.terminate());
  ws.messages = [];
  ws.on('message', (data, binary) => { ws.messages.push({ data, binary }); ws.emit('another'); });
  await once(ws, 'open', soon());
  return ws;
}

async function message(ws) {
  while (ws.messages.length === 0) await once(ws, 'another', soon());
  return ws.messages.shift();
}

/** How the app saw the end of the connection with this URL. */
async function seen(url) {
  for (;;) {
    const closes = await (await fetch(`${PROXY}/`, soon())).json();
    const own = closes.find((c) => c.url === url);
    if (own) return own;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

test('text and binary, small and large, come back as they were', async (t) => {
  const ws = await open(t);
  for (const size of [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20]) {
    const data = randomBytes(size);
    ws.send(data);
    const echoed = await message(ws);
    assert.ok(echoed.binary && data.equals(echoed.data), `${size} bytes`);
  }
  ws.send('zwölf 💧 \0 \u2028');
  assert.deepEqual(await message(ws), { data: Buffer.from('zwölf 💧 \0 \u2028'), binary: false });
});

test('five hundred messages under way at once come back in order', async (t) => {
  const ws = await open(t);
  for (let n = 0; n < 500; n += 1) ws.send(`${n} ${'x'.repeat((n * 97) % 5000)}`);
  for (let n = 0; n < 500; n += 1) assert.equal(parseInt((await message(ws)).data, 10), n);
});

test('a fragmented message, with a ping between its parts', async (t) => {
  const ws = await open(t, '/', { perMessageDeflate: false });
  const pong = once(ws, 'pong', soon());
  ws.send('one, ', { fin: false });
  ws.send('two, ', { fin: false });
  ws.ping('between');
  ws.send('three', { fin: true });
  assert.equal((await pong)[0].toString(), 'between');
  assert.equal((await message(ws)).data.toString(), 'one, two, three');
});

test('pings of the server are answered by the client', async (t) => {
  const ws = await open(t, '/ping');
  assert.equal((await message(ws)).data.toString(), 'pong: are you there?');
});

test('permessage-deflate is negotiated from end to end, and used', async (t) => {
  const ws = await open(t);
  assert.match(ws.extensions, /permessage-deflate/);
  const text = 'the same over and over again '.repeat(20_000);
  const before = ws._socket.bytesRead;
  ws.send(text);
  assert.equal((await message(ws)).data.toString(), text);
  assert.ok(ws._socket.bytesRead - before < text.length / 20, 'came uncompressed');
  const plain = await open(t, '/', { perMessageDeflate: false });
  assert.equal(plain.extensions, '');
});

test('a subprotocol is negotiated from end to end', async (t) => {
  const ws = await open(t, '/', {}, ['echo.v3', 'echo.v2']);
  assert.equal(ws.protocol, 'echo.v2');
});

test('close codes and reasons pass both ways', async (t) => {
  for (const [code, reason] of [[1000, ''], [1001, 'going'], [1011, 'failed'], [3000, 'elsewhere'], [4999, 'ünd so weiter']]) {
    const byServer = await open(t, `/close?code=${code}&reason=${encodeURIComponent(reason)}`);
    const [got, why] = await once(byServer, 'close', soon());
    assert.deepEqual([got, why.toString()], [code, reason]);
    const path = `/?close=${code}`;
    const byClient = await open(t, path);
    byClient.close(code, reason);
    await once(byClient, 'close', soon());
    assert.deepEqual(await seen(path), { url: path, code, reason });
  }
});

test('a side that vanishes without a close is seen as 1006 by the other', async (t) => {
  const ws = new WebSocket(`${PROXY.replace('http', 'ws')}/vanish`);
  t.after(() => ws.terminate());
  ws.on('error', () => {});
  assert.equal((await once(ws, 'close', soon()))[0], 1006);
  const client = await open(t, '/?client=vanishes');
  client.terminate();
  assert.equal((await seen('/?client=vanishes')).code, 1006);
});

test('the app sees path, query, host, cookies, origin and the client\'s address', async (t) => {
  const headers = { Cookie: 'sid=abc; theme=dark', Origin: 'https://app.example.com', 'X-Own': 'kept', Authorization: 'Bearer t0ken' };
  const ws = await open(t, '/hello?q=%20ä&r=1', { headers });
  const hello = JSON.parse((await message(ws)).data);
  assert.equal(hello.url, '/hello?q=%20%C3%A4&r=1');
  assert.equal(hello.headers.host, new URL(PROXY).host);
  for (const [name, value] of Object.entries(headers)) assert.equal(hello.headers[name.toLowerCase()], value);
  assert.equal(hello.headers['x-forwarded-for'], '127.0.0.1');
  assert.equal(hello.headers['x-forwarded-proto'], 'http');
});

test('what the app refuses is refused with its own words', async () => {
  const ws = new WebSocket(`${PROXY.replace('http', 'ws')}/members-only`);
  ws.on('error', () => {});
  const [, response] = await once(ws, 'unexpected-response', soon());
  const chunks = await response.toArray();
  assert.equal(response.statusCode, 401);
  assert.equal(response.headers['x-reason'], 'no ticket');
  assert.equal(Buffer.concat(chunks).toString(), 'no ticket');
});
