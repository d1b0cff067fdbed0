"Whatever the codec and the container: the right frames, the same pixels, and errors with their place"

import os
import pickle
import random
import wave

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import SIDE, WHOLE, number, picture, write_video

from fmhar.datasets import video
from fmhar.datasets.containers import frame_times, open_video, read_packets
from fmhar.datasets.video import Transform, damaged_frames, sweep, sweep_crops, video_info
from fmhar.errors import InputError, MissingVideo, VideoError
from fmhar.features.pipeline import Job, decode

N = 100
RNG = np.random.default_rng(0)


def x264(**params):
    return {'x264-params': ':'.join(f'{k.replace("_", "-")}={v}' for k, v in params.items())}


FILES = {
    'plain.mp4': {},
    'plain.mkv': {},
    'plain.ts': {},  # cannot be sought exactly
    'plain.avi': {},  # numbers packets as they are stored
    'open_gop.mp4': x264(open_gop=1, keyint=20, scenecut=0, bframes=3),
    'open_gop.ts': x264(open_gop=1, keyint=20, scenecut=0, bframes=3),
    'intra_refresh.mp4': x264(intra_refresh=1, keyint=20, bframes=2),  # key frames are none
    'short_gop.mp4': x264(keyint=2, scenecut=0, bframes=3),
    'no_b.mp4': dict(tune='zerolatency'),
    'fragmented.mp4': dict(to={'movflags': 'frag_keyframe+empty_moov'}),
    'variable_rate.mp4': dict(times=np.cumsum(RNG.integers(1, 6, N))),
    'starts_late.mkv': dict(times=np.arange(50, 50 + N)),
    '444.mp4': dict(pix_fmt='yuv444p'),
    'grey.mp4': dict(pix_fmt='gray'),
    'mpeg4.mp4': dict(codec='mpeg4', bf=2, g=20),
    'mpeg4.avi': dict(codec='mpeg4', bf=2, g=20),
    'mjpeg.avi': dict(codec='mjpeg', pix_fmt='yuvj420p'),
    'vp9.webm': dict(codec='libvpx-vp9', g=30, deadline='realtime', cpu_used=8),
    'hevc.mp4': dict(codec='libx265', **{'x265-params': 'keyint=30:bframes=3:log-level=none'}),
    'raw.h264': {},  # has no times at all
}


@pytest.fixture(scope='module', params=FILES)
def file(request, tmp_path_factory):
    options = FILES[request.param]
    if options.get('codec', 'libx264') not in av.codecs_available:
        pytest.skip(f'this FFmpeg has no {options["codec"]}')
    return write_video(tmp_path_factory.mktemp('videos') / request.param, N, **options)


def plain(path, transform=WHOLE):
    "Every frame, decoded by PyAV from start to end without any cleverness"
    resize = video._Resizer(transform)
    with av.open(path) as container:
        return [resize(frame) for frame in container.decode(video=0)]


def test_right_frames_and_the_same_pixels(file):
    frames = plain(file)
    assert [number(f) for f in frames] == list(range(N))
    info = video_info(file)
    assert (info.n_frames, info.missing) == (N, 0)
    rng = np.random.default_rng(1)
    singles = [[i] for i in (0, 1, 2, 19, 20, 21, 59, 60, 61, 98, 99)]
    for wanted in [*singles, range(N), *(rng.choice(N, 12, replace=False) for _ in range(4))]:
        got = list(sweep(file, wanted, WHOLE))
        assert [i for i, _ in got] == sorted(wanted)
        assert all(np.array_equal(f, frames[i]) for i, f in got), f'{file.name}, {list(wanted)}'


def test_edit_list_hides_frames(tmp_path):
    "Frames before time zero are in the file but not in the video"
    path = write_video(tmp_path / 'a.mp4', 60, times=np.arange(-20, 40), g=30)
    info = video_info(path)
    assert (info.n_frames, info.missing) == (40, 0)
    assert {i: number(f) for i, f in sweep(path, [0, 7, 39], WHOLE)} == {0: 20, 7: 27, 39: 59}


def test_spares_frames_that_nobody_needs(tmp_path, monkeypatch):
    path = write_video(tmp_path / 'a.mp4', N, g=50, bf=3, sc_threshold=0)
    decoded, frames_of = [], video._frames

    def watched(*args):
        frames, sound = frames_of(*args)
        decoded.extend(number(WHOLE.cut(f.to_ndarray(format='rgb24'))) for f in frames)
        return frames, sound

    monkeypatch.setattr(video, '_frames', watched)
    assert [i for i, _ in sweep(path, [70], WHOLE)] == [70]
    assert 40 <= min(decoded) and max(decoded) == 70 and len(decoded) < 25


@pytest.mark.parametrize('rotation', [0, 90, 180, -90])
def test_rotation_is_undone(tmp_path, rotation):
    path = write_video(tmp_path / 'a.mp4', 1, rotation=rotation, pix_fmt='yuv444p', crf=1)
    turned = np.rot90(picture(0), rotation // 90).transpose(2, 0, 1)  # counter-clockwise
    ((_, frame),) = sweep(path, [0], WHOLE)
    assert np.abs(frame.astype(int) - turned).mean() < 3


def test_rotation_swaps_the_sides(tmp_path):
    with av.open(tmp_path / 'a.mp4', 'w') as c:
        s = c.add_stream('libx264', 30, width=96, height=64, pix_fmt='yuv420p')
        s.set_display_rotation(90)
        c.mux(s.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8))))
        c.mux(s.encode())
    info = video_info(tmp_path / 'a.mp4')
    assert (info.width, info.height, info.fps, info.codec) == (64, 96, 30.0, 'h264')


def test_channels_are_rgb_and_areas_are_averaged(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[..., 0] = 200
    picture[::2] = 100, 0, 0
    with av.open(tmp_path / 'a.mkv', 'w') as c:
        s = c.add_stream('ffv1', 30, width=64, height=64, pix_fmt='bgr0')
        c.mux(s.encode(av.VideoFrame.from_ndarray(picture)))
        c.mux(s.encode())
    ((_, frame),) = sweep(tmp_path / 'a.mkv', [0], Transform(32, 32))
    assert np.abs(frame[0].astype(int) - 150).max() <= 2 and frame[1:].max() <= 2


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600), st.data())
def test_the_crop_always_fits(width, height, resize, data):
    t = Transform(resize, data.draw(st.integers(1, resize)))
    w, h = t.size(width, height)
    assert min(w, h) == resize and max(w, h) == max(width, height) * resize // min(width, height)
    if w * h < 10**6:
        assert t.cut(np.zeros((h, w, 3), np.uint8)).shape == (3, t.crop, t.crop)


@given(st.integers(20, 400), st.integers(20, 400), st.integers(1, 20))
def test_three_squares_cover_the_long_side(width, height, crop):
    "First and last touch the ends, the middle is the centre, nothing of the short side is lost"
    t = Transform(20, crop).tight
    w, h = t.size(width, height)
    rows, columns = np.mgrid[:h, :w]
    squares = [t.cut(np.stack([rows, columns, rows], -1), c) for c in ('first', 'middle', 'last')]
    assert all(s.shape == (3, crop, crop) for s in squares)
    top, left = ([int(s[i].min()) for s in squares] for i in (0, 1))
    assert {0} in (set(top), set(left))
    assert (top[0], left[0]) == (0, 0) and (top[2], left[2]) == (h - crop, w - crop)
    assert (top[1], left[1]) == ((h - crop) // 2, (w - crop) // 2)
    np.testing.assert_array_equal(squares[1], t.cut(np.stack([rows, columns, rows], -1)))


@pytest.mark.parametrize('rotation', [0, 90])
def test_three_squares_of_a_frame(tmp_path, rotation):
    path = write_video(tmp_path / 'a.mp4', 30, rotation=rotation)
    wanted = [(7, c) for c in ('last', 'centre', 'first', 'middle')] + [(20, 'centre')]
    got = dict(sweep_crops(path, wanted, Transform(SIDE, 32)))
    assert list(got) == sorted(wanted)
    plain = dict(sweep(path, [7, 20], Transform(SIDE, 32)))
    assert np.array_equal(got[7, 'centre'], plain[7]) and np.array_equal(
        got[20, 'centre'], plain[20]
    )
    tight = dict(sweep(path, [7], Transform(32, 32)))[7]
    assert all(np.array_equal(got[7, c], tight) for c in ('first', 'middle', 'last'))  # a square


@pytest.mark.parametrize('crop', [0, 225])
def test_impossible_crop(crop):
    with pytest.raises(InputError, match='0 < crop <= resize'):
        Transform(224, crop)


def failing(path, wanted):
    "Frames that came before the error, and the error"
    got = []
    with pytest.raises(VideoError) as e:
        for i, frame in sweep(path, wanted, WHOLE):
            assert number(frame) == i
            got.append(i)
    assert str(path) in str(e.value)
    return got, e.value


def test_not_a_video(tmp_path):
    (tmp_path / 'text.mp4').write_text('not a video at all')
    (tmp_path / 'empty.mp4').touch()
    with wave.open(str(tmp_path / 'sound.mp4'), 'wb') as w:
        w.setparams((1, 2, 8000, 0, 'NONE', ''))
        w.writeframes(bytes(16000))
    good = write_video(tmp_path / 'good.mp4', 30).read_bytes()
    (tmp_path / 'headless.mp4').write_bytes(good[: len(good) * 2 // 3])  # the index is at the end
    what = dict(
        text='Not a readable video',
        empty='0 bytes',
        sound='audio',
        headless='Not a readable video',
        gone='Video not found',
    )
    for name, message in what.items():
        got, error = failing(tmp_path / f'{name}.mp4', [0, 3])
        assert got == [] and message in str(error) and error.position is None
        assert isinstance(error, MissingVideo) == (name == 'gone')
        with pytest.raises(VideoError, match=message):
            video_info(tmp_path / f'{name}.mp4')


@pytest.mark.parametrize('name', ['a.mkv', 'a.mp4'])
def test_a_file_that_was_cut_gives_its_good_frames_first(tmp_path, name):
    to = {'movflags': 'faststart'} if name == 'a.mp4' else {}
    data = write_video(tmp_path / name, N, to=to, g=25).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    info = video_info(tmp_path / name)
    n = info.n_frames
    assert 30 < n < 90 and n + info.missing == (N if name == 'a.mp4' else n)  # MKV lists key frames
    got, error = failing(tmp_path / name, range(0, N, 5))
    assert got and error.position == got[-1] + 5 and error.position >= n - 5


def test_damage_half_way(tmp_path):
    data = bytearray(write_video(tmp_path / 'a.mp4', N, g=20, sc_threshold=0).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    (tmp_path / 'a.mp4').write_bytes(data)
    got, error = failing(tmp_path / 'a.mp4', range(N))
    lost = sorted({*range(N)} - {*got})
    assert error.position == lost[0] > 20 and f'{len(lost)} of the wanted' in str(error)
    times = frame_times(*open_video(tmp_path / 'a.mp4'))
    keys = np.searchsorted(times.shown, times.keys)
    assert 0 < len(lost) <= 40 and lost[-1] + 1 in keys  # up to the next sound key frame
    assert lost == list(range(lost[0], lost[-1] + 1)) == damaged_frames(tmp_path / 'a.mp4')
    assert [i for i, _ in sweep(tmp_path / 'a.mp4', [5, 95], WHOLE)] == [5, 95]


def silently_wrong(path, sound):
    "Of 60 injuries to a frame, how often does a later one come out wrong without an error?"
    data, rng, wrong = path.read_bytes(), random.Random(2), 0
    with av.open(path) as c:
        packets = [p for p in c.demux(video=0) if p.size]
    order = sorted(range(N), key=lambda i: packets[i].pts)
    for _ in range(60):
        i = rng.randrange(2, N - 6)
        injured, pos = bytearray(data), packets[i].pos
        for k in range(40):
            injured[pos + 6 + k] ^= rng.randrange(1, 256)
        later = min(N - 1, order.index(i) + rng.randrange(1, 6))
        if packets[i].is_keyframe or packets[i].size < 52:
            continue
        hurt = path.with_name(f'hurt{path.suffix}')
        hurt.write_bytes(injured)
        video._TIMES.clear()
        try:
            wrong += not np.array_equal(dict(sweep(hurt, [later], WHOLE))[later], sound[later])
        except VideoError:
            pass
    return wrong


def test_a_destroyed_frame_is_not_hidden_by_sparing(tmp_path, monkeypatch):
    "The sweep spares frames that nobody needs, and finds as much damage as one that decodes all"
    path = write_video(tmp_path / 'a.mp4', N, g=50, bf=3)
    sound = dict(sweep(path, range(N), WHOLE))
    sparing = silently_wrong(path, sound)
    monkeypatch.setattr(video, 'SPARING', ())
    assert sparing <= silently_wrong(path, sound) < 20


def test_damage_costs_the_clips_that_show_it_and_no_others(tmp_path):
    path = write_video(tmp_path / 'a.mp4', N, g=20, sc_threshold=0)
    data = bytearray(path.read_bytes())
    with av.open(path) as c:
        hurt = [p for p in c.demux(video=0) if p.size][50]
    data[hurt.pos : hurt.pos + hurt.size] = bytes(hurt.size)
    path.write_bytes(data)
    lost = damaged_frames(path)
    clips = {f'{i}': (i, i + 2, i + 4) for i in range(0, N - 4, 5)}
    for kind in ('image', 'video'):
        *got, last = decode(Job(str(path), kind, clips), WHOLE)
        assert isinstance(last.error, VideoError) and last.error.position in lost
        assert all(number(f) == i for d in got for i, f in zip(d.unit, d.frames))
        whole = {c for c in clips.values() if not {*c} & {*lost}}
        assert {d.unit for d in got} == (whole if kind == 'video' else {
            (i,) for c in clips.values() for i in c if i not in lost})  # fmt: skip
    assert 0 < len(lost) < 30 and len(whole) > 12


@pytest.mark.parametrize('name', ['plain.mp4', 'open_gop.mp4'])
def test_whether_others_need_a_frame_is_read_as_the_decoder_reads_it(tmp_path, name):
    path = write_video(tmp_path / name, N, **FILES[name])
    container, stream = open_video(path)
    with container:
        spared = [p.pts for p in read_packets(container, stream)
                  if video._needed_by_none(p, stream.codec_context)]  # fmt: skip
    container, stream = open_video(path)
    with container:
        stream.codec_context.skip_frame = 'NONREF'
        decoded = [f.pts for f in container.decode(stream)]
        every = frame_times(*open_video(path)).shown.tolist()
    assert spared and sorted([*spared, *decoded]) == every


def test_a_rectangle_is_cut_out_before_resizing(tmp_path):
    path = write_video(tmp_path / 'a.mp4', 20, pix_fmt='yuv444p', crf=1)
    (_, half), (_, all_) = sweep_crops(path, [(7, '0 0 64 64'), (7, 'centre')], WHOLE)
    assert np.abs(half.astype(int) - all_).mean() < 3
    ((_, part),) = sweep_crops(path, [(7, '0 32 32 32')], Transform(32, 32))
    assert np.abs(part.astype(int) - all_[:, 32:, :32]).mean() < 3
    with pytest.raises(InputError, match='within 64 x 64 pixels'):
        next(sweep_crops(path, [(7, '40 0 32 32')], WHOLE))


def test_frame_times_are_kept_while_the_file_is_the_same(tmp_path, monkeypatch):
    calls, read = [], video.frame_times
    monkeypatch.setattr(video, 'frame_times', lambda *a: calls.append(1) or read(*a))
    path = write_video(tmp_path / 'a.mp4', 40)
    for _ in range(3):
        assert [number(f) for _, f in sweep(path, [5, 39], WHOLE)] == [5, 39]
    assert len(calls) == 1
    write_video(path, 20)
    assert [number(f) for _, f in sweep(path, [5, 19], WHOLE)] == [5, 19] and len(calls) == 2
    for i in range(video.KEPT + 3):
        next(sweep(write_video(tmp_path / f'{i}.mp4', 2), [1], WHOLE))
    assert len(video._TIMES) <= video.KEPT


@pytest.mark.parametrize('position', [N, 2 * N, -1])
def test_no_such_frame(tmp_path, position):
    path = write_video(tmp_path / 'a.mp4', N)
    got, error = failing(path, [5, position])
    assert got == [5] and error.position == position
    assert f'{N} frames' in str(error)


def test_error_crosses_processes_whole(tmp_path):
    _, error = failing(write_video(tmp_path / 'a.mp4', 9), [9])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.position) == (VideoError, str(error), 9)


def test_nothing_wanted(tmp_path):
    assert list(sweep(write_video(tmp_path / 'a.mp4', 3), [])) == []


def write_frames(folder, numbers, name='{:06d}.png'):
    from PIL import Image

    folder.mkdir()
    for i in numbers:
        Image.fromarray(picture(i)).save(folder / name.format(i))
    return folder


@pytest.mark.parametrize('first, name', [(0, '{:06d}.png'), (1, 'img_{:05d}.jpg'), (1, 'f{}.png')])
def test_folder_of_frames(tmp_path, first, name):
    folder = write_frames(tmp_path / 'frames', range(first, first + 12), name)
    (folder / 'notes.txt').write_text('not a frame')
    assert [(i, number(f) - first) for i, f in sweep(folder, [11, 2, 0], WHOLE)] == [
        (0, 0),
        (2, 2),
        (11, 11),
    ]
    info = video_info(folder)
    assert (info.n_frames, info.width, info.height, np.isnan(info.fps)) == (12, SIDE, SIDE, True)
    got, error = failing(folder, [12]) if first == 0 else ([], None)
    assert error is None or (error.position, '12 frames' in str(error)) == (12, True)


def test_folder_with_a_gap_or_a_broken_frame(tmp_path):
    folder = write_frames(tmp_path / 'frames', range(6))
    (folder / '000004.png').write_bytes(b'broken')
    got, error = failing(folder, range(6))
    assert got == [0, 1, 2, 3, 5] and error.position == 4
    (folder / '000003.png').unlink()
    assert 'none after 000002.png' in str(failing(folder, [0])[1])
    (tmp_path / 'none').mkdir()
    assert 'Not a folder of numbered frames' in str(failing(tmp_path / 'none', [0])[1])


@pytest.mark.parametrize('name', ['plain.mp4', 'variable_rate.mp4', 'open_gop.mp4'])
def test_torchcodec_gives_the_same_frames(tmp_path, name):
    "Within two grey levels on average: it turns a frame to RGB before scaling, we after"
    pytest.importorskip('torchcodec', exc_type=(ImportError, RuntimeError))
    path = write_video(tmp_path / name, N, **FILES[name])
    wanted = [0, 3, 20, 21, 59, 60, 61, 99]
    ours, theirs = (dict(sweep(path, wanted, WHOLE, decoder=d)) for d in ('pyav', 'torchcodec'))
    assert [number(f) for f in theirs.values()] == wanted
    assert max(np.abs(ours[i].astype(int) - theirs[i]).mean() for i in wanted) < 2
    with pytest.raises(VideoError, match=f'{N} frames'):
        list(sweep(path, [N], WHOLE, decoder='torchcodec'))


def test_unknown_decoder(tmp_path):
    with pytest.raises(InputError, match='pyav, torchcodec'):
        next(sweep(tmp_path / 'a.mp4', [0], decoder='decord'))


def test_what_is_no_file_is_named_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mp4')
    (tmp_path / 'loop.mp4').symlink_to(tmp_path / 'loop.mp4')
    for name, what in {
        'pipe.mp4': 'a named pipe',
        'loop.mp4': 'Not a readable file',
        'x' * 5000: 'Not a readable file',
        'a\0b.mp4': 'null byte',
    }.items():
        with pytest.raises(VideoError, match=what):
            video_info(tmp_path / name)


def test_pictures_that_a_system_leaves_are_no_frames(tmp_path):
    folder = write_frames(tmp_path / 'frames', range(3))
    (folder / '._000000.png').write_bytes(b'macOS')
    assert [number(f) for _, f in sweep(folder, [0, 1, 2], WHOLE)] == [0, 1, 2]
