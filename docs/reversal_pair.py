"The moving picture of the README: a pair of reversals in six rendered cameras. python docs/reversal_pair.py"

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fmhar.datasets.drive_act import PAPER_NAMES
from fmhar.synthetic.cameras import VIEWS
from fmhar.synthetic.studio import render_action

PAIR = 'opening_bottle', 'closing_bottle'
SIZE, N, BAR = (150, 120), 28, 14


def strip(action: str) -> np.ndarray:  # (N, H, W, 3)
    "One action from all cameras, side by side"
    films = [render_action(action, n_frames=N, view=view, size=SIZE) for view in VIEWS]
    return np.concatenate(films, 2)


def caption(text: str, width: int) -> np.ndarray:
    "A line of text, white on dark"
    picture = Image.new('RGB', (width, BAR), (28, 28, 30))
    ImageDraw.Draw(picture).text((4, 1), text, fill='white', font=ImageFont.load_default(11))
    return np.asarray(picture)


names = np.concatenate([caption(PAPER_NAMES.get(v, v), SIZE[0]) for v in VIEWS], 1)
rows = []
for action in PAIR:
    film = strip(action)
    label = caption(action.replace('_', ' ') + ' (rendered)', film.shape[2])
    rows += [np.broadcast_to(label, (N, *label.shape)), film]
film = np.concatenate([np.broadcast_to(names, (N, *names.shape)), *rows], 1)
frames = [Image.fromarray(f).quantize(64, dither=Image.Dither.NONE) for f in film]
out = Path(__file__).with_name('reversal_pair.gif')
frames[0].save(out, save_all=True, append_images=frames[1:], duration=90, loop=0, optimize=True)
print(out.name, f'{out.stat().st_size / 1e6:.1f} MB')
