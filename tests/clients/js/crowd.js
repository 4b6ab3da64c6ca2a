// Subscribers over the published SDK that keep a log for the checker (tests/src/checker). Started by the scripts
// in tests/benches that harm a cluster.
//
//   node crowd.js '{"log": PATH, "nodes": ["ws://…"], "channels": ["load:0"], "count": 500, "secret": "…"}'
//
// Subscriber n is on channel n modulo their number, and is the user `s<n>`. Each connection that it makes goes to
// the next node. On standard input, a word a line: `settle N` waits until everyone has the last words (`end:…`) of
// N publishers, for 15 seconds at most; `end` ends.
import { createHmac } from 'node:crypto';
import fs from 'node:fs';
import readline from 'node:readline';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

const SETTLE_MS = 15_000;
const plan = JSON.parse(process.argv[2]);
const file = fs.openSync(plan.log, 'a');
let lines = [];

const say = (line) => process.stdout.write(`${JSON.stringify({ t: Date.now(), ...line })}\n`);
const note = (line) => lines.push(JSON.stringify(line));
const flush = () => {
  if (lines.length) fs.writeSync(file, `${lines.join('\n')}\n`);
  lines = [];
};
setInterval(flush, 100);

const b64 = (value) => Buffer.from(value).toString('base64url');
function token(user) {
  const body = `${b64('{"alg":"HS256","typ":"JWT"}')}.${b64(JSON.stringify({ sub: user }))}`;
  return `${body}.${createHmac('sha256', plan.secret).update(body).digest('base64url')}`;
}

/** A WebSocket class that goes to the next node each time, as a name with several addresses would. */
function rotating(first) {
  let next = first;
  return class extends WebSocket {
    constructor(_url, protocols) {
      super(plan.nodes[next % plan.nodes.length], protocols, { handshakeTimeout: 3000 });
      next += 1;
    }
  };
}

function subscriber(n) {
  const c = `s${n}`;
  const ch = plan.channels[n % plan.channels.length];
  const state = { c, ch, ends: new Set(), up: false };
  const client = new Centrifuge(plan.nodes[0], {
    websocket: rotating(n), token: token(c), minReconnectDelay: 100, maxReconnectDelay: 1000, maxServerPingDelay: 3000,
  });
  client.on('disconnected', (ctx) => say({ event: 'ended', c, code: ctx.code, reason: ctx.reason }));
  const sub = client.newSubscription(ch, { minResubscribeDelay: 50, maxResubscribeDelay: 500 });
  sub.on('subscribed', (ctx) => {
    state.up = true;
    const at = ctx.streamPosition ?? { epoch: '', offset: 0 };
    note({ e: 'sub', t: Date.now(), c, ch, ep: at.epoch, off: at.offset, was: ctx.wasRecovering, recovered: ctx.recovered });
  });
  sub.on('subscribing', () => { state.up = false; });
  sub.on('unsubscribed', (ctx) => { state.up = false; say({ event: 'unsubscribed', c, code: ctx.code, reason: ctx.reason }); });
  sub.on('publication', (ctx) => {
    const { id } = ctx.data;
    if (id.startsWith('end:')) state.ends.add(id);
    note({ e: 'msg', t: Date.now(), c, ch, off: ctx.offset ?? 0, id });
  });
  sub.subscribe();
  client.connect();
  state.client = client;
  return state;
}

const crowd = Array.from({ length: plan.count }, (_, n) => subscriber(n));
const up = () => crowd.filter((s) => s.up).length;
const started = setInterval(() => {
  if (up() < crowd.length) return;
  clearInterval(started);
  say({ event: 'up', count: up() });
}, 50);

function settle(ends) {
  const begun = Date.now();
  const wait = setInterval(() => {
    const behind = crowd.filter((s) => !s.up || s.ends.size < ends);
    if (behind.length && Date.now() - begun < SETTLE_MS) return;
    clearInterval(wait);
    flush();
    say({ event: 'settled', after: Date.now() - begun, behind: behind.length, up: up() });
  }, 50);
}

readline.createInterface({ input: process.stdin })
  .on('line', (line) => {
    const [word, number] = line.split(' ');
    if (word === 'settle') settle(Number(number));
    if (word === 'up') say({ event: 'is_up', count: up() });
    if (word === 'end') process.exit(0);
  })
  .on('close', () => process.exit(0));
process.on('exit', flush);
