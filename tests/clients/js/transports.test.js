// Headless Chromium over HTTP/2, HTTP/3 and WebTransport: bare sockets, datagrams and the published SDK. Started by
// tests/tests/clients/transports.rs.
import assert from 'node:assert/strict';
import { createHash, X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { chromium } from 'playwright-core';

const need = (name) => process.env[name] ?? assert.fail(`${name} is not set`);
const [HOST, HASH, METRICS, CERT] = ['WEIR_TLS', 'WEIR_CERT_HASH', 'WEIR_METRICS', 'WEIR_CERT'].map(need);
/** Over QUIC a browser believes an unknown certificate only by the hash of its key. */
const SPKI = createHash('sha256')
  .update(new X509Certificate(readFileSync(CERT)).publicKey.export({ type: 'spki', format: 'der' }))
  .digest('base64');
/** One test is for a server of its own; the others are for a system with a node. */
const STRICT = process.env.WEIR_ONLY === 'strict';
/** What is told to a proxy with the node in its own process. */
const HERE = { skip: STRICT || process.env.WEIR_NODE_APART === '1' };
const DEADLINE = 20_000;
const SDK = path.resolve('node_modules/centrifuge/dist/centrifuge.js');
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--no-first-run', '--ignore-certificate-errors',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

/** Runs `use` with a page of the server's own. */
async function inBrowser(flags, use) {
  const profile = mkdtempSync(path.join(tmpdir(), 'weir-chromium-'));
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.WEIR_CHROMIUM || '/usr/bin/chromium',
    headless: true, args: [...FLAGS, ...flags], timeout: 60_000, ignoreHTTPSErrors: true,
  });
  try {
    browser.setDefaultTimeout(DEADLINE);
    const page = await browser.newPage();
    await page.goto(`https://${HOST}/page`);
    await page.addScriptTag({ path: SDK });
    await use(page);
  } finally {
    await browser.close();
    rmSync(profile, { recursive: true, force: true, maxRetries: 3 });
  }
}

/** Sum of a family over the label sets that have this one. */
async function metric(family, label) {
  const text = await (await fetch(METRICS)).text();
  const lines = text.split('\n').filter((l) => l.startsWith(`${family}{`) && l.includes(label));
  return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
}

const handshakes = (transport) => metric('weir_proxy_handshakes_total', `transport="${transport}"`);

/** In the page: a bare WebSocket that connects to the node. */
const bare = (url) => new Promise((resolve, reject) => {
  const socket = new WebSocket(url);
  socket.onopen = () => socket.send('{"id":1,"connect":{}}');
  socket.onmessage = (event) => { resolve(JSON.parse(event.data.split('\n')[0])); socket.close(); };
  socket.onerror = () => reject(new Error('WebSocket failed'));
  setTimeout(() => reject(new Error('no reply')), 15_000);
});

/** In the page: the SDK subscribes, publishes, and hears itself. */
const sdk = ({ endpoint, options }) => new Promise((resolve, reject) => {
  const decoded = options.hash
    ? { serverCertificateHashes: [{ algorithm: 'sha-256', value: Uint8Array.from(atob(options.hash), (c) => c.charCodeAt(0)) }] }
    : {};
  if (options.hash) {
    // The SDK has no option for it: a page's own certificate authority would make it needless.
    const Native = WebTransport;
    globalThis.WebTransport = class extends Native { constructor(url) { super(url, decoded); } };
  }
  const client = new Centrifuge([{ transport: options.transport, endpoint }]);
  const sub = client.newSubscription('from-a-page');
  sub.on('publication', ({ data }) => { resolve(data); client.disconnect(); });
  sub.on('subscribed', () => sub.publish({ text: options.transport }));
  sub.subscribe();
  client.on('error', ({ error }) => reject(new Error(JSON.stringify(error))));
  client.connect();
  setTimeout(() => reject(new Error('nothing came')), 15_000);
});

test('WebSocket and SDK over HTTP/2', HERE, async () => {
  await inBrowser([], async (page) => {
    const reply = await page.evaluate(bare, `wss://${HOST}/connection/websocket`);
    assert.ok(reply.connect.client, JSON.stringify(reply));
    assert.equal(await handshakes('h2'), 1, 'RFC 8441, on the connection of the page');
    const endpoint = `wss://${HOST}/connection/websocket`;
    assert.deepEqual(await page.evaluate(sdk, { endpoint, options: { transport: 'websocket' } }), { text: 'websocket' });
    assert.equal(await handshakes('h2'), 2);
    assert.equal(await handshakes('h1'), 0);
  });
});

// The same wherever the node is: this one runs against one in another process, too.
test('WebTransport: the SDK, and the code at the end', { skip: STRICT }, async () => {
  await inBrowser([], async (page) => {
    const endpoint = `https://${HOST}/connection/webtransport`;
    const heard = await page.evaluate(sdk, { endpoint, options: { transport: 'webtransport', hash: HASH } });
    assert.deepEqual(heard, { text: 'webtransport' });
    assert.equal(await handshakes('webtransport'), 1);
  });
  await inBrowser([], async (page) => {
    const got = await page.evaluate(async ([url, hash]) => {
      const value = Uint8Array.from(atob(hash), (c) => c.charCodeAt(0));
      const session = new WebTransport(url, { serverCertificateHashes: [{ algorithm: 'sha-256', value }] });
      await session.ready;
      const stream = await session.createBidirectionalStream();
      const writer = stream.writable.getWriter();
      await writer.write(new TextEncoder().encode('{"id":1,"connect":{}}\nnonsense\n'));
      const lines = stream.readable.pipeThrough(new TextDecoderStream()).getReader();
      let text = '';
      for (let read = {}; !read.done; text += read.value ?? '') read = await lines.read();
      const { closeCode, reason } = await session.closed;
      return { closeCode, reason, last: JSON.parse(text.trim().split('\n').at(-1)) };
    }, [`https://${HOST}/connection/webtransport`, HASH]);
    assert.equal(got.last.push.disconnect.code, 3501, JSON.stringify(got));
    assert.deepEqual([got.closeCode, got.reason], [3501, 'bad request']);
  });
});

test('WebTransport: datagrams', HERE, async () => {
  await inBrowser([], async (page) => {
    const got = await page.evaluate(async ([url, hash]) => {
      const value = Uint8Array.from(atob(hash), (c) => c.charCodeAt(0));
      const session = new WebTransport(url, { serverCertificateHashes: [{ algorithm: 'sha-256', value }] });
      await session.ready;
      const stream = await session.createBidirectionalStream();
      const writer = stream.writable.getWriter();
      const say = (command) => writer.write(new TextEncoder().encode(`${JSON.stringify(command)}\n`));
      await say({ id: 1, connect: {} });
      await say({ id: 2, subscribe: { channel: 'cursor:1' } });
      const lines = stream.readable.pipeThrough(new TextDecoderStream()).getReader();
      let text = '';
      while (!text.includes('"id":2')) text += (await lines.read()).value;
      await say({ id: 3, publish: { channel: 'cursor:1', data: { x: 7 } } });
      const { value: datagram } = await session.datagrams.readable.getReader().read();
      return JSON.parse(new TextDecoder().decode(datagram));
    }, [`https://${HOST}/connection/webtransport?cf_datagrams=true`, HASH]);
    assert.deepEqual(got.push.pub.data, { x: 7 }, JSON.stringify(got));
    assert.equal(await metric('weir_node_datagrams_total', 'outcome="sent"'), 1);
  });
});

test('WebSocket and SDK over HTTP/3', HERE, async () => {
  const flags = ['--enable-features=EnableWebsocketsOverHttp3', `--origin-to-force-quic-on=${HOST}`, `--ignore-certificate-errors-spki-list=${SPKI}`];
  await inBrowser(flags, async (page) => {
    // It takes a session that is there, of the same credentials mode.
    await page.evaluate(() => fetch('/page', { credentials: 'include' }).then((r) => r.text()));
    const reply = await page.evaluate(bare, `wss://${HOST}/connection/websocket`);
    assert.ok(reply.connect.client, JSON.stringify(reply));
    assert.equal(await handshakes('h3'), 1, 'RFC 9220, on the connection of the page');
    const endpoint = `wss://${HOST}/connection/websocket`;
    assert.deepEqual(await page.evaluate(sdk, { endpoint, options: { transport: 'websocket' } }), { text: 'websocket' });
    assert.equal(await handshakes('h3'), 2);
  });
});

// The server behind takes no chunks, and answers 501 to them.
test('plain requests over HTTP/3 to a strict server', { skip: !STRICT }, async () => {
  const flags = [`--origin-to-force-quic-on=${HOST}`, `--ignore-certificate-errors-spki-list=${SPKI}`];
  await inBrowser(flags, async (page) => {
    const got = await page.evaluate(async () => {
      const ask = async (method, body) => {
        const response = await fetch('/strict', { method, body, cache: 'no-store' });
        await response.text();
        const timing = performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/strict')).at(-1);
        return [method, response.status, timing.nextHopProtocol];
      };
      const all = [];
      for (const [method, body] of [['GET'], ['HEAD'], ['DELETE'], ['POST'], ['PUT'], ['POST', 'body']]) {
        all.push(await ask(method, body));
      }
      return all;
    });
    for (const [method, status, protocol] of got) assert.deepEqual([status, protocol], [200, 'h3'], method);
    assert.equal(got.length, 6);
  });
});
