"The store under kills, damage and company; extraction against the plain way"

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf

from fmhar import features
from fmhar.backbones.load import load_backbone, quietly
from fmhar.contracts import Features
from fmhar.datasets import clips as clips_
from fmhar.datasets import video
from fmhar.datasets.video import sweep
from fmhar.errors import InputError
from fmhar.features.dataset import FeatureDataset
from fmhar.features.extraction import extract, plan
from fmhar.features.keys import clip_keys
from fmhar.features.options import Clips, Reading, Tokens
from fmhar.features.store import FeatureStore, list_shards, read_shard, remove_shards, verify_shards
from fmhar.files import fingerprint

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)


def write_video(path, n_frames, seed):
    "Coloured noise blocks that change from frame to frame, so that no two frames are alike"
    rng = np.random.default_rng(seed)
    with av.open(path, 'w') as container:
        stream = container.add_stream('libx264', rate=30, width=48, height=32, pix_fmt='yuv420p')
        stream.options = {'g': '10'}
        for _ in range(n_frames):
            image = np.kron(rng.integers(0, 256, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Three videos of 90 frames with nine labelled stretches each, and two encoder folders"
    root = tmp_path_factory.mktemp('data')
    rows = []
    for view in ('front', 'side', 'top'):
        path = write_video(root / f'{view}.mp4', 90, len(rows))
        for i in range(9):
            split = ('train', 'val', 'test')[i % 3]
            start, end = 10 * i - min(i, 3), 10 * i + 10  # some overlap
            label = ('open', 'close')[i % 2]
            rows.append((path, view, f's{i % 3}', f'e{i}', start, end, label, split, 30.0))
    columns = 'path view subject event start end label split fps'.split()
    segments = pd.DataFrame(rows, columns=columns)
    segments.attrs = dict(classes=['open', 'close'], trained_view='front')
    torch.manual_seed(0)
    with quietly():
        tf.Dinov2Model(tf.Dinov2Config(**SMALL, patch_size=7)).save_pretrained(root / 'image')
        config = tf.VideoMAEConfig(
            **SMALL, patch_size=14, intermediate_size=32, num_frames=4, use_mean_pooling=False
        )
        tf.VideoMAEModel(config).save_pretrained(root / 'video')
    for kind in ('image', 'video'):
        tf.BitImageProcessor(size=32, crop_size=28).save_pretrained(root / kind)
    return root, segments


@pytest.fixture(params=['image', 'video'])
def backbone(request, data):
    return load_backbone(data[0] / request.param, n_frames=4)


@pytest.fixture
def image_backbone(data):
    return load_backbone(data[0] / 'image', n_frames=4)


FROZEN = Clips(augmentation=None)


def run(segments, backbone, store, *, clips=FROZEN, tokens=True, **how):
    reading = Reading(**dict(workers=0) | how)
    return extract(
        segments, backbone, store, clips=clips, tokens=tokens, reading=reading, progress=False
    )


def bits(store, clips):
    "All features of the clips, as bytes"
    return store.cls(clips.key).tobytes() + store.tokens(clips.key).tobytes()


@pytest.mark.parametrize('workers', [0, 3])
def test_equals_the_plain_way(data, backbone, tmp_path, workers):
    "Sweeps, shared frames, batches over videos: the same as one clip at a time"
    store = FeatureStore(tmp_path)
    got = run(data[1], backbone, store, workers=workers)
    assert len(got.clips) == 3 * (3 + 3 * 3 + 3 * 3) and got.failed.empty
    for row in got.clips.sample(12, random_state=0).itertuples():
        images = dict(sweep(row.path, row.frames, backbone.transform))
        frames = torch.from_numpy(np.stack([images[f] for f in row.frames]))[None]
        plain = backbone.encode(frames)
        cls, tokens = store.cls([row.key]), store.tokens([row.key])
        np.testing.assert_allclose(cls, plain.cls, atol=2e-2)
        np.testing.assert_allclose(tokens, plain.tokens, atol=2e-2)


def test_shared_frames_are_encoded_once(data, image_backbone, tmp_path):
    got = run(data[1], image_backbone, FeatureStore(tmp_path))
    distinct = {(r.path, f) for r in got.clips.itertuples() for f in r.frames}
    assert got.counts['frames'] == len(distinct) < got.clips.frames.map(len).sum()
    assert set(got.seconds) == {'decode', 'forward', 'write', 'total'}


def test_nothing_is_computed_twice(data, backbone, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path)
    first = run(data[1], backbone, store)

    def refuse(*args):
        raise AssertionError('a frame was decoded again')

    monkeypatch.setattr('fmhar.features.pipeline.sweep_crops', refuse)
    again = run(data[1], backbone, FeatureStore(tmp_path))
    assert again.counts == dict(clips=len(first.clips), stored=len(first.clips), frames=0, failed=0)
    pd.testing.assert_frame_equal(again.clips, first.clips)


def test_cls_first_tokens_later(data, backbone, tmp_path):
    store = FeatureStore(tmp_path)
    cls = run(data[1], backbone, store, tokens=False)
    assert not store.has(cls.clips.key, 'tokens').any()
    both = run(data[1], backbone, store, tokens=Tokens(2))
    assert list(both.clips.key) == list(cls.clips.key)
    assert store.has(both.clips.key, 'tokens2').all()
    assert not store.has(both.clips.key, 'tokens').any()
    assert run(data[1], backbone, store, tokens=False).counts['frames'] == 0


def test_part_by_part_gives_the_same_bits(data, backbone, tmp_path):
    whole, parts = FeatureStore(tmp_path / 'whole'), FeatureStore(tmp_path / 'parts')
    clips = run(data[1], backbone, whole).clips
    order = np.random.default_rng(0).permutation(len(data[1]))
    for i in np.array_split(order, 5):
        run(data[1].iloc[i], backbone, parts)
    assert bits(parts, clips) == bits(whole, clips)


# What a key is made of


def test_key_changes_with_everything_that_matters(data, tmp_path):
    root, segments = data
    path = shutil.copy(segments.path[0], tmp_path / 'v.mp4')
    clips = pd.DataFrame(dict(path=[path], frames=[(0, 1, 2, 3)]))

    def key(folder='image', frames=(0, 1, 2, 3), **kwargs):
        b = load_backbone(root / folder, **(dict(n_frames=4, precision='fp32') | kwargs))
        return clip_keys(clips.assign(frames=[frames]), b)[0]

    keys = [key(), key(frames=(0, 1, 2, 4)), key('video'), key(precision='bf16'), key(size=14)]
    keys += [key(weights='random'), key(weights='random', seed=1), key(layers=(0, -1))]
    other = shutil.copytree(root / 'image', tmp_path / 'other')  # random weights of another network
    config = json.loads((other / 'config.json').read_text())
    (other / 'config.json').write_text(json.dumps(config | dict(layer_norm_eps=1e-3)))
    keys.append(key(other, weights='random'))
    os.utime(path, ns=(1, 1))
    keys.append(key())
    with open(path, 'ab') as f:
        f.write(b'\0')
    os.utime(path, ns=(1, 1))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert (
        key() == keys[-1] and key(n_frames=8) == keys[-1]
    )  # of clips we gave the frames ourselves


def test_frame_folder_has_an_identity(tmp_path):
    (tmp_path / '000.jpg').write_bytes(b'a')
    before = features.video_identity(tmp_path)
    assert features.video_identity(tmp_path) == before
    (tmp_path / '001.jpg').write_bytes(b'a')
    assert features.video_identity(tmp_path) != before


# Broken videos


def test_broken_videos_are_listed_and_the_rest_goes_on(data, image_backbone, tmp_path):
    root, segments = data
    segments = segments.copy()
    gone, text = str(tmp_path / 'gone.mp4'), str(tmp_path / 'text.mp4')
    Path(text).write_text('no video')
    segments.loc[segments.view == 'side', 'path'] = gone
    segments.loc[segments.view == 'top', 'path'] = text
    last = segments[segments.view == 'front'].index[-1]
    segments.loc[last, ['start', 'end']] = 85, 95  # beyond the 90 frames
    for workers in (0, 2):
        store = FeatureStore(tmp_path / f'store{workers}')
        got = run(segments, image_backbone, store, workers=workers)
        failed = got.failed.set_index('view')
        assert set(failed.index) == {'front', 'side', 'top'}
        assert failed.n_clips.to_dict() == dict(front=3, side=21, top=21)
        assert failed.position['front'] == 90 and np.isnan(failed.position['side'])
        assert 'not found' in failed.message['side'] and 'text.mp4' in failed.message['top']
        assert len(got.clips) == 18 and set(got.clips.path) == {segments.path[0]}
        assert got.counts['failed'] == 45
        store.cls(got.clips.key)


def test_an_error_of_ours_is_not_taken_for_a_broken_video(
    data, image_backbone, tmp_path, monkeypatch
):
    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr('fmhar.features.pipeline.sweep_crops', fail)
    for workers in (0, 2):
        with pytest.raises(ZeroDivisionError):
            run(data[1], image_backbone, FeatureStore(tmp_path), workers=workers)


# Crashes

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import pandas as pd, torch
torch.set_num_threads(1)
from fmhar.backbones.load import load_backbone
from fmhar.features.store import FeatureStore, read_shard, shard_files
from fmhar.features.extraction import extract
from fmhar.features import claims
from fmhar.features.options import Clips, Reading

folder, encoder, kind = sys.argv[1:]
segments = pd.read_pickle(Path(folder) / 'segments.pkl')
segments.attrs = dict(classes=['open', 'close'])
backbone = load_backbone(encoder, n_frames=4)
claims.SHARD_BYTES = 0  # a shard a clip

def run(path):
    how = dict(clips=Clips(augmentation=None), reading=Reading(workers=0), progress=False)
    return extract(segments, backbone, FeatureStore(path), tokens=True, **how)

def fork():
    pid = os.fork()
    if pid:
        return pid
    try:
        run(Path(folder) / 'store')
    finally:
        os._exit(0)

rng, store = random.Random(0), Path(folder) / 'store'
store.mkdir()
killed = []
for round in range(6):
    before = len(shard_files(store))
    pids = [fork() for _ in range(2 if kind == 'two' else 1)]
    while len(shard_files(store)) <= before:
        time.sleep(0.001)
    time.sleep(rng.random() * 0.05)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        killed.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9)
    for path in shard_files(store):
        read_shard(path, check=True)
    print('shards', len(shard_files(store)))
print('killed', sum(killed))
a = run(store)
print('stored', a.counts['stored'], 'of', a.counts['clips'])
b = run(Path(folder) / 'whole')
x, y = FeatureStore(store), FeatureStore(Path(folder) / 'whole')
assert list(a.clips.key) == list(b.clips.key)
assert x.cls(a.clips.key).tobytes() == y.cls(a.clips.key).tobytes()
assert x.tokens(a.clips.key).tobytes() == y.tokens(a.clips.key).tobytes()
print('equal')
"""


@pytest.mark.parametrize('kind', ['one', 'two'])
def test_kill_9_loses_nothing_that_was_whole(data, tmp_path, kind):
    "Writers, one or two at a time, are killed six times in mid-work"
    root, segments = data
    segments.to_pickle(tmp_path / 'segments.pkl')
    command = [sys.executable, '-c', KILLED, str(tmp_path), str(root / 'image'), kind]
    env = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[-1] == 'equal'
    assert int(words[words.index('killed') + 1]) >= 5  # else nothing was tested
    assert 6 <= int(words[words.index('stored') + 1])


def test_leftovers_of_a_killed_writer_are_not_read(tmp_path):
    store = FeatureStore(tmp_path)
    store.put(['a'], Features(torch.ones(1, 2, 3)))
    np.save(tmp_path / 'x.cls.npy', np.ones((1, 2, 3), np.float16))
    (tmp_path / '.x.1234.tmp.json').write_text('{"keys": ["b"], ')
    assert FeatureStore(tmp_path).has(['a', 'b']).tolist() == [True, False]


def test_full_disk(data, image_backbone, tmp_path, monkeypatch):
    "What was written stays, what was not leaves no trace, and the next run goes on"
    save, calls = np.save, []

    def fill_up(path, array):
        calls.append(path)
        if len(calls) > 6:
            save(path, array[:0])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, array)

    monkeypatch.setattr('fmhar.features.claims.SHARD_BYTES', 0)
    with monkeypatch.context() as m, pytest.raises(InputError, match='No space left'):
        m.setattr(np, 'save', fill_up)
        run(data[1], image_backbone, FeatureStore(tmp_path / 'store'))
    assert len([f for f in (tmp_path / 'store').iterdir() if f.is_file()]) == 3 * 3
    store = FeatureStore(tmp_path / 'store')
    got = run(data[1], image_backbone, store)
    assert got.counts['stored'] == 3
    whole = FeatureStore(tmp_path / 'whole')
    run(data[1], image_backbone, whole)
    assert bits(store, got.clips) == bits(whole, got.clips)


@pytest.fixture
def filled(tmp_path):
    FeatureStore(tmp_path).put(['a', 'b'], Features(torch.ones(2, 3, 4), torch.ones(2, 3, 5, 4)))
    return tmp_path, next(tmp_path.glob('*.json'))


@pytest.mark.parametrize('name', ['cls', 'tokens'])
@pytest.mark.parametrize('damage', ['shorter', 'longer', 'gone'])
def test_damage_is_noticed_at_opening(filled, name, damage):
    folder, entry = filled
    file = folder / f'{entry.stem}.{name}.npy'
    data = file.read_bytes()
    if damage == 'gone':
        file.unlink()
    else:
        file.write_bytes(data[:-1] if damage == 'shorter' else data + b'0')
    with pytest.raises(InputError, match='only its 2 clips are computed anew') as e:
        FeatureStore(folder)
    assert str(file) in str(e.value)


def test_turned_bits_are_noticed_by_the_checksum(filled):
    folder, entry = filled
    file = folder / f'{entry.stem}.cls.npy'
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    read_shard(entry)
    with pytest.raises(InputError, match='damaged'):
        read_shard(entry, check=True)


def test_half_a_json_is_said_plainly(filled):
    folder, entry = filled
    entry.write_text(entry.read_text()[:40])
    with pytest.raises(InputError, match='Not a JSON file'):
        FeatureStore(folder)


def test_readers_see_what_others_write(tmp_path):
    reader, writer = FeatureStore(tmp_path), FeatureStore(tmp_path)
    writer.put(['a'], Features(torch.ones(1, 2, 3)))
    assert not reader.has(['a'])[0]
    reader.refresh()
    assert reader.has(['a'])[0]


def test_more_shards_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr('fmhar.features.store.OPEN_MAPS', 4)
    store = FeatureStore(tmp_path)
    for i in range(20):
        store.put([f'k{i}'], Features(torch.full((1, 2, 3), i)))
    order = np.random.default_rng(0).permutation(20)
    assert store.cls([f'k{i}' for i in order])[:, 0, 0].tolist() == order.tolist()
    assert len(store._maps) <= 4


def test_rows_and_keys_must_match(tmp_path):
    store = FeatureStore(tmp_path)
    with pytest.raises(ValueError, match='2 keys but 3 rows'):
        store.put(['a', 'b'], Features(torch.ones(3, 2, 3)))
    with pytest.raises(InputError, match='do not fit into float16'):
        store.put(['a'], Features(torch.ones(1, 2, 3), torch.full((1, 2, 3, 3), 1e5)))
    with pytest.raises(InputError, match='do not fit into float16'):
        store.put(['a'], Features(torch.full((1, 2, 3), float('nan'))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('grid', [(4, 4), (5, 5), (3, 4)])
@pytest.mark.parametrize('prefix', [0, 1])
def test_token_pooling_is_a_mean_of_squares(grid, prefix):
    h, w = grid
    x = torch.randn(2, 3, prefix + h * w, 6, generator=torch.Generator().manual_seed(0))
    out = features.pool_tokens(x, grid, 2)
    assert torch.equal(out[..., :prefix, :], x[..., :prefix, :])
    maps = x[..., prefix:, :].unflatten(-2, grid)
    squares = [
        maps[..., i : i + 2, j : j + 2, :].flatten(-3, -2).mean(-2)
        for i in range(0, h, 2)
        for j in range(0, w, 2)
    ]
    torch.testing.assert_close(out[..., prefix:, :], torch.stack(squares, -2))


def test_dataset(data, image_backbone, tmp_path):
    store = FeatureStore(tmp_path)
    clips = run(
        data[1], image_backbone, store, clips=Clips(train=2, augmentation=None), tokens=Tokens(2)
    ).clips
    test = FeatureDataset(store, clips[clips.split == 'test'], tokens=True)
    assert len(test) == 27 and (test.dim, test.n_frames) == (16, 4)
    assert test.segments.tolist() == [i // 3 for i in range(27)]
    assert [test.classes[i] for i in test.labels] == list(test.table.label)
    batch = test.batch(torch.tensor([5, 0]))
    assert batch.cls.dtype == batch.tokens.dtype == torch.float32
    assert batch.tokens.shape == (2, 4, 1 + 4, 16)
    keys = test.table.key[[5, 0]]
    np.testing.assert_array_equal(batch.cls, store.cls(keys))
    np.testing.assert_array_equal(batch.tokens, store.tokens(keys, 2))
    assert FeatureDataset(store, clips).batch([1]).tokens is None
    assert len(FeatureDataset(store, clips[:0], tokens=True)) == 0


def test_shards_say_where_they_come_from(data, image_backbone, tmp_path):
    run(data[1][:2], image_backbone, FeatureStore(tmp_path))
    about = json.loads(next(tmp_path.glob('*.json')).read_text())
    assert about['weights'] == image_backbone.weights and about['backbone'] == 'image'


# Eight bits, plans, housekeeping


@pytest.mark.parametrize('dim', [1, 63, 64, 65, 200, 384])
def test_int8_rounds_by_half_a_step(dim):
    x = torch.randn(3, 5, dim, generator=torch.Generator().manual_seed(0)) * 10
    packed = features.quantise(x)
    assert packed.dtype == np.int8 and packed.shape == (3, 5, dim + 2 * -(-dim // 64))
    back = features.unquantise(packed)
    groups = torch.nn.functional.pad(x, (0, -dim % 64)).unflatten(-1, (-1, 64))
    step = (groups.abs().amax(-1) / 127).repeat_interleave(64, -1)[..., :dim]
    assert ((back - x).abs() <= 0.57 * step).all()  # half a step, and the rounding of the scale


def test_int8_of_zeros_and_tiny_values():
    x = torch.tensor([[0.0] * 64 + [1e-9] * 64])
    assert features.unquantise(features.quantise(x)).abs().max() < 1e-7
    with pytest.raises(InputError, match='do not fit'):
        features.quantise(torch.tensor([[float('nan')]]))


def test_int8_tokens_through_the_store(data, image_backbone, tmp_path):
    store = FeatureStore(tmp_path)
    run(data[1], image_backbone, store)
    got = run(data[1], image_backbone, store, tokens=Tokens(dtype='int8'))
    assert got.counts['stored'] == 0  # another kind of tokens
    exact, rough = store.tokens(got.clips.key), store.tokens(got.clips.key, dtype='int8')
    assert rough.dtype == np.float32 and rough.shape == exact.shape
    assert 0 < np.abs(rough - exact).max() <= np.abs(exact).max() / 127
    batch = FeatureDataset(store, got.clips, tokens=True).batch([2, 0])
    np.testing.assert_array_equal(batch.tokens, rough[[2, 0]])
    with pytest.raises(InputError, match='Unknown type of stored tokens'):
        run(data[1], image_backbone, store, tokens=Tokens(dtype='int4'))


@pytest.mark.parametrize('options', [Tokens(), Tokens(2), Tokens(dtype='int8')])
def test_plan_tells_what_is_written(data, backbone, tmp_path, options):
    store = FeatureStore(tmp_path)
    how = dict(clips=FROZEN, tokens=options)
    ahead = plan(data[1], backbone, store, **how)
    got = run(data[1], backbone, store, **how)
    assert (ahead.clips, ahead.stored) == (len(got.clips), 0)
    assert ahead.frames == got.counts['frames']
    heads = 128 * len(list(tmp_path.glob('*.npy')))  # the .npy header
    assert ahead.bytes == list_shards(tmp_path)['bytes'].sum() - heads
    assert ahead.hours > 0 and ahead.decode_rate > 0 and ahead.encode_rate > 0
    assert 'frames/s' in str(ahead)
    again = plan(data[1], backbone, store, **how)
    assert (again.stored, again.frames, again.bytes, again.hours) == (len(got.clips), 0, 0, 0)


def test_a_disk_that_is_too_small_is_refused_first(data, image_backbone, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path)
    free = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(features.shutil, 'disk_usage', lambda path: free)
    with pytest.raises(InputError, match='do not fit on this disk'):
        run(data[1], image_backbone, store)
    assert list(tmp_path.iterdir()) == []


def test_housekeeping(data, image_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr('fmhar.features.claims.SHARD_BYTES', 20_000)
    store = FeatureStore(tmp_path)
    clips = run(data[1], image_backbone, store).clips
    shards = list_shards(tmp_path)
    assert len(shards) > 4 and set(shards.features) == {'cls', 'tokens'}
    usage = features.disk_usage(tmp_path)
    assert list(usage.clips) == [len(clips)] * 2
    assert usage['bytes'].sum() == sum(f.stat().st_size for f in tmp_path.glob('*.npy'))
    assert verify_shards(tmp_path).empty
    bad = shards.shard[0]
    file = tmp_path / f'{bad}.tokens.npy'
    data_bytes = bytearray(file.read_bytes())
    data_bytes[-3] ^= 4
    file.write_bytes(data_bytes)
    assert list(verify_shards(tmp_path).shard) == [bad]
    with pytest.raises(InputError, match='Unknown shard'):
        remove_shards(tmp_path, ['nothing'])
    before = bits(FeatureStore(tmp_path), clips)
    assert remove_shards(tmp_path, [bad]) > 0
    assert not list(tmp_path.glob(f'{bad}*'))
    store = FeatureStore(tmp_path)
    again = run(data[1], image_backbone, store)
    lost = shards.clips[shards.shard == bad].iloc[0]
    assert again.counts['stored'] == len(clips) - lost
    assert bits(store, clips) != before and verify_shards(tmp_path).empty


def test_clips_can_be_read_without_a_store(data, backbone, tmp_path):
    store = FeatureStore(tmp_path)
    _, _, jobs = features.plan_jobs(data[1], backbone, store, None, FROZEN, Reading())
    streamed = {
        item[0]: item[1:]
        for item in features.encode_clips(
            jobs, backbone, tokens=Tokens(), reading=Reading(workers=2)
        )
    }
    clips = run(data[1], backbone, store).clips
    assert set(streamed) == set(clips.key) and len(clips) == len(streamed)
    for key, (cls, tokens) in streamed.items():
        np.testing.assert_array_equal(cls, store.cls([key])[0])
        np.testing.assert_array_equal(tokens, store.tokens([key])[0])


# Three crops, other decoders, content


def test_three_crops_equal_the_plain_way(data, backbone, tmp_path):
    "Each square is what one gets by resizing the short side and cutting by hand"
    store = FeatureStore(tmp_path)
    plain = run(data[1], backbone, store)
    got = run(data[1], backbone, store, clips=Clips(crops=3, augmentation=None))
    train = got.clips[got.clips.split == 'train']
    assert set(train.crop) == {'centre'} and set(train.key) < set(plain.clips.key)
    test = got.clips[got.clips.split != 'train']
    assert len(test) == 3 * (len(plain.clips) - len(train)) and test.key.is_unique
    assert not set(test.key) & set(plain.clips.key)
    side = backbone.transform.crop
    for row in test.sample(12, random_state=0).itertuples():
        wide = dict(sweep(row.path, row.frames, backbone.transform))  # the frames are there
        assert list(wide) == sorted(set(row.frames))
        resize = video._Resizer(backbone.transform.tight)
        with av.open(row.path) as container:
            frames = [resize.resized(f, resize.transform) for f in container.decode(video=0)]
        left = {'first': 0, 'middle': (side * 48 // 32 - side) // 2, 'last': side * 48 // 32 - side}
        cut = [frames[f][:, left[row.crop] :][:, :side].transpose(2, 0, 1) for f in row.frames]
        direct = backbone.encode(torch.from_numpy(np.stack(cut))[None])
        np.testing.assert_allclose(store.cls([row.key]), direct.cls, atol=2e-2)
        np.testing.assert_allclose(store.tokens([row.key]), direct.tokens, atol=2e-2)


def test_three_crops_cost_one_decoding_and_one_resizing(
    data, image_backbone, tmp_path, monkeypatch
):
    resized, resize = [], video._Resizer.resized

    def count(self, frame, transform):
        resized.append((frame.pts, transform))
        return resize(self, frame, transform)

    monkeypatch.setattr(video._Resizer, 'resized', count)
    segments = data[1][(data[1].view == 'front') & (data[1].split == 'test')]
    got = run(
        segments, image_backbone, FeatureStore(tmp_path), clips=Clips(crops=3, augmentation=None)
    )
    frames = {f for clip in got.clips.frames for f in clip}
    assert len(resized) == len(set(resized)) == len(frames)
    assert got.counts['frames'] == 3 * len(frames)


def test_logits_of_clips_and_crops_are_averaged(data, image_backbone, tmp_path):
    from fmhar.evaluation.predictions import Predictions

    got = run(
        data[1],
        image_backbone,
        FeatureStore(tmp_path),
        clips=Clips(crops=3, augmentation=None),
        tokens=False,
    )
    clips = got.clips[got.clips.split == 'test'].reset_index(drop=True)
    dataset = FeatureDataset(FeatureStore(tmp_path), clips)
    assert len(dataset) == 9 * 3 * 3 and dataset.segments.bincount().tolist() == [9] * 9
    logits = np.random.default_rng(0).normal(size=(1, len(clips), 2)).astype(np.float32)
    table = clips.assign(segment=dataset.segments.numpy())
    means = Predictions(table, logits, ['p'], clips.attrs['classes']).mean_clips()
    assert means.logits.shape == (1, 9, 2)
    np.testing.assert_allclose(means.logits[0], logits[0].reshape(9, 9, 2).mean(1), rtol=1e-5)


def test_keys_of_plain_clips_are_as_they_always_were(data, image_backbone):
    "Stores that people have must stay valid"
    clips = pd.DataFrame(dict(path=[data[1].path[0]], frames=[(0, 3, 5, 9)]))
    encoder = fingerprint(image_backbone.identity, 20)
    file = Path(clips.path[0]).resolve()
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns)]
    known = fingerprint([fingerprint([str(file), state], 20), (0, 3, 5, 9), encoder], 20)
    keys = [known] + [clip_keys(clips.assign(crop=c), image_backbone)[0] for c in clips_.CROPS]
    keys.append(clip_keys(clips, image_backbone, Reading('torchcodec'))[0])
    assert clip_keys(clips, image_backbone) == [known]
    assert clip_keys(clips.assign(crop='centre'), image_backbone) == [known]
    assert len(set(keys)) == 5


def test_another_decoder_fills_other_keys(data, image_backbone, tmp_path, monkeypatch):
    asked = []

    def other(path, wanted):
        asked.append(path)
        return video.DECODERS['pyav'](path, wanted)

    monkeypatch.setitem(video.DECODERS, 'other', other)
    store = FeatureStore(tmp_path)
    ours = run(data[1], image_backbone, store)
    ahead = plan(
        data[1], image_backbone, store, clips=FROZEN, tokens=True, reading=Reading('other')
    )
    theirs = run(data[1], image_backbone, store, decoder='other')
    assert ahead.stored == theirs.counts['stored'] == 0 and set(asked) == set(data[1].path)
    assert bits(store, ours.clips) == bits(store, theirs.clips)
    with pytest.raises(InputError, match='Unknown decoder'):
        run(data[1], image_backbone, store, decoder='decord')


def test_content_knows_a_video_wherever_it_lies(data, image_backbone, tmp_path, monkeypatch):
    read, hash_file = [], features.content_hash

    def count(path):
        read.append(Path(path).name)
        return hash_file(path)

    segments, store = data[1].copy(), FeatureStore(tmp_path / 'store')
    first = run(segments, image_backbone, store, identity='content')
    monkeypatch.setattr('fmhar.features.keys.content_hash', count)
    again = run(segments, image_backbone, store, identity='content')
    assert read == [] and list(again.clips.key) == list(first.clips.key)  # read once
    for path in segments.path.unique():
        shutil.copy(path, tmp_path / Path(path).name)
    moved = segments.assign(path=[str(tmp_path / Path(p).name) for p in segments.path])
    moved.attrs = segments.attrs
    copy = run(moved, image_backbone, store, identity='content')
    assert len(read) == 3 and copy.counts['stored'] == len(copy.clips)
    assert run(moved, image_backbone, store).counts['stored'] == 0  # by their state: other videos
    front, read[:] = tmp_path / 'front.mp4', []
    write_video(front, 90, 99)  # another content at the same place
    other = run(moved, image_backbone, store, identity='content')
    assert 'front.mp4' in read and 0 < other.counts['stored'] < len(other.clips)
    with pytest.raises(InputError, match='state, content'):
        run(segments, image_backbone, store, identity='name')


def test_content_of_a_folder(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f'{i:03d}.jpg').write_bytes(bytes([i]))
    known = [features.content_identity(tmp_path / n, tmp_path / 'notes') for n in ('a', 'b')]
    assert known[0] == known[1]
    (tmp_path / 'b' / '001.jpg').write_bytes(b'other')
    assert features.content_identity(tmp_path / 'b', tmp_path / 'notes') != known[0]


def test_a_folder_of_other_things_is_no_store(tmp_path):
    (tmp_path / 'run.json').write_text('{"settings": 1}')
    with pytest.raises(InputError, match='no shard of a feature store'):
        FeatureStore(tmp_path)
    with pytest.raises(InputError, match='No such feature store'):
        list_shards(tmp_path / 'nowhere')


def test_plan_measures_the_first_video_that_can_be_read(data, image_backbone, tmp_path):
    segments = data[1].copy()
    segments.loc[segments.view == 'front', 'path'] = str(tmp_path / 'text.mp4')
    (tmp_path / 'text.mp4').write_text('no video')
    store = FeatureStore(tmp_path / 'store')
    assert plan(segments, image_backbone, store).decode_rate > 0
    with pytest.raises(InputError, match='None of the videos'):
        plan(segments[segments.view == 'front'], image_backbone, store)


def test_a_job_is_put_together_once(data, image_backbone, tmp_path, monkeypatch):
    "Not once a frame, which would take longer than the frame"
    made, init = [], features.Assembly.__init__
    monkeypatch.setattr(
        features.Assembly, '__init__', lambda self, job: made.append(job.path) or init(self, job)
    )
    run(data[1], image_backbone, FeatureStore(tmp_path))
    assert sorted(made) == sorted(data[1].path.unique())
