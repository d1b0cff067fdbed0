// Where a head looks: the frames of a clip in every camera with the weights of its patches over them,
// and the weight of each frame below. Pictures and weights come as bytes, one message a camera.

function make(tag, cls, parent, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

const BAR = 34; // pixels of the curve below the frames

class Strip {
  constructor(parent, name) {
    this.box = make('div', 'fmhar-strip', parent);
    make('div', 'fmhar-view', this.box, name);
    this.canvas = make('canvas', '', this.box);
    this.text = make('div', 'fmhar-hint', this.box, '…');
  }

  async fill(message, buffers) {
    this.m = message;
    this.weights = new Float32Array(buffers[1].buffer.slice(buffers[1].byteOffset, buffers[1].byteOffset + buffers[1].byteLength));
    this.text.textContent = message.text;
    this.picture = await createImageBitmap(new Blob([buffers[0]], { type: 'image/jpeg' }));
  }

  // weights of one attention head, or their mean: T x (rows x columns)
  of(head) {
    const { heads, frames, rows, columns } = this.m, n = frames * rows * columns, out = new Float32Array(n);
    for (let h = 0; h < heads; h++) {
      if (head >= 0 && h !== head) continue;
      for (let i = 0; i < n; i++) out[i] += this.weights[h * n + i] / (head >= 0 ? 1 : heads);
    }
    return out;
  }

  draw(head, strength, width) {
    if (!this.picture) return;
    const { frames, rows, columns, side } = this.m, k = window.devicePixelRatio || 1;
    const size = Math.max(28, Math.floor(width / frames)), w = size * frames, h = size + BAR;
    Object.assign(this.canvas, { width: w * k, height: h * k });
    Object.assign(this.canvas.style, { width: `${w}px`, height: `${h}px` });
    const g = this.canvas.getContext('2d'), all = this.of(Math.min(head, this.m.heads - 1));
    g.scale(k, k);
    const per = rows * columns, top = Math.max(...all) || 1, sums = [];
    for (let t = 0; t < frames; t++) {
      g.drawImage(this.picture, t * side, 0, side, side, t * size, 0, size - 1, size);
      let sum = 0;
      for (let i = 0; i < per; i++) {
        const v = all[t * per + i];
        sum += v;
        if (per < 2) continue;
        g.fillStyle = `rgba(230,20,0,${(strength * v) / top})`;
        const x = (i % columns) * (size / columns), y = Math.floor(i / columns) * (size / rows);
        g.fillRect(t * size + x, y, size / columns, size / rows);
      }
      sums.push(sum);
    }
    const most = Math.max(...sums) || 1;
    g.fillStyle = '#0072b2';
    sums.forEach((s, t) => g.fillRect(t * size + 2, size + 2 + (BAR - 14) * (1 - s / most), size - 5, (BAR - 14) * (s / most)));
    g.fillStyle = getComputedStyle(this.box).color;
    g.font = '10px sans-serif';
    g.textAlign = 'center';
    sums.forEach((s, t) => g.fillText(`${(100 * s).toFixed(0)}`, (t + 0.5) * size, h - 2));
  }
}

function render({ model, el }) {
  const root = make('div', 'fmhar-player fmhar-looking', el);
  const bar = make('div', 'fmhar-choices', root);
  const label = make('label', 'fmhar-choice', bar, 'Attention head ');
  const head = make('select', '', label);
  const more = make('label', 'fmhar-choice', bar, 'Overlay ');
  const strength = make('input', '', more);
  Object.assign(strength, { type: 'range', min: 0, max: 1, step: 0.05, value: 0.7 });
  const text = make('span', 'fmhar-hint', bar);
  const grid = make('div', '', root);
  let strips = new Map(), count = 0;

  function draw() {
    const width = Math.min(root.clientWidth - 24, 1080);
    for (const s of strips.values()) s.draw(Number(head.value), Number(strength.value), width);
  }
  function heads(n) {
    if (n === count) return;
    count = n;
    head.replaceChildren();
    const names = n > 1 ? [[-1, `mean of ${n}`]] : [];
    for (let i = 0; i < n; i++) names.push([i, `${i + 1}`]);
    for (const [v, t] of names) { const o = make('option', '', head, t); o.value = v; }
  }
  function start() {
    text.textContent = model.get('text');
    grid.replaceChildren();
    strips = new Map(model.get('views').map(([view, name]) => [view, new Strip(grid, name)]));
  }
  model.on('change:ticket', start);
  model.on('change:text', () => (text.textContent = model.get('text')));
  model.on('msg:custom', async (message, buffers) => {
    const strip = strips.get(message.view);
    if (message.ticket !== model.get('ticket') || !strip) return;
    if (message.type === 'broken') { strip.text.textContent = message.text; return; }
    heads(message.heads);
    await strip.fill(message, buffers);
    draw();
  });
  head.addEventListener('change', draw);
  strength.addEventListener('input', draw);
  const watcher = new ResizeObserver(draw);
  watcher.observe(root);
  start();
  model.send({ type: 'ready' });
  return () => watcher.disconnect();
}

export default { render };
