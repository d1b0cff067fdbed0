// Curves of a bank while it trains: a sortable table of its probes, lines for those that are ticked.

function make(tag, cls, parent, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9'];

function plot(canvas, lines, title, ink) {
  const w = 420, h = 220, k = window.devicePixelRatio || 1, left = 44, low = 24, top = 20;
  Object.assign(canvas, { width: w * k, height: h * k });
  Object.assign(canvas.style, { width: `${w}px`, height: `${h}px` });
  const g = canvas.getContext('2d');
  g.scale(k, k);
  g.fillStyle = ink; g.font = '11px sans-serif'; g.fillText(title, left, 12);
  const values = lines.flatMap((l) => l.values.filter((v) => v !== null));
  if (!values.length) return;
  const n = Math.max(...lines.map((l) => l.values.length), 2), a = Math.min(...values), b = Math.max(...values), span = b - a || 1;
  const x = (i) => left + (i / (n - 1)) * (w - left - 8), y = (v) => h - low - ((v - a) / span) * (h - low - top);
  g.strokeStyle = 'rgba(128,128,128,0.4)';
  for (const v of [a, (a + b) / 2, b]) { g.beginPath(); g.moveTo(left, y(v)); g.lineTo(w - 8, y(v)); g.stroke(); g.fillText(v.toPrecision(3), 4, y(v) + 4); }
  g.fillText('1', left, h - 8); g.fillText(`epoch ${n}`, w - 60, h - 8);
  for (const l of lines) {
    g.strokeStyle = l.colour; g.lineWidth = l.wide ? 2 : 0.8; g.globalAlpha = l.wide ? 1 : 0.5;
    g.beginPath();
    let open = false;
    l.values.forEach((v, i) => { if (v === null) return; open ? g.lineTo(x(i), y(v)) : g.moveTo(x(i), y(v)); open = true; });
    g.stroke();
  }
  g.globalAlpha = 1;
}

function render({ model, el }) {
  const root = make('div', 'fmhar-player fmhar-training', el);
  const bar = make('div', 'fmhar-controls', root);
  const progress = make('progress', '', bar);
  const text = make('span', 'fmhar-time', bar);
  const all = make('button', 'fmhar-stop', bar, 'stop all');
  const curves = make('div', 'fmhar-matrices', root);
  const loss = make('canvas', '', curves), score = make('canvas', '', curves);
  const box = make('div', 'fmhar-scroll', root), table = make('table', 'fmhar-marks', box);
  const sort = { by: 'score', up: false }, ticked = new Set();
  all.onclick = () => model.send({ type: 'stop', probe: null });

  function draw() {
    const probes = [...model.get('probes')], ink = getComputedStyle(root).color;
    progress.max = model.get('steps')[1] || 1;
    progress.value = model.get('steps')[0];
    text.textContent = model.get('text');
    all.disabled = model.get('over');
    const sign = sort.up ? 1 : -1;
    probes.sort((p, q) => {
      const a = p[sort.by], b = q[sort.by];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (a < b ? -1 : a > b ? 1 : 0);
    });
    const named = ticked.size ? probes.filter((p) => ticked.has(p.name)) : probes.slice(0, 6);
    const colour = new Map(named.map((p, i) => [p.name, COLOURS[i % 6]]));
    const lines = (key) => [...probes].reverse().map((p) => ({ values: p[key], colour: colour.get(p.name) || '#999', wide: colour.has(p.name) }));
    plot(loss, lines('losses'), 'training loss (nats)', ink);
    plot(score, lines('scores'), 'validation: balanced accuracy (%)', ink);
    table.replaceChildren();
    const head = make('tr', '', table);
    for (const [key, name] of [['name', 'probe'], ['loss', 'loss'], ['score', 'validation'], ['best', 'best'], ['state', 'state']]) {
      const th = make('th', 'fmhar-sort', head, name + (sort.by === key ? (sort.up ? ' ▲' : ' ▼') : ''));
      th.dataset.key = key;
      th.onclick = () => { sort.up = sort.by === key ? !sort.up : key === 'name' || key === 'loss'; sort.by = key; draw(); };
    }
    make('th', '', head);
    const number = (v, n) => (v === null ? '–' : v.toFixed(n));
    for (const p of probes) {
      const row = make('tr', '', table);
      const first = make('td', '', row), tick = make('input', '', first);
      Object.assign(tick, { type: 'checkbox', checked: ticked.has(p.name) });
      tick.onchange = () => { tick.checked ? ticked.add(p.name) : ticked.delete(p.name); draw(); };
      make('span', '', first, ` ${p.name}`).style.color = colour.get(p.name) || '';
      for (const t of [number(p.loss, 3), number(p.score, 1), number(p.best, 1), p.state]) make('td', '', row, t);
      const last = make('td', '', row);
      if (p.state === 'training') make('button', '', last, 'stop').onclick = () => model.send({ type: 'stop', probe: p.name });
    }
  }
  model.on('change:probes change:steps change:text change:over', draw);
  draw();
}

export default { render };
