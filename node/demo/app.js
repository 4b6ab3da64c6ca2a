// The demo chat: the published Centrifugo SDK against this process.
// Every text that comes from outside is set as textContent, never as HTML.
(() => {
  'use strict';

  const CHANNEL = 'chat:lobby';
  const HISTORY = 50;
  const KEEP_MESSAGES = 300;
  const KEEP_NAMES = 500;
  const LATENCIES = 40;
  const PEOPLE_SHOWN = 30;
  const STATS_EVERY_MS = 1000;
  const PRESENCE_EVERY_MS = 20000;

  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const el = document.createElement(tag);
    if (className) el.className = className;
    if (text !== undefined) el.textContent = text;
    return el;
  };

  // ---- Connection and subscription

  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const client = new Centrifuge(`${scheme}://${location.host}/connection/websocket`, { name: 'weir-demo' });
  const sub = client.newSubscription(CHANNEL, { recoverable: true, joinLeave: true });

  let wanted = true; // false while the visitor chose to be offline
  let own = '';      // this connection's client id

  client.on('connecting', (ctx) => {
    // Code 0 is our own connect(); anything else is a loss.
    showState('connecting', ctx.code === 0 ? 'Connecting…' : `Reconnecting… (${ctx.reason})`);
  });
  client.on('connected', (ctx) => {
    own = ctx.client;
    showState('connected', 'Connected');
  });
  client.on('disconnected', (ctx) => {
    // 3500 and up: the server does not want us back; the SDK stays away by itself.
    showState('disconnected', wanted ? `Disconnected: ${ctx.reason} (${ctx.code})` : 'Offline, by your choice');
  });

  sub.on('subscribed', (ctx) => {
    enterStream(ctx.streamPosition ? ctx.streamPosition.epoch : '');
    if (ctx.wasRecovering && ctx.recovered) {
      notice(ctx.hasRecoveredPublications ? 'Back again: what you missed was recovered' : 'Back again: you missed nothing');
    } else {
      if (ctx.wasRecovering) {
        notice('Back again, but what was missed could not be recovered; history is shown instead');
      }
      loadHistory();
    }
    loadPresence();
    $('send').disabled = false;
  });
  sub.on('subscribing', () => {
    $('send').disabled = true;
    people.clear();
    showPeople();
  });
  sub.on('unsubscribed', (ctx) => {
    $('send').disabled = true;
    if (ctx.code >= 100) showError(`The channel was closed: ${ctx.reason} (${ctx.code})`);
  });
  sub.on('publication', (ctx) => addMessage(ctx, true));
  sub.on('join', (ctx) => { people.set(ctx.info.client, ctx.info); showPeople(); });
  sub.on('leave', (ctx) => { people.delete(ctx.info.client); showPeople(); });

  function showState(state, text) {
    $('state').dataset.state = state;
    $('state-text').textContent = text;
    $('toggle').disabled = false;
    $('toggle').textContent = state === 'disconnected' ? 'Connect' : 'Go offline';
    if (state !== 'connected') $('send').disabled = true;
  }

  $('toggle').addEventListener('click', () => {
    wanted = client.state === 'disconnected';
    if (wanted) client.connect(); else client.disconnect();
  });

  // ---- Messages: kept in the order of their offsets, each shown once

  const list = $('messages');
  const sentAt = new Map(); // id of an own message → when it was published
  let epoch = '';

  /** In another stream offsets start again: what is on the page stays, but its numbers mean nothing there. */
  function enterStream(next) {
    if (next === epoch) return;
    epoch = next;
    list.querySelectorAll('li[data-offset]').forEach((li) => li.removeAttribute('data-offset'));
  }

  async function loadHistory() {
    try {
      const page = await sub.history({ limit: HISTORY, reverse: true });
      page.publications.slice().reverse().forEach((pub) => addMessage(pub, false));
    } catch (e) {
      if (client.state === 'connected') showError(`History is not available: ${e.message}`);
    }
  }

  function addMessage(pub, live) {
    const data = pub.data;
    if (data === null || typeof data !== 'object' || typeof data.text !== 'string') return;
    const name = cleanName(data.name) || 'Somebody';
    const info = pub.info;
    if (info) remember(info.client, name);

    const offset = pub.offset || 0;
    if (offset && list.querySelector(`li[data-offset="${offset}"]`)) return;

    const took = live && sentAt.has(data.id) ? performance.now() - sentAt.get(data.id) : null;
    sentAt.delete(data.id);

    const li = make('li', (info && info.client === own) || took !== null ? 'mine' : '');
    if (offset) li.dataset.offset = offset;
    const meta = make('span', 'meta');
    meta.append(make('span', 'who', name));
    if (took !== null) meta.append(make('span', 'ms', format(took)));
    li.append(meta, make('span', 'said', data.text.slice(0, 2000)));

    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    list.insertBefore(li, firstAfter(offset));
    while (list.children.length > KEEP_MESSAGES) list.firstElementChild.remove();
    if (atEnd || took !== null) list.scrollTop = list.scrollHeight;
    $('empty').hidden = true;
    if (took !== null) showLatency(took);
  }

  /** The element that a message with this offset goes before; null: the end. */
  function firstAfter(offset) {
    let before = null;
    if (!offset) return before;
    for (let li = list.lastElementChild; li; li = li.previousElementSibling) {
      if (li.dataset.offset && Number(li.dataset.offset) > offset) before = li;
      else if (li.dataset.offset) break;
    }
    return before;
  }

  function notice(text) {
    list.append(make('li', 'notice', text));
    list.scrollTop = list.scrollHeight;
  }

  $('form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const text = $('text').value.trim();
    const name = cleanName($('name').value);
    if (!text || !name || $('send').disabled) return;
    keepName(name);
    $('text').value = '';
    $('text').focus();
    const id = newId();
    sentAt.set(id, performance.now());
    if (sentAt.size > 100) sentAt.delete(sentAt.keys().next().value);
    try {
      await sub.publish({ text, name, id });
      showError('');
    } catch (e) {
      sentAt.delete(id);
      showError(`Not sent: ${e.message}${e.code ? ` (${e.code})` : ''}`);
      if (!$('text').value) $('text').value = text;
    }
  });

  function showError(text) {
    $('error').hidden = !text;
    $('error').textContent = text;
  }

  // ---- Who is here

  const people = new Map(); // client id → info
  const names = new Map();  // client id → the name it last used

  async function loadPresence() {
    if (sub.state !== 'subscribed') return;
    try {
      const { clients } = await sub.presence();
      people.clear();
      for (const [id, info] of Object.entries(clients)) people.set(id, info);
      showPeople();
    } catch (e) {
      if (client.state === 'connected') showError(`Presence is not available: ${e.message}`);
    }
  }

  function remember(id, name) {
    if (names.get(id) === name) return;
    names.set(id, name);
    if (names.size > KEEP_NAMES) names.delete(names.keys().next().value);
    showPeople();
  }

  function showPeople() {
    $('count').textContent = people.size ? people.size : '–';
    const ids = [...people.keys()].sort((a, b) => (b === own) - (a === own) || (a < b ? -1 : 1));
    const rows = ids.slice(0, PEOPLE_SHOWN).map((id) => {
      const row = make('li', '', id === own ? cleanName($('name').value) || 'You' : names.get(id) || `Guest ${id.slice(0, 4)}`);
      if (id === own) row.append(' ', make('small', '', '(you)'));
      return row;
    });
    if (ids.length > PEOPLE_SHOWN) rows.push(make('li', 'more', `and ${ids.length - PEOPLE_SHOWN} more`));
    $('people').replaceChildren(...rows);
  }

  // ---- Latency of own messages

  const latencies = [];

  function showLatency(ms) {
    latencies.push(ms);
    if (latencies.length > LATENCIES) latencies.shift();
    const sorted = [...latencies].sort((a, b) => a - b);
    $('latency').textContent = format(ms);
    $('latency-note').textContent = latencies.length > 1
      ? `median ${format(sorted[sorted.length >> 1])} of ${latencies.length}` : 'your first message';
    if (latencies.length < 2) return;
    const top = Math.max(...latencies, 1);
    const step = 120 / (latencies.length - 1);
    const points = latencies.map((v, i) => `${(i * step).toFixed(1)},${(27 - (v / top) * 24).toFixed(1)}`);
    $('spark').firstElementChild.setAttribute('points', points.join(' '));
  }

  // ---- Numbers of the process

  let last = null;

  async function loadStats() {
    if (document.hidden) return;
    try {
      const answer = await fetch('/demo/stats', { cache: 'no-store', signal: AbortSignal.timeout(3000) });
      if (!answer.ok) throw new Error(String(answer.status));
      const now = { at: performance.now(), ...(await answer.json()) };
      $('stat-clients').textContent = count(now.clients);
      $('stat-subscriptions').textContent = count(now.subscriptions);
      $('stat-memory').textContent = `${(now.rss_bytes / 1048576).toFixed(1)} MiB`;
      $('stat-uptime').textContent = duration(now.uptime_s);
      if (last && now.uptime_s >= last.uptime_s) {
        const seconds = Math.max((now.at - last.at) / 1000, 0.001);
        $('stat-in').textContent = rate((now.messages_in - last.messages_in) / seconds);
        $('stat-out').textContent = rate((now.messages_out - last.messages_out) / seconds);
      }
      last = now;
    } catch {
      last = null;
      ['clients', 'subscriptions', 'in', 'out', 'memory', 'uptime'].forEach((k) => { $(`stat-${k}`).textContent = '–'; });
    }
  }

  async function everyStats() {
    await loadStats();
    setTimeout(everyStats, STATS_EVERY_MS);
  }

  // ---- Small things

  function format(ms) { return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`; }
  function count(n) { return Number(n).toLocaleString('en'); }
  function rate(n) { return n < 10 ? Math.max(n, 0).toFixed(1) : count(Math.round(n)); }
  function duration(s) {
    if (s < 90) return `${Math.floor(s)} s`;
    if (s < 5400) return `${Math.floor(s / 60)} min`;
    return s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
  }
  function cleanName(name) { return typeof name === 'string' ? name.trim().slice(0, 24) : ''; }
  // crypto.randomUUID exists only on https and localhost; the page is also opened by address.
  function newId() {
    return [...crypto.getRandomValues(new Uint8Array(8))].map((b) => b.toString(16).padStart(2, '0')).join('');
  }

  // A name per tab, so that two tabs are two people.
  function keepName(name) {
    try { sessionStorage.setItem('weir-name', name); } catch { /* storage may be off */ }
    showPeople();
  }
  function firstName() {
    try {
      const kept = sessionStorage.getItem('weir-name');
      if (kept) return kept;
    } catch { /* storage may be off */ }
    const birds = ['Heron', 'Otter', 'Dipper', 'Kingfisher', 'Wagtail', 'Teal', 'Salmon', 'Grebe', 'Beaver', 'Plover'];
    const [n] = crypto.getRandomValues(new Uint16Array(1));
    return `${birds[n % birds.length]} ${10 + (n % 89)}`;
  }

  $('name').value = firstName();
  $('name').addEventListener('change', () => keepName(cleanName($('name').value)));
  setInterval(loadPresence, PRESENCE_EVERY_MS);
  everyStats();
  sub.subscribe();
  client.connect();
})();
