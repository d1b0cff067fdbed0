// Confusion matrices whose cells can be clicked: a canvas each, so that a hundred classes stay fluent.

function make(tag, cls, parent, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

const words = (name) => String(name).replaceAll('_', ' ');

function matrix(parent, m, chosen, choose, tell) {
  const box = make('div', 'fmhar-matrix', parent);
  make('div', 'fmhar-matrix-title', box, m.title);
  const canvas = make('canvas', '', box);
  canvas.dataset.head = m.head;
  const n = m.classes.length, cell = Math.max(9, Math.min(26, Math.floor(420 / n)));
  const font = '11px ' + (getComputedStyle(document.body).fontFamily || 'sans-serif');
  const g = canvas.getContext('2d'), k = window.devicePixelRatio || 1;
  g.font = font;
  const pad = Math.ceil(Math.max(...m.classes.map((c) => g.measureText(words(c)).width))) + 8;
  const size = pad + n * cell + 2;
  Object.assign(canvas, { width: size * k, height: size * k });
  Object.assign(canvas.style, { width: `${size}px`, height: `${size}px` });
  canvas.dataset.pad = pad;
  canvas.dataset.cell = cell;

  function draw(over) {
    const ink = getComputedStyle(box).color || '#222'; // of the theme that is on now
    g.setTransform(k, 0, 0, k, 0, 0);
    g.clearRect(0, 0, size, size);
    g.font = font;
    g.textBaseline = 'middle';
    m.counts.forEach((row, i) => {
      const total = row.reduce((a, b) => a + b, 0);
      g.fillStyle = ink;
      g.globalAlpha = over && over[0] !== i ? 0.55 : 1;
      g.textAlign = 'right';
      g.fillText(words(m.classes[i]), pad - 5, pad + (i + 0.5) * cell);
      g.save();
      g.globalAlpha = over && over[1] !== i ? 0.55 : 1;
      g.translate(pad + (i + 0.5) * cell, pad - 5);
      g.rotate(-Math.PI / 2);
      g.textAlign = 'left';
      g.fillText(words(m.classes[i]), 0, 0);
      g.restore();
      g.globalAlpha = 1;
      row.forEach((count, j) => {
        const share = total ? count / total : 0, x = pad + j * cell, y = pad + i * cell;
        g.fillStyle = share ? `color-mix(in srgb, ${i === j ? '#0072b2' : '#d55e00'} ${18 + 82 * share}%, transparent)` : 'transparent';
        g.fillRect(x, y, cell - 1, cell - 1);
        g.strokeStyle = 'rgba(128,128,128,0.25)';
        g.lineWidth = 1;
        g.strokeRect(x - 0.5, y - 0.5, cell, cell);
        if (count && cell > 15) {
          g.fillStyle = share > 0.45 ? '#fff' : ink;
          g.textAlign = 'center';
          g.fillText(count, x + cell / 2 - 0.5, y + cell / 2);
        }
      });
    });
    g.lineWidth = 1.6;
    g.strokeStyle = ink;
    for (const [a, b] of m.pairs) g.strokeRect(pad + a * cell - 0.5, pad + a * cell - 0.5, (b - a + 1) * cell, (b - a + 1) * cell);
    if (chosen && chosen[0] === m.head) {
      const i = m.classes.indexOf(chosen[1]), j = m.classes.indexOf(chosen[2]);
      g.lineWidth = 3;
      g.strokeStyle = '#cc79a7';
      g.strokeRect(pad + j * cell, pad + i * cell, cell - 1, cell - 1);
    }
  }

  function under(e) {
    const j = Math.floor((e.offsetX - pad) / cell), i = Math.floor((e.offsetY - pad) / cell);
    return i >= 0 && j >= 0 && i < n && j < n ? [i, j] : null;
  }

  canvas.addEventListener('mousemove', (e) => {
    const at = under(e);
    canvas.style.cursor = at && m.counts[at[0]][at[1]] ? 'pointer' : 'default';
    draw(at);
    tell(at ? `${m.counts[at[0]][at[1]]} of ${m.counts[at[0]].reduce((a, b) => a + b, 0)} ` +
      `"${words(m.classes[at[0]])}" are answered "${words(m.classes[at[1]])}"` : '');
  });
  canvas.addEventListener('mouseleave', () => { draw(null); tell(''); });
  canvas.addEventListener('click', (e) => {
    const at = under(e);
    if (at && m.counts[at[0]][at[1]]) choose([m.head, m.classes[at[0]], m.classes[at[1]]]);
  });
  requestAnimationFrame(() => draw(null)); // once it is in the page and has a colour
}

function render({ model, el }) {
  const root = make('div', 'fmhar-player fmhar-mistakes', el);
  const grid = make('div', 'fmhar-matrices', root);
  const hint = make('div', 'fmhar-hint', root);
  const rest = 'Rows are true classes, columns answers; click a cell to watch its clips. Frames: symmetric pairs.';
  hint.textContent = rest;

  function show() {
    grid.replaceChildren();
    const choose = (cell) => { model.set('cell', cell); model.save_changes(); };
    for (const m of model.get('matrices')) matrix(grid, m, model.get('cell'), choose, (t) => (hint.textContent = t || rest));
  }
  model.on('change:matrices change:cell', show);
  show();
}

export default { render };
