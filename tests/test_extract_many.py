"Several processes fill one store: by claims alone, whatever dies, with readers at work"

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from numbered import write_video

from fmhar import features
from fmhar.backbones import Features, load_backbone, quietly
from fmhar.clips import make_clips
from fmhar.errors import InputError
from fmhar.features import Claims, FeatureStore, Job, clip_keys, cut_parts, extract

N = 240  # frames of a video
ENV = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Two sound videos and one that is cut, 24 segments each, as a table on the disk; a tiny encoder"
    root = tmp_path_factory.mktemp('many')
    rows = []
    for view in ('front', 'side', 'top'):
        path = write_video(root / f'{view}.mkv', N, g=20)
        for i in range(24):
            split, label = ('train', 'test')[i % 3 == 2], ('open', 'close')[i % 2]
            rows.append((str(path), view, f's{i % 3}', f'e{i}', 10 * i, 10 * i + 10, label, split, 30))
    whole = (root / 'top.mkv').read_bytes()
    (root / 'top.mkv').write_bytes(whole[: len(whole) // 2])
    columns = 'path view subject event start end label split fps'.split()
    pd.DataFrame(rows, columns=columns).to_csv(root / 'segments.csv', index=False)
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    with quietly():
        config = tf.Dinov2Config(**small, image_size=28, patch_size=7)
        tf.Dinov2Model(config).save_pretrained(root / 'encoder')
    tf.BitImageProcessor(size=32, crop_size=28).save_pretrained(root / 'encoder')
    return root


def segments_of(root):
    segments = pd.read_csv(root / 'segments.csv')
    segments.attrs = dict(classes=['open', 'close'], trained_view='front')
    return segments


def content(store):
    "Every key of a store with the bytes of its features; a key that is there twice is an error"
    shards = [json.loads(p.read_text()) for p in features.shard_files(store.path)]
    keys = [k for shard in shards for k in shard['keys']]
    assert len(keys) == len(set(keys)), 'computed twice'
    return {k: store.cls([k]).tobytes() + store.tokens([k]).tobytes() for k in keys}


DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_extract_many import content, segments_of
from fmhar import features
from fmhar.backbones import load_backbone
from fmhar.features import FeatureStore, extract, read_shard, shard_files

root, rng = Path(sys.argv[1]), random.Random(0)
backbone = load_backbone(root / 'encoder', n_frames=4)
features.PART_CLIPS, features.SHARD_BYTES, features.PAUSE = 6, 8_000, 0.05
encode = features.encode_batch

def slowly(*args):  # so that they meet, and a kill hits somebody at work
    time.sleep(0.02)
    return encode(*args)

def run(path, workers=0):
    return extract(segments_of(root), backbone, FeatureStore(path), tokens=True, batch_size=8,
                   workers=workers, progress=False)

def start(path, i, workers):
    pid = os.fork()
    if pid:
        return pid
    try:
        features.encode_batch = slowly
        got = run(path, workers)
        failed = got.failed[['view', 'position', 'n_clips']].values.tolist()
        (path.parent / f'{path.name}.{i}.json').write_text(json.dumps([got.counts, failed]))
        os._exit(0)
    finally:
        os._exit(1)

def together(name, n, kill=0, workers=0):
    path, codes, seen = root / name, [], 0
    path.mkdir()
    pids = [start(path, i, workers) for i in range(n)]
    for pid in pids[:kill]:
        while len(shard_files(path)) < 3:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.2)
        os.kill(pid, signal.SIGKILL)
    reader, alive = FeatureStore(path), set(pids)
    while alive:  # read while they write
        for pid in list(alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes.append(os.waitstatus_to_exitcode(status))
                alive.remove(pid)
        reader.refresh()
        for key in rng.sample(sorted(reader.index['tokens']), min(3, len(reader.index['tokens']))):
            assert reader.cls([key]).tobytes() + reader.tokens([key]).tobytes() == whole[key]
            seen += 1
    for shard in shard_files(path):
        read_shard(shard, check=True)
    said = [json.loads(p.read_text()) for p in sorted(root.glob(f'{name}.*.json'))]
    left = [str(p) for p in (path / '.claims').iterdir()]
    same = content(FeatureStore(path)) == whole
    print(json.dumps(dict(codes=sorted(codes), said=said, same=same, seen=seen, left=left)))

one = run(root / 'one')
whole = content(FeatureStore(root / 'one'))
print(json.dumps(dict(said=[[one.counts, one.failed[['view', 'position', 'n_clips']].values.tolist()]])))
together('two', 2, workers=2)
for i in range(3):
    together(f'three{i}', 3, kill=1)
together('last', 2, kill=2)  # both die; the next run finishes
"""


@pytest.fixture(scope='module')
def outcome(data):
    "What one, two and three processes left, with and without a kill"
    command = [sys.executable, '-c', DRIVER, str(data), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_two_processes_do_half_each_and_nothing_twice(outcome):
    one, two = outcome[:2]
    ((alone, failed),) = one['said']
    assert failed == [['top', failed[0][1], failed[0][2]]] and 0 < failed[0][2] < 40
    assert two['codes'] == [0, 0] and two['same'] and two['seen'] > 10
    (a, failed_a), (b, failed_b) = two['said']
    assert failed_a == failed_b == failed  # each knows what is broken
    assert a['clips'] == b['clips'] == alone['clips'] and a['failed'] == b['failed']
    written = [c['clips'] - c['stored'] for c in (a, b)]
    assert sum(written) == alone['clips'] and min(written) > 10
    in_vain = a['frames'] + b['frames'] - alone['frames']  # each looked at the broken video
    assert 0 <= in_vain <= 2 * 4 * failed[0][2]


def test_the_others_finish_when_one_is_killed(outcome):
    (alone, failed) = outcome[0]['said'][0]
    for three in outcome[2:5]:
        assert three['codes'] == [-9, 0, 0] and three['same'] and three['seen'] > 10
        assert [f for _, f in three['said']] == [failed] * 2
        assert all(counts['clips'] == alone['clips'] for counts, _ in three['said'])
        assert three['left'] == []  # no lock of the dead stays


def test_the_next_run_finishes_when_all_are_killed(outcome, data):
    last = outcome[5]
    assert last['codes'] == [-9, -9] and not last['same'] and last['left']
    store, backbone = FeatureStore(data / 'last'), load_backbone(data / 'encoder', n_frames=4)
    before = len(content(store))
    got = extract(segments_of(data), backbone, store, tokens=True, workers=0, progress=False)
    assert 0 < got.counts['stored'] == before < got.counts['clips']
    assert content(store) == content(FeatureStore(data / 'one'))
