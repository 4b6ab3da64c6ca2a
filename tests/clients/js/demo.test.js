// The demo page in headless Chromium: two tabs chat. Started by tests/tests/clients.rs.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';

const PAGE = process.env.WEIR_PAGE;
const SHOTS = process.env.WEIR_SCREENSHOTS;
const DEADLINE = 20_000;

/** A browser that asks nobody but the page: without these flags it looks for its maker's hosts. */
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

let browser;
let profile;

before(async () => {
  mkdirSync(SHOTS, { recursive: true });
  profile = mkdtempSync(path.join(tmpdir(), 'weir-chromium-'));
  browser = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.WEIR_CHROMIUM || '/usr/bin/chromium', headless: true, args: FLAGS, timeout: 60_000,
    viewport: { width: 1100, height: 720 },
  });
  browser.setDefaultTimeout(DEADLINE);
});

after(async () => {
  await browser?.close();
  rmSync(profile, { recursive: true, force: true, maxRetries: 3 });
});

/** A tab that has joined, with everything that went wrong in it. */
async function join(name) {
  const tab = await browser.newPage();
  const wrong = [];
  tab.on('pageerror', (e) => wrong.push(String(e)));
  tab.on('console', (m) => { if (m.type() === 'error') wrong.push(m.text()); });
  tab.on('requestfailed', (r) => wrong.push(`${r.url()}: ${r.failure()?.errorText}`));
  await tab.goto(PAGE);
  await tab.locator('#state[data-state="connected"]').waitFor();
  await tab.locator('#send:enabled').waitFor();
  await tab.fill('#name', name);
  return { tab, wrong };
}

async function say(tab, text) {
  await tab.fill('#text', text);
  await tab.press('#text', 'Enter');
}

const message = (tab, text) => tab.locator('#messages li .said', { hasText: text });
const shot = (tab, name) => tab.screenshot({ path: path.join(SHOTS, `${name}.png`) });

test('two tabs chat, and each sees who is there', async () => {
  const ann = await join('Ann');
  const bob = await join('Bob');
  for (const { tab } of [ann, bob]) await tab.locator('#count', { hasText: /^2$/ }).waitFor();

  await say(ann.tab, 'Hello from the first tab');
  await message(bob.tab, 'Hello from the first tab').waitFor();
  await say(bob.tab, 'And hello from the second');
  await message(ann.tab, 'And hello from the second').waitFor();

  await ann.tab.locator('#latency', { hasText: /^[\d.]+ ms$/ }).waitFor();
  await ann.tab.locator('#people li', { hasText: 'Bob' }).waitFor();
  await ann.tab.locator('#stat-clients', { hasText: /^\d+$/ }).waitFor();
  await ann.tab.locator('#stat-out', { hasText: /^[\d.,]+$/ }).waitFor();
  await shot(ann.tab, 'demo-first-tab');
  await shot(bob.tab, 'demo-second-tab');

  // Each message once, on both sides.
  for (const { tab } of [ann, bob]) {
    assert.equal(await message(tab, 'Hello from the first tab').count(), 1);
    assert.equal(await message(tab, 'And hello from the second').count(), 1);
  }
  // A third tab finds the talk in the history.
  const eve = await join('Eve');
  await message(eve.tab, 'And hello from the second').waitFor();
  await eve.tab.locator('#count', { hasText: /^3$/ }).waitFor();
  await eve.tab.close();
  await ann.tab.locator('#count', { hasText: /^2$/ }).waitFor();

  assert.deepEqual([...ann.wrong, ...bob.wrong, ...eve.wrong], []);
  await ann.tab.close();
  await bob.tab.close();
});

test('text is text: markup in a message or a name stays what was typed', async () => {
  const ann = await join('<b>Ann</b>');
  const markup = '<img src=x onerror="document.title=\'broken\'">&amp;';
  await say(ann.tab, markup);
  await message(ann.tab, markup).waitFor();
  assert.equal(await message(ann.tab, markup).textContent(), markup);
  assert.equal(await ann.tab.locator('#messages img').count(), 0);
  assert.equal(await ann.tab.locator('#messages li .who').last().textContent(), '<b>Ann</b>');
  assert.equal(await ann.tab.title(), 'Weir demo');
  assert.deepEqual(ann.wrong, []);
  await ann.tab.close();
});

test('who was away gets what was missed', async () => {
  const ann = await join('Ann');
  const bob = await join('Bob');
  await bob.tab.click('#toggle');
  await bob.tab.locator('#state[data-state="disconnected"]').waitFor();
  for (const n of [1, 2, 3]) {
    await say(ann.tab, `While you were away, ${n}`);
    await message(ann.tab, `While you were away, ${n}`).waitFor();
  }
  await bob.tab.click('#toggle');
  await bob.tab.locator('#messages li.notice', { hasText: 'was recovered' }).waitFor();
  await message(bob.tab, 'While you were away, 3').waitFor();
  const said = await bob.tab.locator('#messages li .said').allTextContents();
  assert.deepEqual(said.slice(-3), [1, 2, 3].map((n) => `While you were away, ${n}`));
  await shot(bob.tab, 'demo-recovered');
  await ann.tab.close();
  await bob.tab.close();
});

test('the page asks for nothing from elsewhere, and its SDK is the published one', async () => {
  const asked = [];
  const tab = await browser.newPage();
  tab.on('request', (r) => asked.push(new URL(r.url())));
  await tab.goto(PAGE);
  await tab.locator('#state[data-state="connected"]').waitFor();
  await tab.close();
  assert.deepEqual(asked.filter((u) => u.protocol !== 'data:' && u.host !== new URL(PAGE).host), []);
  const served = await (await fetch(new URL('/demo/centrifuge.js', PAGE))).text();
  const published = readFileSync(new URL('./node_modules/centrifuge/dist/centrifuge.js', import.meta.url), 'utf8');
  assert.ok(served === published, 'node/demo/centrifuge.js differs from the version in package.json');
});
