"""Sixteen frames of every three seconds of a long video: one sweep beside opening and seeking.

All ways run in turn, several rounds, on one file that this script makes; CPU seconds count, since
many videos are decoded at a time. What OpenCV and torchcodec need is left out where they are not
installed. Then a recording of two hours is swept, to show that memory does not grow with length.

    python benchmarks/decode.py
    python benchmarks/decode.py --seconds 30 --rounds 1 --hours 0.2
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from tqdm.auto import tqdm

from fmhar.datasets.clips import even_frames
from fmhar.datasets.containers import count_frames, frame_times, open_video
from fmhar.datasets.video import Transform, _in_order, _Resizer, sweep

CHUNK = 90  # frames, three seconds


def film(path: Path, n: int, width: int, height: int, bitrate: float):
    "A long GOP with B-frames, as cameras and archives have it; blocks move, the sensor is noisy"
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(30, 220, (height // 16 + 1, width // 16 + 1)), np.ones((16, 16)))
    with av.open(path, 'w') as container:
        stream = container.add_stream('libx264', 30, width=width, height=height, pix_fmt='yuv420p')
        stream.bit_rate = int(bitrate)
        stream.options = {'preset': 'fast', 'g': '250', 'bf': '3'}
        for t in tqdm(range(n), 'film', unit='frames', leave=False):
            image = np.roll(scene[:height, :width], t // 4, 1)
            x, y = (
                int(width * (0.4 + 0.3 * np.sin(t / 30))),
                int(height * (0.4 + 0.3 * np.cos(t / 21))),
            )
            image[y : y + height // 5, x : x + width // 5] = rng.integers(0, 255)
            image += rng.normal(0, 2, (height, 1))
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), 'gray')
            container.mux(stream.encode(frame.reformat(format='yuv420p')))
        container.mux(stream.encode(None))


def repeat(path: Path, out: Path, times: int):
    "The same film over and over, its packets copied with later times"
    with av.open(out, 'w') as target:
        for i in range(times):
            with av.open(path) as source:
                stream = source.streams.video[0]
                if i == 0:
                    copy = target.add_stream_from_template(stream)
                    length = int(count_frames(path) / stream.average_rate / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.pts += i * length
                        packet.dts += i * length
                        packet.stream = copy
                        target.mux(packet)


def one_sweep(path, clips):
    return dict(sweep(path, {i for clip in clips for i in clip}, Transform()))


def one_pass(path, clips):
    "Every frame decoded, the wanted ones resized"
    resize, wanted = _Resizer(Transform()), {i for clip in clips for i in clip}
    return {i: resize(f) for i, f in enumerate(_in_order(path)) if i in wanted}


def pyav_per_clip(path, clips):
    resize, frames = _Resizer(Transform()), {}
    container, stream = open_video(path)
    with container:
        times = frame_times(container, stream).shown  # not timed by others either: a matter of ms
    for clip in clips:
        container, stream = open_video(path)
        with container:
            container.seek(int(times[clip[0]]), stream=stream)
            wanted = {int(times[i]): i for i in clip}
            for frame in container.decode(stream):
                if frame.pts in wanted:
                    frames[wanted[frame.pts]] = resize(frame)
                if frame.pts >= times[clip[-1]]:
                    break
    return frames


def opencv_per_clip(path, clips):
    import cv2

    resize, frames = _Resizer(Transform()), {}
    for clip in clips:
        video = cv2.VideoCapture(str(path))
        video.set(cv2.CAP_PROP_POS_FRAMES, clip[0])
        for i in range(clip[0], clip[-1] + 1):
            video.grab()
            if i in clip:
                frames[i] = resize(av.VideoFrame.from_ndarray(video.retrieve()[1], 'bgr24'))
        video.release()
    return frames


def torchcodec_per_clip(path, clips):
    from torchcodec.decoders import VideoDecoder

    resize, frames = _Resizer(Transform()), {}
    for clip in clips:
        decoder = VideoDecoder(str(path), dimension_order='NHWC', num_ffmpeg_threads=1)
        for i, image in zip(clip, decoder.get_frames_at(clip).data):
            frames[i] = resize(av.VideoFrame.from_ndarray(image.numpy()))
    return frames


def torchcodec_once(path, clips):
    from torchcodec.decoders import VideoDecoder

    resize, frames = _Resizer(Transform()), {}
    decoder = VideoDecoder(str(path), dimension_order='NHWC', num_ffmpeg_threads=1)
    for clip in clips:
        for i, image in zip(clip, decoder.get_frames_at(clip).data):
            frames[i] = resize(av.VideoFrame.from_ndarray(image.numpy()))
    return frames


WAYS = {
    'PyAV, open and seek per clip': pyav_per_clip,
    'OpenCV, open and seek per clip': opencv_per_clip,
    'torchcodec, open per clip': torchcodec_per_clip,
    'torchcodec, one decoder': torchcodec_once,
    'PyAV, one pass, every frame': one_pass,
    'fmhar.video.sweep': one_sweep,
}


def compare(path: Path, rounds: int):
    clips = [
        even_frames(s, s + CHUNK, n_clips=1)[0].tolist()
        for s in range(0, count_frames(path), CHUNK)
    ]
    n = sum(map(len, clips))
    truth, cpu, wall, off = one_pass(path, clips), {}, {}, {}
    for _ in range(rounds):
        for name, way in WAYS.items():
            c, w = time.process_time(), time.perf_counter()
            try:
                frames = way(path, clips)
            except (ImportError, RuntimeError) as e:
                off[name] = f'left out: {str(e).splitlines()[0]}'
                continue
            cpu.setdefault(name, []).append(time.process_time() - c)
            wall.setdefault(name, []).append(time.perf_counter() - w)
            apart = [np.abs(frames[i].astype(int) - truth[i]).mean() for i in truth]
            off[name] = 'identical' if max(apart) == 0 else f'{np.mean(apart):.2f} levels apart'
    base = statistics.median(cpu['PyAV, open and seek per clip'])
    print(f'\n{n} frames of {len(clips)} chunks; medians of {rounds} rounds')
    print(f'{"":32}{"frames/CPU s":>14}{"frames/s":>10}{"ratio":>8}   pixels')
    for name in WAYS:
        if name in cpu:
            c, w = statistics.median(cpu[name]), statistics.median(wall[name])
            print(f'{name:32}{n / c:14.1f}{n / w:10.1f}{base / c:8.2f}   {off[name]}')
        else:
            print(f'{name:32}{off[name]}')


def peak(path: Path):
    "Sweep a file in this process and print the frames, the seconds and the most memory it took"
    t, n = time.perf_counter(), 0
    wanted = (
        s + i for s in range(0, count_frames(path) - CHUNK, CHUNK) for i in range(0, CHUNK, 6)
    )
    for _ in sweep(path, wanted, Transform()):
        n += 1
    print(n, time.perf_counter() - t, peak_memory())


def peak_memory() -> float:
    "Most memory this process held, in MB (Linux; ru_maxrss would include the parent's)"
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


def memory(folder: Path, hours: float):
    short = folder / 'short.mp4'
    film(short, 1800, 320, 256, 300e3)
    print(f'\n{"":32}{"frames":>10}{"seconds":>10}{"peak MB":>10}')
    for name, times in (('one minute', 1), (f'{hours:g} hours', round(60 * hours))):
        repeat(short, folder / 'long.mp4', times)
        out = subprocess.check_output([sys.executable, __file__, '--peak', folder / 'long.mp4'])
        n, seconds, mb = map(float, out.split())
        print(f'{name:32}{n:10.0f}{seconds:10.1f}{mb:10.0f}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--seconds', type=int, default=60, help='length of the film')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--hours', type=float, default=2, help='length of the recording for memory')
    parser.add_argument('--peak', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak(args.peak)
    else:
        with tempfile.TemporaryDirectory() as folder:
            film(Path(folder) / 'film.mp4', 30 * args.seconds, 1280, 1024, 4.4e6)
            compare(Path(folder) / 'film.mp4', args.rounds)
            memory(Path(folder), args.hours)
