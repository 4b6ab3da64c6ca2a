// What the suites share: tokens, the server HTTP API, a link that can be cut, and waiting with a deadline.
import { createHmac, randomBytes } from 'node:crypto';
import net from 'node:net';

const need = (name) => {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; these suites are started by tests/tests/clients.rs`);
  return value;
};

/** The server under test, as tests/tests/clients.rs started it. */
export const server = {
  ws: need('WEIR_WS'),
  api: need('WEIR_API'),
  apiKey: need('WEIR_API_KEY'),
  hmac: need('WEIR_HMAC'),
};

/** Every wait ends: long enough for a loaded machine, short enough to say what was waited for. */
export const DEADLINE = 15_000;

export const unique = (prefix) => `${prefix}${randomBytes(6).toString('hex')}`;

const b64 = (value) => Buffer.from(value).toString('base64url');

export function jwt(claims, { secret = server.hmac, alg = 'HS256' } = {}) {
  const body = `${b64(JSON.stringify({ alg, typ: 'JWT' }))}.${b64(JSON.stringify(claims))}`;
  return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`;
}

export const inSeconds = (s) => Math.floor(Date.now() / 1000) + s;

/** Calls the server HTTP API; an error of its own fails the test. */
export async function api(method, request) {
  const response = await fetch(`${server.api}/${method}`, {
    method: 'POST',
    headers: { 'X-API-Key': server.apiKey, 'Content-Type': 'application/json' },
    body: JSON.stringify(request),
    signal: AbortSignal.timeout(DEADLINE),
  });
  const text = await response.text();
  if (response.status !== 200) throw new Error(`api ${method}: ${response.status} ${text}`);
  const answer = JSON.parse(text);
  if (answer.error) throw new Error(`api ${method}: ${text}`);
  return answer.result;
}

/** The next event of this name for which `accept` holds. */
export function event(emitter, name, accept = () => true, deadline = DEADLINE) {
  return new Promise((resolve, reject) => {
    const stop = () => { clearTimeout(timer); emitter.removeListener(name, listen); };
    const listen = (ctx) => {
      if (accept(ctx)) { stop(); resolve(ctx); }
    };
    const at = new Error(`no '${name}' event within ${deadline} ms`);
    const timer = setTimeout(() => { stop(); reject(at); }, deadline);
    emitter.on(name, listen);
  });
}

/** Everything that an emitter says under one name, and a wait for a count of it. */
export function collect(emitter, name) {
  const seen = [];
  let wake = () => {};
  emitter.on(name, (ctx) => { seen.push(ctx); wake(); });
  seen.count = (n, deadline = DEADLINE) => new Promise((resolve, reject) => {
    const at = new Error(`fewer than ${n} '${name}' events within ${deadline} ms`);
    const timer = setTimeout(() => { at.message += `: ${JSON.stringify(seen)}`; reject(at); }, deadline);
    wake = () => {
      if (seen.length >= n) { clearTimeout(timer); resolve(seen); }
    };
    wake();
  });
  return seen;
}

/** Waits for a promise, for so long. */
export function within(promise, what, deadline = DEADLINE) {
  let timer;
  const at = new Error(`${what}: not within ${deadline} ms`);
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(at), deadline); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A TCP relay in front of the server: `cut()` resets all connections and refuses new ones until `heal()`. */
export async function relay(url = server.ws) {
  const target = new URL(url);
  const [host, port] = [target.hostname, Number(target.port)];
  const open = new Set();
  let up = true;
  const listener = net.createServer((client) => {
    if (!up) { client.resetAndDestroy(); return; }
    const upstream = net.connect(port, host);
    for (const [a, b] of [[client, upstream], [upstream, client]]) {
      open.add(a);
      a.on('error', () => b.destroy());
      a.on('close', () => { open.delete(a); b.destroy(); });
      a.pipe(b);
    }
  });
  await new Promise((resolve) => listener.listen(0, '127.0.0.1', resolve));
  target.port = String(listener.address().port);
  return {
    url: target.href,
    cut() { up = false; for (const socket of open) socket.resetAndDestroy(); },
    heal() { up = true; },
    close() { listener.close(); for (const socket of open) socket.destroy(); },
  };
}
