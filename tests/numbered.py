"Videos in which every frame shows its own number, so that a test knows which one was decoded"

from fractions import Fraction

import av
import numpy as np

from fmhar.datasets.video import Transform

SIDE = 64  # pixels
WHOLE = Transform(SIDE, SIDE)


def picture(number, side=SIDE):
    "Ten bars, white for 1, the lowest bit first, with some noise so that the codec has work to do"
    row = np.where((number >> np.arange(10)) & 1, 215, 40)[np.arange(side) * 10 // side]
    noise = np.random.default_rng(number).integers(-12, 13, (side, side))
    return np.repeat((row + noise).astype(np.uint8)[..., None], 3, 2)


def number(frame):
    "Number of a decoded frame (3, side, side)"
    side = frame.shape[-1]
    middles = (np.arange(10) * 2 + 1) * side // 20
    return int(((frame[:, :, middles].mean((0, 1)) > 128) << np.arange(10)).sum())


def write_video(
    path,
    n,
    codec='libx264',
    *,
    pix_fmt='yuv420p',
    rate=30,
    times=None,
    rotation=0,
    to=None,
    **options,
):
    "Encode frames 0..n-1; `times` in 1/30 s, `to` are options of the container"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, 'w', options=to or {}) as container:
        stream = container.add_stream(codec, rate, width=SIDE, height=SIDE, pix_fmt=pix_fmt)
        stream.options = {k.replace('_', '-'): str(v) for k, v in options.items()}
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(picture(i))
            if times is not None:
                frame.pts, frame.time_base = int(times[i]), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
