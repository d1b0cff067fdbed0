"Several processes fill one store: by claims alone, whatever dies, with readers at work"

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from tiny_set import ENV, content, read_tiny_set, write_tiny_set

from fmhar import features
from fmhar.backbones.load import load_backbone
from fmhar.errors import InputError
from fmhar.features.claims import Claims, cut_parts
from fmhar.features.extraction import extract
from fmhar.features.options import Clips, Reading, Tokens
from fmhar.features.pipeline import Job
from fmhar.features.store import FeatureStore


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('many')
    write_tiny_set(root)
    return root


FROZEN = Clips(augmentation=None)

DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from tiny_set import content, read_tiny_set
from fmhar.features import claims, extraction, pipeline
from fmhar.backbones.load import load_backbone
from fmhar.features.store import FeatureStore, read_shard, shard_files
from fmhar.features.extraction import extract
from fmhar.features.options import Clips, Reading

root, rng = Path(sys.argv[1]), random.Random(0)
backbone = load_backbone(root / 'encoder', n_frames=4)
claims.PART_CLIPS, claims.SHARD_BYTES, extraction.PAUSE = 6, 8_000, 0.05
encode = pipeline.encode_batch

def slowly(*args):  # so that they meet, and a kill hits somebody at work
    time.sleep(0.02)
    return encode(*args)

def run(path, workers=0):
    return extract(read_tiny_set(root), backbone, FeatureStore(path), tokens=True, progress=False,
                   clips=Clips(augmentation=None), reading=Reading(workers=workers, batch_size=8))

def start(path, i, workers):
    pid = os.fork()
    if pid:
        return pid
    try:
        pipeline.encode_batch = slowly
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
    how = dict(clips=FROZEN, reading=Reading(workers=0), progress=False)
    got = extract(read_tiny_set(data), backbone, store, tokens=True, **how)
    assert 0 < got.counts['stored'] == before < got.counts['clips']
    assert content(store) == content(FeatureStore(data / 'one'))


# Started by a launcher

LAUNCH = (
    'launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no'
)


def test_accelerate_launch(data, outcome, tmp_path):
    "Two ranks by torchrun's variables, on a processor here; the first speaks for both"
    accelerate = Path(sys.executable).parent / 'accelerate'
    if not accelerate.exists():
        pytest.skip('accelerate is not installed')
    table = pd.read_csv(data / 'segments.csv')
    table[table.view != 'top'].to_csv(data / 'sound.csv', index=False)
    command = [accelerate, *LAUNCH.split(), '--main_process_port', '0', '-m', 'fmhar', 'extract']
    command += [
        data / 'sound.csv',
        '--dataset',
        'table',
        '--backbone',
        data / 'encoder',
        '--tokens',
    ]
    command += ['--augment', 'none', '--everything', '--out', tmp_path / 'store']
    env = ENV | dict(GLOO_SOCKET_IFNAME='lo')
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('80 clips are in') == 1  # 16 train and 8 x 3 test clips in two views
    assert len(content(FeatureStore(tmp_path / 'store'))) == 80


# One process


def tiny(data, path, **options):
    backbone = load_backbone(data / 'encoder', n_frames=4)
    how = dict(clips=Clips(augmentation=None), reading=Reading(**dict(workers=0) | options))
    return extract(
        read_tiny_set(data), backbone, FeatureStore(path), tokens=True, progress=False, **how
    )


@pytest.mark.parametrize('workers', [0, 2])
def test_waits_for_what_another_holds_and_does_the_rest(data, tmp_path, monkeypatch, workers):
    monkeypatch.setattr('fmhar.features.claims.PART_CLIPS', 6)
    monkeypatch.setattr('fmhar.features.extraction.PAUSE', 0.05)
    backbone = load_backbone(data / 'encoder', n_frames=4)
    _, _, jobs = features.plan_jobs(
        read_tiny_set(data), backbone, FeatureStore(tmp_path), Tokens(), FROZEN, Reading()
    )
    (tmp_path / '.claims').mkdir()
    lock = FileLock(tmp_path / '.claims' / f'{jobs[2].claim}.lock')
    lock.acquire()
    sleeps, sleep = [], features.time.sleep

    def dies(seconds):  # the other process, on our second look
        sleep(seconds)
        sleeps.append(FeatureStore(tmp_path).has(jobs[2].clips).any())
        if len(sleeps) == 2:
            lock.release()

    monkeypatch.setattr(features.time, 'sleep', dies)
    got = tiny(data, tmp_path, workers=workers)
    assert sleeps == [False, False] and got.seconds['wait'] > 0
    assert FeatureStore(tmp_path).has(jobs[2].clips).all()


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_lets_go_of_all_claims(data, tmp_path, monkeypatch, workers):
    "Else a second call in the same process would wait for the first for ever"
    monkeypatch.setattr('fmhar.features.claims.PART_CLIPS', 6)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr('fmhar.features.pipeline.encode_batch', stop)
        tiny(data, tmp_path, workers=workers)
    locks = list((tmp_path / '.claims').iterdir())
    assert locks
    for path in locks:
        FileLock(path).acquire(blocking=False)
    assert tiny(data, tmp_path, workers=workers).counts['clips'] > 80


def test_eight_share_evenly_and_once(tmp_path):
    "Threads in place of processes: the locks belong to the open files, so they are as foreign"
    took = [[] for _ in range(8)]

    def work(i):
        jobs = [Job('v', 'image', {f'k{n}': (n,)}, claim=f'c{n}') for n in range(48)]
        store = FeatureStore(tmp_path)
        with Claims(store, jobs, ['cls']) as claims:
            while claims.open:
                for job in claims.free():
                    time.sleep(0.02)  # the forward pass
                    store.put(list(job.clips), features.Features(np.ones((1, 2, 3), np.float32)))
                    took[i] += job.clips
                    claims.settle()
                claims.settle()
                time.sleep(0.01)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(k for keys in took for k in keys) == sorted(f'k{n}' for n in range(48))
    assert min(map(len, took)) >= 2
    assert len(content(FeatureStore(tmp_path), tokens=False)) == 48
    assert list((tmp_path / '.claims').iterdir()) == []


def test_a_whole_store_is_only_read(data, tmp_path, monkeypatch):
    sound = read_tiny_set(data)
    sound = sound[sound.view != 'top']
    monkeypatch.setattr(f'{__name__}.read_tiny_set', lambda root: sound)
    first = tiny(data, tmp_path)
    (tmp_path / '.claims').rmdir()
    before = sorted(tmp_path.iterdir())
    again = tiny(data, tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert again.counts['stored'] == first.counts['clips'] and again.failed.empty


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(self, blocking):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(FileLock, 'acquire', refuse)
    store, job = FeatureStore(tmp_path), Job('v.mp4', 'image', {'a': (0, 1)}, claim='x')
    with pytest.raises(InputError, match='Permission denied'):
        list(Claims(store, [job], ['cls']).free())


def test_only_the_first_process_shows_progress(monkeypatch):
    for rank, first in (('0', True), ('1', False), ('7', False)):
        monkeypatch.setenv('RANK', rank)
        assert features.is_first() == first
    monkeypatch.delenv('RANK')
    assert features.is_first()


# Parts


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), min_size=1), st.integers(1, 3))
def test_parts_keep_segments_whole(spans, n_clips):
    "In order of time, clips of a segment together, never much larger than three times the least"
    rows = [(start, start + length) for start, length in spans for _ in range(n_clips)]
    clips = pd.DataFrame(rows, columns=['start', 'end'])
    with pytest.MonkeyPatch.context() as m:
        m.setattr('fmhar.features.claims.PART_CLIPS', 5)
        parts = cut_parts(clips)
    ordered = clips.assign(part=parts).sort_values(['start', 'end'])
    assert ordered.part.is_monotonic_increasing and parts.min() == 0
    assert (ordered.groupby(['start', 'end']).part.nunique() == 1).all()
    sizes, same = np.bincount(parts), clips.value_counts().max()
    assert (sizes[:-1] >= 5).all() and sizes.max() < 3 * 5 + same
