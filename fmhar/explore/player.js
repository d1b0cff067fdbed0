// Synchronised cameras of one event. The kernel sends each camera's stretch of video as bytes
// ("piece") and what is known of the event ("info"); nothing is fetched from anywhere.

const FRAMES_KEPT = 20000; // of the log that tells how well the cameras keep step
const REFRESH = 1 / 60; // seconds between two pictures of the screen

function make(tag, cls, parent, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

const words = (name) => String(name).replaceAll('_', ' ');
const percent = (p) => `${Math.round(100 * p)} %`;
const clockText = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(2).padStart(5, '0')}`;

// One clock for all cameras: each video is steered towards it, never the other way round.
class Clock {
  constructor(log) {
    this.cameras = new Map(); // view -> { video, begins, seconds, fps, ready }
    this.playing = false;
    this.rate = 1;
    this.loop = true;
    this.at = 0; // seconds of the event when the clock was last set
    this.since = 0; // performance.now() of that moment
    this.length = 0;
    this.turning = null; // a jump that is under way
    this.log = log;
  }

  time(now = performance.now()) {
    const t = this.playing && !this.turning ? this.at + ((now - this.since) / 1000) * this.rate : this.at;
    return Math.min(Math.max(t, 0), this.length);
  }

  set(t) {
    this.at = t;
    this.since = performance.now();
  }

  // where a camera should be: a quarter of a frame inside the one to show, so that rounding is no matter
  place(c, t) {
    const last = Math.max(c.seconds - 0.75 / c.fps, 0);
    return c.begins + Math.min(t + 0.25 / c.fps, last);
  }

  async jump(t, play = this.playing) {
    const turn = (this.turning = {});
    this.at = Math.min(Math.max(t, 0), this.length);
    const ready = [...this.cameras.values()].filter((c) => c.ready);
    ready.forEach((c) => { c.video.pause(); c.heard = 0; });
    await Promise.all(ready.map((c) => seek(c.video, this.place(c, this.at))));
    if (this.turning !== turn) return; // a later jump has taken over
    this.playing = play;
    if (play) {
      ready.forEach((c) => (c.video.playbackRate = this.rate));
      await Promise.all(ready.map((c) => c.video.play().catch(() => {})));
      if (this.turning !== turn) return;
      // the clock starts where the cameras are in the middle
      const ahead = ready.map((c) => c.video.currentTime - this.place(c, this.at)).sort((a, b) => a - b);
      if (ahead.length) this.at += Math.max(0, ahead[ahead.length >> 1]);
    }
    this.since = performance.now();
    this.turning = null;
  }

  steer() {
    if (!this.playing || this.turning) return;
    const t = this.time();
    if (t >= this.length - 1e-3) {
      if (this.onend) this.onend();
      else if (this.loop) this.jump(0, true);
      else this.pause(this.length);
      return;
    }
    for (const c of this.cameras.values()) {
      if (!c.ready || c.video.seeking) continue;
      if (t > c.seconds + 0.1) { c.video.pause(); continue; } // a camera whose stretch ends earlier
      if (c.video.paused) c.video.play().catch(() => {});
      // what came to the screen counts; the player's own time only where the browser does not tell
      const fresh = performance.now() - c.heard < 400;
      const off = fresh ? REFRESH / 2 - c.late : c.video.currentTime - this.place(c, t);
      if (Math.abs(off) > 0.35) { c.heard = 0; c.video.currentTime = this.place(c, t); continue; }
      const gain = Math.abs(off) < 0.006 ? 0 : Math.max(-0.25, Math.min(0.25, 1.5 * off));
      const rate = Math.max(0.1, this.rate * (1 - gain));
      if (Math.abs(c.video.playbackRate - rate) > 0.005) c.video.playbackRate = rate;
    }
  }

  pause(t = this.time()) {
    this.playing = false;
    return this.jump(t, false);
  }

  clear() {
    this.turning = {};
    for (const c of this.cameras.values()) {
      c.video.pause();
      URL.revokeObjectURL(c.url);
      c.ready = false;
    }
    this.cameras.clear();
    this.at = 0;
    this.turning = null;
  }
}

function seek(video, t) {
  return new Promise((done) => {
    if (Math.abs(video.currentTime - t) < 1e-4 && !video.seeking && video.readyState >= 2) return done();
    const finish = () => { video.removeEventListener('seeked', finish); clearTimeout(timer); done(); };
    const timer = setTimeout(finish, 1500);
    video.addEventListener('seeked', finish);
    video.currentTime = t;
  });
}

// Log of shown frames: event time of the frame against the clock when it came to the screen.
function watch(c, clock, view) {
  if (!c.video.requestVideoFrameCallback) return;
  const shown = (_, meta) => {
    if (clock.cameras.get(view) !== c) return;
    if (clock.playing && !clock.turning) {
      const late = clock.time(meta.expectedDisplayTime) - (meta.mediaTime - c.begins);
      c.late = c.heard ? 0.7 * c.late + 0.3 * late : late;
      c.heard = performance.now();
      clock.log.frames.push([view, meta.mediaTime - c.begins, clock.time(meta.expectedDisplayTime), c.fps]);
      if (clock.log.frames.length > FRAMES_KEPT) clock.log.frames.splice(0, FRAMES_KEPT / 2);
    }
    c.video.requestVideoFrameCallback(shown);
  };
  c.video.requestVideoFrameCallback(shown);
}

function tile(parent, camera, info) {
  const box = make('figure', 'fmhar-tile', parent);
  const verdict = camera.right === null ? 'none' : camera.right ? 'right' : 'wrong';
  box.dataset.verdict = verdict;
  box.dataset.view = camera.view;
  const head = make('div', 'fmhar-view', box, camera.name);
  if (camera.trained) make('span', 'fmhar-badge', head, 'trained');
  const screen = make('div', 'fmhar-screen', box);
  const video = make('video', '', screen);
  Object.assign(video, { muted: true, playsInline: true, preload: 'auto', disablePictureInPicture: true });
  const note = make('div', 'fmhar-note', screen, camera.missing || '');
  const caption = make('figcaption', '', box);
  if (camera.right !== null) {
    make('div', 'fmhar-answer', caption, `${camera.right ? '✓' : '✗'} ${words(camera.prediction)}`);
    for (const [name, p, colour] of camera.top) {
      const row = make('div', 'fmhar-top', caption);
      const bar = make('span', 'fmhar-meter', row);
      bar.style.setProperty('--share', `${100 * p}%`);
      bar.style.setProperty('--colour', colour);
      make('span', 'fmhar-share', row, percent(p));
      make('span', name === info.label ? 'fmhar-name fmhar-truth' : 'fmhar-name', row, words(name));
    }
  } else if (camera.message) make('div', 'fmhar-answer', caption, camera.message);
  return { box, video, note };
}

// All segments of the recording: truth above prediction; a click goes there.
class Activity {
  constructor(parent, go, seek) {
    this.seek = seek; // given where any moment can be gone to, not segments only
    this.box = make('div', 'fmhar-activity', parent);
    this.canvas = make('canvas', '', this.box);
    this.hint = make('div', 'fmhar-hint', this.box);
    this.canvas.addEventListener('click', (e) => {
      if (this.seek) return this.seek((e.offsetX / this.canvas.clientWidth) * this.info.bar.seconds);
      const s = this.under(e);
      if (s) go(s);
    });
    this.canvas.addEventListener('mousemove', (e) => this.tell(e));
    this.canvas.addEventListener('mouseleave', () => (this.hint.textContent = this.text));
    this.text = '';
  }

  show(info) {
    this.info = info;
    this.box.style.display = info.bar ? '' : 'none';
    if (!info.bar) return;
    this.text = info.bar.text;
    this.hint.textContent = this.text;
    this.draw(0);
  }

  under(e) {
    if (!this.info?.bar) return null;
    const t = (e.offsetX / this.canvas.clientWidth) * this.info.bar.seconds;
    const inside = this.info.bar.segments.filter((s) => t >= s[0] && t < s[1]);
    return inside[inside.length - 1] || null;
  }

  tell(e) {
    const s = this.under(e), classes = this.info?.classes;
    this.canvas.style.cursor = s || this.seek ? 'pointer' : 'default';
    if (!s) { this.hint.textContent = this.text; return; }
    const answer = s[3] < 0 ? '' : `, answered ${words(classes[s[3]])}`;
    this.hint.textContent = `${clockText(s[0])} ${words(classes[s[2]])}${answer}`;
  }

  draw(t) {
    const { bar, colours } = this.info || {};
    if (!bar) return;
    const w = this.canvas.clientWidth, h = this.canvas.clientHeight, k = window.devicePixelRatio || 1;
    if (!w) return;
    if (this.canvas.width !== Math.round(w * k)) { this.canvas.width = Math.round(w * k); this.canvas.height = Math.round(h * k); }
    const g = this.canvas.getContext('2d');
    g.setTransform(k, 0, 0, k, 0, 0);
    g.clearRect(0, 0, w, h);
    const x = (s) => (s / bar.seconds) * w, half = bar.answered ? h / 2 : h;
    for (const [a, b, truth, answer] of bar.segments) {
      const left = x(a), wide = Math.max(x(b) - left - 0.5, 0.75);
      g.fillStyle = colours[truth];
      g.fillRect(left, 0, wide, half - 1);
      if (answer >= 0) { g.fillStyle = colours[answer]; g.fillRect(left, half + 1, wide, half - 1); }
    }
    g.strokeStyle = getComputedStyle(this.box).color;
    g.lineWidth = 2;
    const [a, b] = bar.now;
    g.strokeRect(x(a), 1, Math.max(x(b) - x(a), 2), h - 2);
    g.fillStyle = g.strokeStyle;
    g.fillRect(x(Math.min(a + t, b)) - 1, 0, 2, h);
  }
}

function choice(parent, title, change) {
  const label = make('label', 'fmhar-choice', parent);
  make('span', '', label, title);
  const select = make('select', '', label);
  select.addEventListener('change', () => change(select.value));
  select.fill = (options, value) => {
    select.replaceChildren(...options.map(([v, text]) => {
      const o = document.createElement('option');
      o.value = v; o.textContent = text; o.selected = v === value;
      return o;
    }));
    label.style.display = options.length ? '' : 'none';
  };
  return select;
}

// Marks for own recordings: start, end and class once for all cameras.
function marking(parent, model, now, play) {
  const box = make('div', 'fmhar-marking', parent);
  const a = make('button', '', box, 'start'), b = make('button', '', box, 'end');
  const name = make('input', '', box);
  const list = make('datalist', '', box);
  list.id = `fmhar-classes-${Math.random().toString(36).slice(2)}`;
  Object.assign(name, { placeholder: 'class', size: 22 });
  name.setAttribute('list', list.id);
  const add = make('button', '', box, 'add'), undo = make('button', '', box, 'undo');
  const text = make('span', 'fmhar-hint', box);
  a.title = 'start is here (s)'; b.title = 'end is here (e)'; add.title = 'write it down (Enter)'; undo.title = 'take the last one back (z)';
  const table = make('table', 'fmhar-marks', parent);
  const draft = { start: null, end: null };
  const seconds = (t) => (t === null ? '–' : clockText(t));

  function draw() {
    a.textContent = `start ${seconds(draft.start)}`;
    b.textContent = `end ${seconds(draft.end)}`;
    const good = draft.start !== null && draft.end !== null && draft.end > draft.start && name.value.trim();
    add.disabled = !good;
    text.textContent = draft.start !== null && draft.end !== null && draft.end <= draft.start ? 'the end must lie behind the start' : model.get('saved');
  }
  function rows() {
    list.replaceChildren(...model.get('classes').map((c) => { const o = document.createElement('option'); o.value = c; return o; }));
    table.replaceChildren();
    const head = make('tr', '', table);
    for (const t of ['start', 'end', 'class', '']) make('th', '', head, t);
    for (const [start, end, label, event] of model.get('marks').slice(-12)) {
      const row = make('tr', '', table);
      for (const t of [clockText(start), clockText(end), words(label)]) make('td', '', row, t);
      const last = make('td', '', row);
      const go = make('button', '', last, 'go'), drop = make('button', '', last, '✕');
      go.onclick = () => model.send({ type: 'seek', time: start });
      drop.onclick = () => model.send({ type: 'drop', event });
    }
    draw();
  }
  function finish() {
    if (add.disabled) return;
    model.send({ type: 'mark', start: draft.start, end: draft.end, label: name.value.trim() });
    draft.start = draft.end = null;
    draw();
  }
  const set = (which) => { draft[which] = Math.round(now() * 1000) / 1000; draw(); };
  a.onclick = () => set('start');
  b.onclick = () => set('end');
  add.onclick = finish;
  undo.onclick = () => model.send({ type: 'undo' });
  name.addEventListener('input', draw);
  name.addEventListener('keydown', (e) => { e.stopPropagation(); if (e.key === 'Enter') { finish(); play.focus(); } });
  model.on('change:marks change:classes change:saved', rows);
  rows();
  return { s: () => set('start'), e: () => set('end'), z: () => undo.click(), Enter: finish };
}

function render({ model, el }) {
  const root = make('div', 'fmhar-player', el);
  root.tabIndex = 0;
  root.setAttribute('data-lm-suppress-shortcuts', 'true'); // keys belong to the player while it has the focus
  const log = (root.log = { clicked: 0, first: 0, all: 0, frames: [], shown: 0, pieces: 0, bytes: 0 });
  const clock = (root.clock = new Clock(log));
  const put = (name, value) => { log.clicked = performance.now(); log.first = log.all = 0; model.set(name, value); model.save_changes(); };

  const choices = make('div', 'fmhar-choices', root);
  const kind = choice(choices, 'Class', (v) => put('kind', v));
  const event = choice(choices, 'Event', (v) => put('event', v));
  const head = choice(choices, 'Head', (v) => put('head', v));
  const back = make('button', '', choices, '‹');
  const on = make('button', '', choices, '›');
  back.title = 'previous event (p)'; on.title = 'next event (n)';
  const title = make('div', 'fmhar-title', root);
  const grid = make('div', 'fmhar-grid', root);
  const controls = make('div', 'fmhar-controls', root);
  const play = make('button', 'fmhar-play', controls, '▶');
  const slider = make('input', 'fmhar-seek', controls);
  Object.assign(slider, { type: 'range', min: 0, max: 1, step: 'any', value: 0 });
  slider.setAttribute('aria-label', 'time within the event');
  const time = make('span', 'fmhar-time', controls, '');
  const speed = choice(controls, '', (v) => { clock.set(clock.time()); clock.rate = Number(v); });
  speed.fill([0.25, 0.5, 1, 2].map((v) => [String(v), `${v} ×`]), '1');
  const labelling = Boolean(model.get('labelling'));
  const activity = new Activity(root, (s) => { if (s[4] !== null) put('event', s[4]); },
    labelling ? (t) => model.send({ type: 'seek', time: t }) : null);
  const foot = make('div', 'fmhar-foot', root);
  const here = () => model.get('info').begins + clock.time();
  const keys = labelling ? marking(root, model, here, root) : {};
  if (labelling) clock.onend = () => {
    const wait = clock.length;
    clock.onward = true;
    clock.playing = false;
    clock.set(wait);
    model.send({ type: 'next' });
  };
  let tiles = new Map(), ticket = -1, jumped, due = 0, alive = true;

  function step(n) {
    const names = model.get('choices').map((c) => c[0]);
    if (!names.length) return;
    const i = names.indexOf(model.get('event'));
    put('event', names[(i + n + names.length) % names.length]);
  }
  back.onclick = () => step(-1);
  on.onclick = () => step(1);

  function menus() {
    kind.fill(model.get('kinds').map((k) => [k, words(k)]), model.get('kind'));
    event.fill(model.get('choices'), model.get('event'));
    head.fill(model.get('heads').map((h) => [h[0], h[1]]), model.get('head'));
  }

  function show() {
    const info = model.get('info');
    if (!info.cameras) return;
    title.replaceChildren();
    if (info.label) {
      make('span', 'fmhar-dot', title).style.background = info.colours[info.classes.indexOf(info.label)] || 'grey';
      make('strong', '', title, words(info.label));
    }
    make('span', 'fmhar-about', title, info.about);
    foot.textContent = info.foot || '';
    activity.show(info);
    if (info.ticket === ticket) { // the same videos: another head's answers, or another moment
      answers(info);
      if (info.jump !== jumped) { jumped = info.jump; clock.jump(info.at || 0); }
      return;
    }
    jumped = info.jump;
    ticket = info.ticket;
    const was = clock.playing || clock.onward || !clock.started;
    clock.onward = false;
    clock.clear();
    clock.started = true;
    clock.playing = false;
    clock.wanted = was;
    clock.length = info.seconds;
    slider.max = info.seconds;
    due = info.cameras.filter((c) => !c.missing).length;
    grid.replaceChildren();
    tiles = new Map(info.cameras.map((c) => [c.view, tile(grid, c, info)]));
    if (!due) log.first = log.all = performance.now();
  }

  function answers(info) {
    for (const c of info.cameras) {
      const old = tiles.get(c.view);
      if (!old) continue;
      const fresh = tile(make('div'), c, info);
      old.box.dataset.verdict = fresh.box.dataset.verdict;
      old.box.querySelector('figcaption').replaceWith(fresh.box.querySelector('figcaption'));
    }
    if (!log.first) log.first = log.all = performance.now();
  }

  function take(message, buffers) {
    if (message.type === 'broken' && message.ticket === ticket) {
      const t = tiles.get(message.view);
      if (t) { t.note.textContent = message.text; due -= 1; ready(); }
      return;
    }
    if (message.type !== 'piece' || message.ticket !== ticket || !tiles.has(message.view)) return;
    const { video, note } = tiles.get(message.view);
    const bytes = buffers[0];
    log.pieces += 1; log.bytes += bytes.byteLength;
    const url = URL.createObjectURL(new Blob([bytes], { type: message.mime }));
    const c = { video, url, begins: message.begins, seconds: message.seconds, fps: message.fps, ready: false, late: 0, heard: 0 };
    clock.cameras.get(message.view) && URL.revokeObjectURL(clock.cameras.get(message.view).url);
    clock.cameras.set(message.view, c);
    video.title = message.note;
    const mine = ticket;
    video.addEventListener('error', () => { if (mine === ticket) { note.textContent = 'this browser cannot play it'; due -= 1; ready(); } }, { once: true });
    video.addEventListener('loadeddata', async () => {
      await seek(video, clock.place(c, 0));
      if (mine !== ticket) return;
      c.ready = true;
      video.classList.add('fmhar-shown');
      if (!log.first) log.first = performance.now();
      watch(c, clock, message.view);
      ready();
    }, { once: true });
    video.src = `${url}#t=${clock.place(c, 0).toFixed(4)}`; // begins there, without a seek
  }

  function ready() {
    const n = [...clock.cameras.values()].filter((c) => c.ready).length;
    if (n < due || log.shown === ticket) return;
    log.shown = ticket;
    log.all = performance.now();
    clock.jump(model.get('info').at || 0, clock.wanted);
  }

  function toggle() { if (clock.playing) clock.pause(); else clock.jump(clock.time() >= clock.length - 1e-3 ? 0 : clock.time(), true); }
  function frame(n) {
    const fps = Math.max(...[...clock.cameras.values()].map((c) => c.fps), 1);
    clock.playing = false;
    clock.jump((Math.round(clock.time() * fps) + n) / fps, false);
  }
  play.onclick = toggle;
  slider.addEventListener('input', () => clock.jump(Number(slider.value)));
  root.addEventListener('keydown', (e) => {
    if (e.target.tagName === 'SELECT' || e.ctrlKey || e.metaKey || e.altKey) return;
    const known = { ' ': toggle, ArrowRight: () => frame(1), ArrowLeft: () => frame(-1), n: () => step(1), p: () => step(-1), ...keys };
    if (!known[e.key]) return;
    e.preventDefault(); e.stopPropagation();
    known[e.key]();
  });

  // the picture below is for notebooks whose kernel is gone
  let looked = 0;
  function hideStill() {
    looked += 1;
    const below = el.closest('.jp-OutputArea-child')?.nextElementSibling;
    if (!below?.querySelector('.jp-RenderedImage')) return;
    below.style.display = 'none';
    looked = Infinity;
  }

  function tick() {
    if (!alive) return;
    if (looked < 1200) hideStill();
    clock.steer();
    const t = clock.time();
    if (document.activeElement !== slider || clock.playing) slider.value = t;
    time.textContent = `${t.toFixed(2)} / ${clock.length.toFixed(2)} s`;
    play.textContent = clock.playing ? '❚❚' : '▶';
    play.title = clock.playing ? 'pause (space)' : 'play (space)';
    activity.draw(t);
    requestAnimationFrame(tick);
  }

  model.on('change:kinds change:kind change:choices change:event change:heads change:head', menus);
  model.on('change:info', show);
  model.on('msg:custom', take);
  menus();
  show();
  model.send({ type: 'ready' });
  requestAnimationFrame(tick);
  return () => { alive = false; clock.clear(); };
}

export default { render };
