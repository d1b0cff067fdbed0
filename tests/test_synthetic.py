"The set is deterministic, whole or absent, and laid out as Drive&Act"

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pandas as pd
import pytest

from fmhar.errors import InputError
from fmhar.synthetic.actions import ACTIONS, CLASSES, PAIRS
from fmhar.synthetic.cameras import VIEWS
from fmhar.synthetic.film import COLUMNS, in_view, write_synthetic
from fmhar.synthetic.scripts import CHUNK, SyntheticConfig, script, split_subjects
from fmhar.synthetic.studio import motion_of, render_action

SMALL = SyntheticConfig.tiny(
    classes=('opening_bottle', 'closing_bottle', 'drinking'), chunks_per_subject=6, size=(64, 48)
)


def files(root):
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob('*')) if p.is_file()
    }


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp('set') / 'a', SMALL, workers=1, progress=False)


@pytest.mark.parametrize('view', ['inner_mirror', 'kinect_color'])
@pytest.mark.parametrize('pair', PAIRS, ids=lambda p: p[0])
def test_a_partner_is_the_same_film_backwards(pair, view):
    kwargs = dict(n_frames=11, view=view, size=(64, 48), subject=2, performance=7)
    one, two = (render_action(name, **kwargs) for name in pair)
    assert one.shape == (11, 48, 64, 3) and one.dtype == np.uint8
    assert (one[::-1] == two).all()
    assert (one[0] != one[-1]).any()
    grey = view != 'kinect_color'
    assert bool((one[..., 0] == one[..., 2]).all()) == grey


def test_performances_subjects_and_views_give_other_films():
    kwargs = dict(n_frames=5, size=(64, 48))
    base = render_action('opening_box', **kwargs)
    assert (base == render_action('opening_box', **kwargs)).all()
    for other in (dict(performance=1), dict(subject=2), dict(view='ceiling')):
        assert (base != render_action('opening_box', **kwargs | other)).mean() > 0.02


@pytest.mark.parametrize('subjects', range(10, 16))
def test_splits(subjects):
    c = SyntheticConfig(subjects=subjects, chunks_per_subject=20)
    splits = pd.Series(split_subjects(c))
    assert sorted(splits.index) == list(range(1, subjects + 1))
    assert splits.value_counts()['test'] >= 3 and splits.value_counts()['val'] >= 1
    recordings = script(c)
    assert all(r.split == splits[r.subject] for r in recordings)
    table = pd.DataFrame([(r.split, e.action) for r in recordings for e in r.events])
    counts = pd.crosstab(table[1], table[0])
    assert (counts[['train', 'test']] > 0).all().all()
    for one, two in PAIRS:  # else how often a class occurs would tell partners apart
        assert (counts.loc[one] == counts.loc[two]).all()
    total = counts.sum(axis=1)
    assert total.max() >= 2 * total.min()  # long-tailed


def test_chunks_are_about_as_many_as_asked():
    c = SyntheticConfig()
    chunks = [-(-e.n_frames // CHUNK) for r in script(c) for e in r.events]
    assert sum(chunks) == pytest.approx(c.subjects * c.chunks_per_subject, rel=0.15)
    for r in script(c):
        for e, f in pairwise(r.events):
            assert e.start + e.n_frames < f.start
        for e in r.events:
            if ACTIONS[e.action].partner:
                assert e.n_frames <= CHUNK
            assert e.n_frames < CHUNK or e.n_frames % CHUNK == 0 or e.n_frames % CHUNK >= 6


def test_length_and_place_do_not_tell_partners_apart():
    rows = [
        (r.subject, e.action, e.n_frames)
        for seed in range(12)
        for r in script(SyntheticConfig(seed=seed))
        for e in r.events
    ]
    lengths = pd.DataFrame(rows, columns=['subject', 'action', 'n']).groupby('action').n
    for one, two in PAIRS:
        a, b = lengths.get_group(one), lengths.get_group(two)
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt(a.var() / len(a) + b.var() / len(b))


def test_only_the_things_of_the_action_are_on_the_bench():
    c = SyntheticConfig(subjects=3, chunks_per_subject=30)
    r = script(c)[0]
    m = motion_of(c, r)
    assert len(m.main) == r.n_frames and np.isfinite(m.main).all()
    for e in r.events:
        shown = {
            k for k, v in m.parts.items() if np.isfinite(v[e.start : e.start + e.n_frames]).any()
        }
        assert len({k.split('.')[0] for k in shown}) == 1


def test_same_bytes_whatever_the_number_of_threads(root, tmp_path):
    other = write_synthetic(tmp_path / 'b', SMALL, workers=2, progress=False)
    assert files(root) == files(other)


def test_layout_and_clocks(root):
    base = root / 'iccv_activities_3s' / 'activities_3s'
    tables = {
        v: pd.concat(
            pd.read_csv(base / v / f'midlevel.chunks_90.split_0.{s}.csv').assign(split=s)
            for s in ('train', 'val', 'test')
        )
        for v in VIEWS
    }
    events = {}
    for view, table in tables.items():
        assert list(table.columns[:-1]) == COLUMNS
        assert set(table.activity) == set(SMALL.classes)
        for file_id, rows in table.groupby('file_id'):
            assert file_id.endswith('.' + VIEWS[view].suffix)
            assert file_id.startswith(f'vp{rows.participant_id.iloc[0]}/')
            with av.open(str(root / view / f'{file_id}.mp4')) as container:
                n = sum(1 for _ in container.decode(video=0))
                assert container.streams.video[0].average_rate == SMALL.fps * VIEWS[view].rate
            assert (rows.frame_start < rows.frame_end).all() and rows.frame_end.max() <= n
            assert not rows.duplicated(['annotation_id', 'chunk_id']).any()
        key = [table.file_id.str.rsplit('.', n=1).str[0], table.annotation_id, table.chunk_id]
        events[view] = table.set_index(key)[['activity', 'split', 'frame_start']]
    first = events['inner_mirror']
    for view, rows in events.items():
        assert (rows[['activity', 'split']] == first[['activity', 'split']]).all().all()
        assert (rows.frame_start == [in_view(n, view) for n in first.frame_start]).all()
    assert tables['inner_mirror'].groupby('split').participant_id.nunique().sum() == SMALL.subjects


def test_long_actions_are_cut_into_chunks():
    from fmhar.synthetic.film import annotations

    c = SyntheticConfig(subjects=3, chunks_per_subject=60, other_frames=(150, 200))
    rows = annotations(script(c), 'inner_mirror')
    for _, parts in rows.groupby(['file_id', 'annotation_id']):
        assert (parts.frame_end.values[:-1] == parts.frame_start.values[1:]).all()
        assert ((parts.frame_end - parts.frame_start).values[:-1] == CHUNK).all()
        assert parts.chunk_id.tolist() == list(range(len(parts)))
    assert rows.groupby(['file_id', 'annotation_id']).size().max() == 3


def test_killed_while_filming(root, tmp_path):
    out = tmp_path / 'killed'
    code = (
        'from pathlib import Path; import sys; from fmhar.synthetic import *;'
        'c = SyntheticConfig(**eval(sys.argv[2])); write_synthetic(sys.argv[1], c, workers=1)'
    )
    settings = json.loads((root / 'synthetic.json').read_text())
    settings.pop('version')
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    process = subprocess.Popen([sys.executable, '-c', code, str(out), repr(settings)])
    deadline = time.time() + 60
    while not (list(out.rglob('*.mp4')) and list(out.rglob('.*.tmp.mp4'))):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole, done = files(root), files(out)
    assert 'iccv_activities_3s' not in os.listdir(out)
    finished = {k: v for k, v in done.items() if not k.split('/')[-1].startswith('.')}
    assert finished.items() <= whole.items() and len(finished) < len(whole)
    write_synthetic(out, SMALL, workers=1, progress=False)
    again = {k: v for k, v in files(out).items() if '.tmp' not in k}
    assert again == whole


@pytest.mark.parametrize(
    'knobs, says',
    [
        (dict(subjects=2), '3 or more'),
        (dict(size=(95, 80)), 'even'),
        (dict(pair_frames=(45, 120)), '8 .. 90'),
        (dict(other_frames=(90, 60)), 'shortest first'),
        (dict(classes=('opening_bottle', 'juggling')), "Unknown action 'juggling'"),
    ],
)
def test_impossible_settings(knobs, says):
    with pytest.raises(InputError, match=says):
        SyntheticConfig(**knobs)


def test_other_impossible_wishes(root, tmp_path):
    with pytest.raises(InputError, match='Too few chunks'):
        script(SyntheticConfig(chunks_per_subject=2))
    with pytest.raises(InputError, match='seed=0'):
        write_synthetic(root, replace(SMALL, seed=5), workers=1, progress=False)
    (tmp_path / 'vp1').mkdir()
    with pytest.raises(InputError, match='not empty'):
        write_synthetic(tmp_path, SMALL, workers=1, progress=False)
    with pytest.raises(InputError, match='did you mean opening_box'):
        render_action('openning_box')
    with pytest.raises(InputError, match='inner_mirror'):
        render_action('opening_box', view='dashboard')


def test_tiny_has_every_class_in_every_split():
    table = pd.DataFrame(
        [(r.split, e.action) for r in script(SyntheticConfig.tiny()) for e in r.events]
    )
    assert (pd.crosstab(table[1], table[0]) > 0).all().all()
    assert set(table[1]) == set(CLASSES)
