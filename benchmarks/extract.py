"""Feature extraction end to end, beside what bounds it and beside the usual recipe, in one run.

(a) the bare forward on frames in memory and the bare decode, each alone; on a CPU, where both use
    the same cores, the limit is their sum, on a GPU the slower of the two
(b) `fmhar.features.extract` from H.264 files to a store
(c) the usual recipe: a DataLoader that opens the file and seeks for every clip, the Hugging Face
    processor, the float32 model with eager attention, torch.save per clip

Segments last three seconds and have three clips each, as in the paper (Sec. 3.5), or `--clips 1`.

    python benchmarks/extract.py --backbone dinov2-small-imgfocus
    python benchmarks/extract.py --backbone facebook/dinov2-base --weights random
    python benchmarks/extract.py --compile   # also the forward under torch.compile
    python benchmarks/extract.py --device cuda --backbone facebook/dinov2-large --weights random
"""

import argparse
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from fmhar.backbones.load import load_backbone, load_weights, random_weights
from fmhar.backbones.sources import find_source
from fmhar.datasets.video import sweep
from fmhar.features.extraction import extract
from fmhar.features.options import Clips, Reading
from fmhar.features.store import FeatureStore


def film(path: Path, n_frames: int, seed: int, width: int, height: int):
    "An H.264 file like a camera's: texture, things that move, sensor noise"
    rng = np.random.default_rng(seed)
    scene = np.kron(rng.integers(40, 200, (height // 16, width // 16)), np.ones((16, 16)))
    grain = rng.normal(0, 2.5, (8, height, width))
    things = rng.integers(0, 255, (6, 160, 160))
    with av.open(path, 'w') as container:
        stream = container.add_stream('libx264', 30, width=width, height=height, pix_fmt='yuv420p')
        stream.options = {'preset': 'fast', 'crf': '26'}
        for t in range(n_frames):
            image = scene + grain[t % 8]
            for i, thing in enumerate(things):
                y = int((0.5 + 0.4 * np.sin(t / 40 + i)) * (height - 160))
                x = int((0.5 + 0.4 * np.cos(t / 55 + 2 * i)) * (width - 160))
                image[y : y + 160, x : x + 160] = thing
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), 'gray')
            container.mux(stream.encode(frame.reformat(format='yuv420p')))
        container.mux(stream.encode(None))


def film_set(root: Path, n_videos: int, chunks: int, width: int, height: int) -> pd.DataFrame:
    "Videos of three-second chunks, as segments"
    rows = []
    for v in range(n_videos):
        path = root / f'{v}.mp4'
        film(path, 90 * chunks, v, width, height)
        rows += [(str(path), 90 * i, 90 * i + 90, f'{v} {i}') for i in range(chunks)]
    segments = pd.DataFrame(rows, columns=['path', 'start', 'end', 'event'])
    segments = segments.assign(view='front', subject='s', label='x', split='test', fps=30.0)
    segments.attrs = dict(classes=['x'], trained_view='front')
    return segments


class ClipsOfFiles(torch.utils.data.Dataset):
    "Opens the file and seeks, for every clip"

    def __init__(self, clips: pd.DataFrame, processor):
        self.clips, self.processor = clips, processor

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        path, wanted = self.clips.path[i], list(self.clips.frames[i])
        images = {}
        with av.open(path) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate
            container.seek(int(wanted[0] / rate / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                index = round(frame.pts * stream.time_base * rate)
                if index in wanted:
                    images[index] = frame.to_ndarray(format='rgb24')
                if index >= wanted[-1]:
                    break
        pixels = self.processor([images[f] for f in wanted], return_tensors='pt')
        return pixels.pixel_values


def usual_recipe(clips, model, processor, folder: Path, device, workers: int):
    loader = torch.utils.data.DataLoader(ClipsOfFiles(clips, processor), num_workers=workers)
    for i, pixels in enumerate(loader):
        with torch.no_grad():
            out = model(pixels[0].to(device)).last_hidden_state.cpu()
        torch.save(out, folder / f'{i}.pt')


def bare_decode(clips, transform):
    "Every wanted frame of every video once, one thread a core"
    wanted = {p: {f for c in g.frames for f in c} for p, g in clips.groupby('path')}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda p: sum(1 for _ in sweep(p, wanted[p], transform)), wanted))


def bare_forward(frames, backbone, passes: int):
    for _ in range(passes):
        cls, tokens = backbone.forward(frames)
        cls.cpu(), tokens.cpu()


def peak(precision: str, device) -> float:
    "The most that a large matrix product reaches here, FLOP/s"
    dtype = dict(bf16=torch.bfloat16, fp32=torch.float32, fp16=torch.float16)[precision]
    n = 8192 if device.type == 'cuda' else 3072
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(clock(lambda: a @ b, device)[0] for _ in range(8))


def clock(work, device) -> tuple[float, float]:
    "Seconds on the wall, and seconds of processor time with those of child processes"
    wall, cpu = time.perf_counter(), processor_seconds()
    work()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - wall, processor_seconds() - cpu


def processor_seconds() -> float:
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


class Utilisation:
    "Samples of what the driver calls the GPU's utilisation, in percent, while the block runs"

    def __init__(self, device):
        self.device, self.samples, self.done = device, [], threading.Event()

    def __enter__(self):
        if self.device.type == 'cuda':
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _watch(self):
        gpu = torch.cuda.get_device_properties(self.device).uuid
        ask = 'nvidia-smi', '-i', f'GPU-{gpu}', '--query-gpu=utilization.gpu'
        while not self.done.wait(0.2):
            out = subprocess.run([*ask, '--format=csv,noheader,nounits'], capture_output=True)
            self.samples += [float(out.stdout)] if out.returncode == 0 else []

    def __exit__(self, *error):
        self.done.set()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--backbone', default='dinov2-small-imgfocus', help='an image encoder')
    parser.add_argument('--weights', help="'random' or a directory")
    parser.add_argument('--videos', type=int, default=4)
    parser.add_argument('--chunks', type=int, default=3, help='three-second chunks in a video')
    parser.add_argument('--clips', type=int, default=3, help='of each chunk')
    parser.add_argument('--size', type=int, nargs=2, default=(1280, 1024), help='of the videos, px')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--workers', type=int, nargs='*', help='decoding threads of (b)')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--compile', action='store_true', help='also the forward, compiled')
    args = parser.parse_args()

    root = Path(tempfile.mkdtemp())
    segments = film_set(root, args.videos, args.chunks, *args.size)
    choice = Clips(test=args.clips, augmentation=None)
    backbone = load_backbone(args.backbone, weights=args.weights, device=args.device)
    device = backbone.device
    clips = choice.choose(segments, backbone.n_frames)
    frames = torch.randint(256, (backbone.batch_size, 3, backbone.size, backbone.size))
    frames = frames.to(torch.uint8)

    compiled = None
    if args.compile:
        options = dict(weights=args.weights, device=args.device)
        compiled = load_backbone(args.backbone, **options, compile=True)
        compiling = clock(lambda: bare_forward(frames, compiled, 1), device)[0]

    source = find_source(args.backbone, args.weights, None)
    build = partial(random_weights, seed=0) if args.weights == 'random' else load_weights
    model = build(source.family, source.config).eval().to(device)
    model.set_attn_implementation('eager')
    processor = transformers.BitImageProcessor(
        size={'shortest_edge': source.pixels.resize},
        crop_size={'height': backbone.size, 'width': backbone.size},
        image_mean=source.pixels.mean,
        image_std=source.pixels.std,
    )
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, 3, backbone.size, backbone.size, device=device))
    per_frame = flops.get_total_flops()

    n_frames = clips.explode('frames').groupby('path').frames.nunique().sum()  # that are wanted
    passes = max(1, n_frames // len(frames))
    utilisation = []
    seconds = {}  # name -> (wall, processor) seconds a wanted frame, of each round
    for r in range(args.rounds):
        work = {
            'forward alone': lambda: bare_forward(frames, backbone, passes),
            'decode alone': lambda: bare_decode(clips, backbone.transform),
        }
        if compiled is not None:
            work['forward, compiled'] = lambda: bare_forward(frames, compiled, passes)
        for w in args.workers or [None]:
            store = FeatureStore(root / f'store{r}-{w}')
            options = dict(clips=choice, tokens=True, reading=Reading(workers=w), progress=False)
            work[f'ours, workers={w}'] = partial(extract, segments, backbone, store, **options)
        work['usual recipe'] = lambda: usual_recipe(
            clips, model, processor, root, device, os.cpu_count()
        )
        for name, job in work.items():
            n = passes * len(frames) if name.startswith('forward') else n_frames
            with Utilisation(device) as used:
                seconds.setdefault(name, []).append([t / n for t in clock(job, device)])
            if name.startswith('ours'):
                utilisation += used.samples

    table = pd.DataFrame({name: np.median(v, 0) for name, v in seconds.items()}).T
    table.columns = ['wall', 'processor']
    alone = table.loc[['forward alone', 'decode alone']]
    on_cpu = device.type == 'cpu'  # there both use the same cores
    table.loc['limit'] = alone.sum() if on_cpu else alone.max()
    most = peak(backbone.precision, device)
    shown = pd.DataFrame({'clips/s': len(clips) / n_frames / table.wall})
    shown['frames/s'] = 1 / table.wall
    shown['of the forward'] = table.wall['forward alone'] / table.wall
    shown['of the limit'] = table.wall['limit'] / table.wall
    shown['x usual'] = table.wall['usual recipe'] / table.wall
    shown[f'of {backbone.precision} peak'] = per_frame / table.wall / most
    shown.loc['decode alone', shown.columns[-1]] = float('nan')  # no matrix product in it
    shown['CPU ms a frame'] = 1000 * table.processor
    shown['CPU x usual'] = table.processor['usual recipe'] / table.processor
    machine = f'{os.cpu_count()} CPU cores' if on_cpu else torch.cuda.get_device_name(device)
    print(backbone)
    print(f'{machine}, {torch.get_num_threads()} threads; {args.size[0]} x {args.size[1]} H.264')
    print(f'{len(segments)} segments, {len(clips)} clips, {n_frames} different frames')
    print(f'{per_frame / 1e9:.1f} GFLOP a frame; a large product {most / 1e9:.0f} GFLOP/s')
    print(shown.round(2).to_string())
    if compiled is not None:
        print(f'torch.compile took {compiling:.0f} s for the first pass')
    if utilisation:
        print(f'GPU utilisation in (b): {np.mean(utilisation):.0f} %')
    shutil.rmtree(root)


if __name__ == '__main__':
    main()
