"A rule shows only what it says, never a label, and in the right order of time"

import numpy as np
import pandas as pd
import pytest
import torch

from fmhar.adaptation.apply import adapt_run
from fmhar.adaptation.knowledge import KNOWLEDGE, known, twins
from fmhar.errors import InputError

RULES = [r for r in KNOWLEDGE if r != 'none']


def clips(seed=0):
    "Three people, three cameras, two recordings each, segments in mixed order, two clips a segment"
    rows = [
        dict(segment=f'{v}{w}{r}{i}', clip=c, event=f'{w}{r}{i}', view=v, subject=w, start=20 * i)
        | dict(end=20 * i + 25 * (i == 2) + 20 * (i != 2), path=f'{v}/{w}{r}', label='ab'[i % 2])
        for v in ('front', 'side', 'top')
        for w in 'xyz'
        for r in range(2)
        for i in range(4)
        for c in range(2)
        if not (v == 'front' and i == 3)  # the old camera missed one
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)
    table.attrs = dict(trained_view='front', classes=['a', 'b'], cluster='subject')
    return table


def pairs(table, rule):
    "(asked, known) rows, one pair a line, as two tables"
    got = [
        (i, j)
        for block in known(table, rule)
        for i, may in zip(block.asked, block.may)
        for j in block.known[may]
    ]
    asked, seen = np.array(got).reshape(-1, 2).T
    return table.iloc[asked].reset_index(drop=True), table.iloc[seen].reset_index(drop=True)


@pytest.mark.parametrize('rule', KNOWLEDGE)
def test_every_clip_is_asked_once(rule):
    asked = np.concatenate([b.asked for b in known(clips(), rule)])
    assert sorted(asked) == list(range(len(clips())))


@pytest.mark.parametrize('rule', RULES)
def test_no_clip_of_the_asked_segment_nor_another_cameras(rule):
    a, b = pairs(clips(), rule)
    assert len(a) and (a.segment != b.segment).all() and (a['view'] == b['view']).all()
    assert (a.event != b.event).all()


def test_recording_and_causal_stay_in_the_file_and_causal_in_the_past():
    for rule in ('recording', 'causal'):
        a, b = pairs(clips(), rule)
        assert (a.path == b.path).all()
    assert (b.end <= a.start).all()
    assert not (b.segment.str[-1].eq('2') & a.segment.str[-1].eq('3')).any()  # it still runs


def test_recording_is_all_others_of_the_file():
    a, _ = pairs(clips(), 'recording')
    n = a.groupby(['segment', 'clip']).size()
    assert (n[n.index.get_level_values(0).str.startswith('side')] == 6).all()


def test_camera_and_synchronous_know_other_people_only():
    for rule in ('camera', 'synchronous'):
        a, b = pairs(clips(), rule)
        assert (a.subject != b.subject).all()
    assert set(b.event) <= set(clips().query("view == 'front'").event)


def test_twins_are_the_same_moment_on_the_old_camera():
    table = clips()
    rows = np.flatnonzero(table['view'] == 'side')
    of = twins(table, rows)
    missed = table.event.iloc[rows].str.endswith('3').to_numpy()
    np.testing.assert_array_equal(of < 0, missed)
    a, b = table.iloc[rows[~missed]], table.iloc[of[~missed]]
    assert (a.event.values == b.event.values).all() and (b['view'] == 'front').all()
    assert (a['clip'].values == b['clip'].values).all()


def test_a_column_recording_joins_files():
    table = clips().assign(recording=lambda t: t.subject)
    a, b = pairs(table, 'recording')
    assert (a.subject == b.subject).all() and (a.path != b.path).any()


@pytest.mark.parametrize('rule', KNOWLEDGE)
def test_labels_and_the_order_of_rows_do_not_matter(rule):
    table = clips()
    other = table.assign(label=table.label.sample(frac=1, random_state=1).values)
    other.attrs = table.attrs
    for a, b in zip(known(table, rule), known(other, rule)):
        np.testing.assert_array_equal(a.may, b.may)
    bare = table.drop(columns='label')
    assert len(known(bare, rule)) == len(known(table, rule))


def test_a_file_a_clip_says_what_to_do():
    table = clips()
    table = table[table['clip'] == 0].assign(path=lambda t: t.segment)
    with pytest.raises(InputError, match='column `recording`'):
        known(table, 'recording')
    with pytest.raises(InputError, match='Unknown kind of knowledge'):
        known(table, 'all')


# --- leaks, through the whole of a run


@pytest.fixture(scope='module')
def run():
    from test_adaptation_apply import in_memory

    return in_memory('train', 'abcd', 0), in_memory('test', 'xyz', 1)


def allowed(table, rule, i):
    block = next(b for b in known(table, rule) if i in b.asked)
    return set(block.known[block.may[list(block.asked).index(i)]])


@pytest.mark.parametrize('name', ['recording', 'causal', 'camera', 'recording+prior', 'prior'])
def test_an_answer_changes_with_nothing_but_what_may_be_known(run, name):
    train, test = run
    rule = name.split('+')[0] if name != 'prior' else 'footage'
    i = int(np.flatnonzero((test.table['view'] == 'side') & (test.table.start == 18 * 5))[0])
    may = allowed(test.table, rule, i)
    before = adapt_run(train, None, test, None, [name])[name].logits[0, i]
    outside, inside = test.copy(), test.copy()
    noise = 9 * np.random.default_rng(0).normal(size=test.cls.shape)
    for j in range(len(test)):
        if j != i:
            (inside if j in may else outside).cls[j] += torch.from_numpy(noise[j]).float()
    np.testing.assert_allclose(
        adapt_run(train, None, outside, None, [name])[name].logits[0, i],
        before,
        rtol=1e-4,
        atol=1e-4,
    )
    after = adapt_run(train, None, inside, None, [name])[name].logits[0, i]
    assert np.abs(after - before).max() > 1e-2
