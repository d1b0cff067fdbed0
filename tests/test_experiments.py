"One experiment on one process or two: the same numbers; and what a second run does not do again"

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fmhar.errors import InputError
from fmhar.evaluation.predictions import Predictions
from fmhar.experiments.description import Experiment, read_segments
from fmhar.experiments.opened import load_result
from fmhar.experiments.rows import mean_over_splits, run_name
from fmhar.experiments.running import embed, run
from fmhar.synthetic.film import write_synthetic
from fmhar.synthetic.scripts import SyntheticConfig
from fmhar.trainer.recipe import Recipe

QUIET = dict(workers=0, progress=False)


@pytest.fixture(scope='module')
def exp(tmp_path_factory):
    root = tmp_path_factory.mktemp('set') / 'set'
    write_synthetic(root, SyntheticConfig.tiny(), progress=False)
    return Experiment(
        root=str(root),
        reader=(('views', ('inner_mirror', 'kinect_color')),),
        backbone='facebook/dinov2-small',
        weights='random',
        size=28,
        precision='fp32',
        n_clips=2,
        fusions=('max_pooling', 'cross_attention_all', 'lstm', 'attentive_pooler depth=2'),
        recipe=Recipe(epochs=3),
    )


@pytest.fixture(scope='module')
def one(exp, tmp_path_factory):
    return run(exp, tmp_path_factory.mktemp('one'), **QUIET)


def test_tokens_kept_or_streamed_give_the_same_scores(exp, one, tmp_path):
    kept = run(replace(exp, keep_tokens=True), tmp_path, **QUIET)
    assert list(one.predictions.table.key) == list(kept.predictions.table.key)
    assert np.abs(one.predictions.logits - kept.predictions.logits).max() < 1e-2
    a, b = embed(one, 'cross_attention_all'), embed(kept, 'cross_attention_all')
    np.testing.assert_allclose(a, b, atol=1e-2)
    assert embed(one, 'max_pooling').shape == b.shape


def test_a_head_may_have_options(one):
    name = 'attentive_pooler depth=2'
    assert name in set(one.rows.probe)
    assert len({p.spec.name: p for p in one.bank.probes}[name].fusion.blocks) == 1


def test_a_second_run_computes_nothing(exp, one):
    again = run(exp, one.folder.parent.parent, **QUIET)
    assert again.extraction.counts['frames'] == 0
    assert 'predictions loaded' in again.origin and 'computed now' in one.origin
    assert 'training loaded' in again.origin and 'training done now' in one.origin
    pd.testing.assert_frame_equal(again.rows, one.rows)


def test_a_relative_root_is_the_same_from_any_folder(exp, one, tmp_path, monkeypatch):
    root = Path(exp.root)
    monkeypatch.chdir(root.parent)
    here = run(replace(exp, root=root.name), one.folder.parent.parent, **QUIET)
    assert here.folder == one.folder and 'predictions loaded' in here.origin
    monkeypatch.chdir(tmp_path)
    assert all(Path(p).is_file() for p in here.predictions.table.path)


def test_everything_is_shown_to_have_been_scored_once(one):
    table = one.predictions.table
    assert not table.duplicated(['segment', 'clip', 'view']).any()
    assert len(table) == 2 * table.segment.nunique() and len(one.extraction.failed) == 0
    rates = {r['stage']: r for r in one.clock.records()}
    assert rates['test views']['unit'] == 'frames' and rates['test views']['rate'] > 0
    assert rates['train the bank']['items'] == 3 * 18


TWO = """
import sys
from fmhar.experiments.description import Experiment
from fmhar.experiments.running import run
from fmhar.trainer.recipe import Recipe
exp = eval(sys.argv[1])
run(exp, sys.argv[2], workers=0, progress=False)
"""


def test_two_processes_leave_what_one_leaves(exp, one, tmp_path):
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    script = tmp_path / 'two.py'
    script.write_text(TWO)
    subprocess.run([*launcher, script, repr(exp), tmp_path / 'out'], check=True, timeout=300)
    (file,) = (tmp_path / 'out' / 'runs').glob('*/predictions.parquet')
    two = Predictions.load(file)
    assert list(two.table.key) == list(one.predictions.table.key)
    np.testing.assert_allclose(two.logits, one.predictions.logits, atol=2e-3)
    columns = ['probe', 'view', 'balanced_accuracy', 'top1', 'top5']
    rows = pd.read_csv(file.with_name('rows.csv'))[columns]
    pd.testing.assert_frame_equal(rows, one.rows[columns], atol=0.06)


def test_online_trains_on_the_views_that_would_be_stored(exp, one, tmp_path):
    "Three epochs online show the first three views; class-token heads end with equal weights"
    small = replace(exp, fusions=('max_pooling', 'lstm'))
    stored = run(replace(small, augmentation='views=3'), tmp_path / 'stored', **QUIET)
    fresh = run(replace(small, augmentation='online'), tmp_path / 'fresh', **QUIET)
    assert set(fresh.rows.augmentation) == {'online views=8 area=0.4,1 ratio=0.75,1.3333'}
    probes = [p.spec.name for p in fresh.bank.probes]
    ours, theirs = fresh.predictions.of(probes[0]), stored.predictions.of(probes[0])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (
        fresh.extraction.clips.split.eq('train').sum()
        < stored.extraction.clips.split.eq('train').sum()
    )
    assert one.rows.augmentation.iloc[0].startswith('views=8')


def test_runs_of_the_former_layout_keep_their_names():
    "Names as version 0.1.0+705f54c gave them, before there were seeds, augmentation and adaptation"
    clips = pd.DataFrame(dict(key=['k1', 'k0'], label=['open', 'close']))
    plain = Experiment(root='/data', augmentation='none')
    some = dict(fusions=('lstm', 'max_pooling'), reader=(('split', 0),), recipe=Recipe(epochs=3))
    assert run_name(plain, clips) == '276fe0d2742c'
    assert run_name(replace(plain, **some), clips) == '7f44166398e9'
    assert run_name(replace(plain, seeds=(0, 1)), clips) != '276fe0d2742c'


def test_several_seeds_are_trained_in_one_pass_and_rows_say_which(exp, one, tmp_path):
    small = replace(exp, fusions=('max_pooling', 'lstm'), seeds=(0, 3), companions=('ridge',))
    result = run(small, tmp_path, **QUIET)
    rows = result.rows.drop_duplicates('probe').set_index('probe')
    assert list(rows.index) == [
        'max_pooling',
        'lstm',
        'max_pooling seed=3',
        'lstm seed=3',
        'ridge',
        'random',
    ]
    assert rows.seed['lstm seed=3'] == 3 and rows.lr['lstm'] == 1e-3
    assert np.isnan(rows.lr['ridge']) and set(rows.adaptation) == {'none'}
    assert set(rows.data) == {'rendered'}
    before = one.predictions.of('max_pooling')
    np.testing.assert_allclose(result.predictions.of('max_pooling'), before, atol=1e-2)


def test_a_finished_run_opens_from_a_copy_that_is_read_only(one, tmp_path):
    copy = Path(shutil.copytree(one.folder.parent.parent, tmp_path / 'copy'))
    for path in copy.rglob('*'):
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    again = load_result(copy / 'runs' / one.folder.name)
    assert replace(again.experiment, root='') == replace(one.experiment, root='')
    np.testing.assert_array_equal(again.predictions.logits, one.predictions.logits)
    np.testing.assert_allclose(embed(again, 'max_pooling'), embed(one, 'max_pooling'), atol=1e-6)
    pd.testing.assert_frame_equal(again.rows[['probe', 'top1']], one.rows[['probe', 'top1']])
    assert len(repr(again).splitlines()) <= 15 and 'rendered' in repr(again)


def test_an_unknown_trained_view_is_said_before_any_work(exp):
    wrong = replace(exp, reader=(('trained_view', 'inner_miror'),))
    with pytest.raises(InputError, match='inner_mirror'):
        read_segments(wrong)


def test_a_diverged_split_leaves_the_mean_empty(one):
    lost = one.rows.copy()
    lost.loc[lost.probe == 'lstm', 'balanced_accuracy'] = np.nan
    mean = mean_over_splits([one.rows, lost]).set_index(['probe', 'view']).balanced_accuracy
    assert mean['lstm'].isna().all() and mean['max_pooling'].notna().all()
