"""Frames per second of the synthetic set, by number of threads, with and without the encoder.

    python benchmarks/render.py [--height 224] [--seconds 4]

All variants take turns in one run, so that other load on the machine hits all of them; medians and ratios.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fmhar.synthetic.cameras import VIEWS
from fmhar.synthetic.film import encode, h264
from fmhar.synthetic.scripts import SyntheticConfig, script
from fmhar.synthetic.studio import Studio, motion_of, picture_size, pose_table


class Film:
    "A camera of one recording, ready to shoot"

    def __init__(self, view: str, size: tuple[int, int]):
        self.config = SyntheticConfig(size=size)
        recording, studio = script(self.config)[0], Studio(self.config, 1)
        self.size, self.view = picture_size(self.config, view), VIEWS[view]
        self.crew = studio.renderer(view, self.size)
        motion = motion_of(self.config, recording)
        self.poses, self.shown = pose_table(studio.subject, motion, studio.names)

    def shoot(self, seconds: float, encoded: bool) -> float:  # frames per second
        "Film from the beginning, again and again until the time is up"
        start, n = time.perf_counter(), 0

        def frames():
            nonlocal n
            while time.perf_counter() - start < seconds:
                i = n % len(self.poses)
                n += 1
                yield self.crew.frame(self.poses[i], self.shown[i])

        if encoded:
            c = self.config
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / 'film.mp4'
                encode(path, frames(), self.size, c.fps * self.view.rate, h264(c))
        else:
            for _ in frames():
                pass
        return n / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--height', type=int, default=224)
    parser.add_argument('--seconds', type=float, default=2.0)
    parser.add_argument('--rounds', type=int, default=5)
    a = parser.parse_args()
    size = 2 * round(a.height * 1.25 / 2), a.height
    for view in ('inner_mirror', 'kinect_color'):
        films = [Film(view, size) for _ in range(2)]
        for film in films:
            film.shoot(0.2, False)  # compiles
        variants = [(n, encoded) for n in (1, 2) for encoded in (False, True)]
        rates = {v: [] for v in variants}
        with ThreadPoolExecutor(2) as pool:
            for _ in range(a.rounds):
                for n, encoded in variants:
                    shot = [pool.submit(film.shoot, a.seconds, encoded) for film in films[:n]]
                    rates[n, encoded].append(sum(rate.result() for rate in shot))
        base = np.median(rates[1, False])
        width, height = picture_size(SyntheticConfig(size=size), view)
        print(f'{view}, {width} x {height}')
        for (n, encoded), r in rates.items():
            what = 'render + H.264' if encoded else 'render only'
            print(
                f'  {n} thread{"s" if n > 1 else " "} {what:<15}{np.median(r):7.0f} frames/s'
                f'  (best {max(r):.0f})  x {np.median(r) / base:.2f}'
            )


if __name__ == '__main__':
    main()
