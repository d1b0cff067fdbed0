"Intervals cover what they should, where resampling clips does not; paired tests hold their level"

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import recall_score

from fmhar.errors import InputError
from fmhar.evaluation.predictions import Predictions, join
from fmhar.evaluation.scores import score
from fmhar.statistics import (
    beats_chance,
    bootstrap,
    cluster_counts,
    differences,
    holm,
    intervals,
    not_worse,
)

CLASSES = list('abc')


def people(rng, n_people=12, n_events=15, knack=0.25, heads=('one',), views=('front',)):
    "Each person is good or bad at everything, so clips of one person agree"
    person = np.repeat(np.arange(n_people), n_events)
    label = rng.integers(0, 3, len(person))
    chance = 0.5 + rng.choice([-knack, knack], n_people)[person]
    n_views = len(views)
    table = pd.DataFrame(dict(subject=person, label=np.array(CLASSES)[label]))
    table['event'] = np.arange(len(table))
    table = table.loc[table.index.repeat(n_views)].reset_index(drop=True)
    table['view'] = list(views) * len(person)
    table['segment'] = np.arange(len(table))
    table['split'] = 'test'
    table.attrs = dict(cluster='subject', classes=CLASSES, trained_view=views[0])
    chance, label = np.repeat(chance, n_views), np.repeat(label, n_views)
    said = [
        np.where(rng.random(len(label)) < chance, label, (label + 1 + rng.integers(0, 2)) % 3)
        for _ in heads
    ]
    logits = np.stack([np.eye(3, dtype=np.float32)[s] for s in said])
    return Predictions(table, logits, list(heads), CLASSES)


def covered(p, truth=0.5, **options):
    "Does the interval of the first head hold the truth?"
    row = intervals(bootstrap(p, trained_view='front', n_resamples=250, **options)).iloc[0]
    return row.low <= truth <= row.high


def coverage(n_runs, **options):
    "Share of made-up datasets whose interval holds the truth: by people and by clips"
    seeds = range(n_runs)
    ours = [covered(people(np.random.default_rng(s), **options)) for s in seeds]
    clips = [covered(people(np.random.default_rng(s), **options), cluster='event') for s in seeds]
    return np.mean(ours), np.mean(clips)


def test_resampling_people_covers_and_resampling_clips_does_not():
    by_people, by_clips = coverage(150)
    assert 0.90 <= by_people <= 0.99  # 95 % less or more two and a half standard errors
    assert by_clips < 0.75


@pytest.mark.slow
@pytest.mark.parametrize('n_people', [5, 12, 30])
def test_coverage_at_length(n_people):
    by_people, by_clips = coverage(1000, n_people=n_people)
    assert 0.925 <= by_people <= 0.975 and by_clips < 0.8


def test_without_anything_in_common_clips_would_do_too():
    by_people, by_clips = coverage(100, knack=0.0)
    assert by_people >= 0.88 and by_clips >= 0.88


def test_equal_heads_are_called_different_as_often_as_the_level_says():
    "Two heads with the same skill, 150 times"
    p = [
        differences(
            bootstrap(
                people(np.random.default_rng(s), heads=('one', 'two')),
                trained_view='front',
                n_resamples=250,
            )
        ).p[0]
        for s in range(150)
    ]
    assert 0.005 <= np.mean(np.array(p) < 0.05) <= 0.11
    assert 0.3 < np.mean(np.array(p) < 0.5) < 0.7


def test_points_are_the_scores():
    p = people(np.random.default_rng(0), heads=('one', 'two'), views=('front', 'side', 'top'))
    p.classes = list('abcdefgh')
    rng = np.random.default_rng(0)
    p.logits = rng.integers(0, 4, (2, len(p.table), 8)).astype(np.float32)  # ties are many
    rows = score(p, trained_view='front').set_index(['probe', 'view'])
    for metric in ('balanced_accuracy', 'top1', 'top5'):
        boot = bootstrap(p, trained_view='front', metric=metric, n_resamples=10)
        assert boot.views == ['front', 'side', 'top', 'novel']
        for row in intervals(boot).itertuples():
            expected = rows[metric][row.head, row.view]
            assert getattr(row, metric) == pytest.approx(expected)


def test_a_resample_is_what_repeating_the_peoples_rows_gives():
    p = people(np.random.default_rng(1), n_people=5, n_events=3, views=('front', 'side'))
    boot = bootstrap(p, trained_view='front', n_resamples=40, seed=3)
    drawn = np.random.default_rng(3).multinomial(5, np.full(5, 1 / 5), 40)
    for weights, values in zip(drawn, boot.resampled[:, 0]):
        times = p.table.subject.map(dict(enumerate(weights)))
        for view, value in zip(boot.views, values):
            of_view = np.flatnonzero(p.table.view == view) if view != 'novel' else None
            if of_view is None:
                assert value == pytest.approx(values[1])  # one novel view
                continue
            rows = np.repeat(of_view, times.iloc[of_view])
            truth, said = p.labels[rows], p.logits[0, rows].argmax(1)
            present = np.unique(truth)
            expected = recall_score(truth, said, labels=present, average='macro')
            assert value == pytest.approx(expected)


def test_all_views_and_heads_of_a_resample_are_of_the_same_people():
    p = people(np.random.default_rng(0), heads=('one', 'two'), views=('front', 'side'))
    p.logits[:] = p.logits[:1, np.repeat(np.arange(0, len(p.table), 2), 2)]  # all say the same
    boot = bootstrap(p, trained_view='front', n_resamples=50)
    assert (np.ptp(boot.resampled, axis=(1, 2)) < 1e-12).all()
    found = differences(boot)
    assert (found.difference == 0).all() and found.p.isna().all()


def test_more_people_give_narrower_intervals():
    few, many = (
        intervals(bootstrap(people(np.random.default_rng(0), n), trained_view='front')).iloc[0]
        for n in (8, 80)
    )
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert few.warning == 'only 8 subjects: too few for a reliable interval' and many.warning == ''


def test_one_person_says_nothing_of_others():
    boot = bootstrap(people(np.random.default_rng(0), 1, heads=('a', 'b')), trained_view='front')
    row = intervals(boot).iloc[0]
    assert np.isnan([row.low, row.high]).all() and 'one subject' in row.warning
    assert differences(boot)[['p', 'p_holm', 'low']].isna().all(axis=None)


def test_a_diverged_probe_has_no_interval_and_is_no_part_of_the_family():
    p = people(np.random.default_rng(0), heads=('a', 'b', 'c'))
    p.logits[1] = np.nan
    boot = bootstrap(p, trained_view='front', n_resamples=100)
    rows = intervals(boot).set_index('head')
    assert rows.loc['b'][['balanced_accuracy', 'low', 'high']].isna().all()
    assert rows.loc[['a', 'c']].low.notna().all()
    found = differences(boot).set_index(['a', 'b'])
    assert found.p_holm['a', 'c'] == found.p['a', 'c']
    assert np.isnan(found.p_holm['a', 'b'])


def test_seeds_are_a_second_source_of_uncertainty():
    rng = np.random.default_rng(0)
    p = people(rng, n_people=30, knack=0.0, heads=[f'lstm {i}' for i in range(4)])
    heads = {'lstm': p.probes}
    p.logits[:] = p.logits[:1]
    same = intervals(bootstrap(p, trained_view='front', heads=heads)).iloc[0]
    alone = intervals(bootstrap(p, trained_view='front')).iloc[0]
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high))
    assert (same.n_seeds, alone.n_seeds) == (4, 1)
    p.logits[2:] = 1 - np.eye(3)[p.labels]  # two runs failed altogether
    apart = intervals(bootstrap(p, trained_view='front', heads=heads)).iloc[0]
    assert apart.balanced_accuracy == pytest.approx(same.balanced_accuracy / 2)
    assert apart.high - apart.low > 3 * (same.high - same.low)


def test_the_spread_over_seeds_is_not_biased_by_their_number():
    "With two runs, drawing both again half the time would halve the variance"
    p = people(np.random.default_rng(0), n_people=2, n_events=300, knack=0.0, heads=('r1', 'r2'))
    p.logits[0], p.logits[1] = np.eye(3)[p.labels], 1 - np.eye(3)[p.labels]  # 1 and 0
    boot = bootstrap(p, trained_view='front', heads={'lstm': p.probes}, n_resamples=4000)
    assert boot.resampled.std() == pytest.approx(np.std([0, 1], ddof=1) / np.sqrt(2), rel=0.05)


def seed_coverage(n_runs, n_seeds, luck=0.1):
    "Coverage of the mean over seeds and people: with the seeds as a second level, and of one run"
    heads, ours, one = [f'run {i}' for i in range(n_seeds)], [], []
    for seed in range(n_runs):
        rng = np.random.default_rng(seed)
        p = people(rng, n_events=20, heads=heads)
        label, person = p.labels, p.table.subject.to_numpy()
        skill = 0.5 + rng.choice([-0.1, 0.1], 12)[person]
        for z in p.logits:  # each training run is lucky or not
            right = rng.random(len(label)) < skill + luck * rng.normal()
            z[:] = np.eye(3)[
                np.where(right, label, (label + 1 + rng.integers(0, 2, len(label))) % 3)
            ]
        ours.append(covered(p, heads={'lstm': heads}))
        one.append(covered(p))
    return np.mean(ours), np.mean(one)


def test_with_seeds_as_a_second_level_intervals_cover_the_mean_over_runs():
    with_seeds, one_run = seed_coverage(80, 3)
    assert with_seeds >= 0.9 and one_run < 0.8


@pytest.mark.slow
@pytest.mark.parametrize('n_seeds', [3, 5, 10])
def test_coverage_over_seeds_at_length(n_seeds):
    with_seeds, one_run = seed_coverage(600, n_seeds)
    assert 0.93 <= with_seeds <= 0.995 and one_run < 0.75


def test_guessing_beats_chance_as_often_as_the_level_says():
    "Answers that prefer some classes, of people who show some actions more often"
    p_values = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        p = people(rng, n_people=3, n_events=20)
        often = rng.choice(3, len(p.table), p=[0.6, 0.3, 0.1])
        p.logits[0] = np.eye(3)[often]
        p.table['label'] = np.array(CLASSES)[rng.choice(3, len(p.table), p=[0.2, 0.2, 0.6])]
        found = beats_chance(p, 'front', n_permutations=100, seed=seed)
        p_values.append(found.p[0])
    assert 0.005 <= np.mean(np.array(p_values) <= 0.05) <= 0.11
    assert 0.35 < np.mean(np.array(p_values) <= 0.5) < 0.65


def test_what_is_better_than_guessing_is_so_by_the_score_it_says():
    p = people(
        np.random.default_rng(0),
        n_people=3,
        n_events=60,
        knack=0,
        heads=('one', 'two'),
        views=('front', 'side'),
    )
    p.logits[1] = 0  # names the first class always
    rows = score(p, trained_view='front').set_index(['probe', 'view']).balanced_accuracy
    found = beats_chance(p, 'side', n_permutations=200).set_index('head')
    assert found.balanced_accuracy['one'] == pytest.approx(rows['one', 'side'])
    assert found.p['one'] < 0.05 and found.shuffled['one'] == pytest.approx(1 / 3, abs=0.03)
    assert found.p['two'] == 1 and found.shuffled['two'] == pytest.approx(1 / 3)
    with pytest.raises(InputError, match='front, side'):
        beats_chance(p, 'top')


def test_people_who_only_do_what_the_network_expects_of_them_prove_nothing():
    "It knows each person's favourite action and looks at no picture: shuffling within people changes nothing"
    p = people(np.random.default_rng(0), n_people=3)
    p.table['label'] = np.array(CLASSES)[p.table.subject]
    p.logits[0] = np.eye(3)[p.table.subject]
    assert beats_chance(p, 'front', n_permutations=100).p[0] == 1


def test_chunks_of_one_annotation_move_together():
    "Guesses that stay the same throughout an annotation: chunk by chunk they would seem to know"
    whole, chunks = [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        p = people(rng, n_people=3, n_events=48)
        annotation = np.arange(len(p.table)) // 6  # six chunks each, all of one label
        p.table['event'] = [f'run/{a}/{i % 6}' for i, a in enumerate(annotation)]
        p.table['label'] = np.array(CLASSES)[rng.integers(0, 3, annotation.max() + 1)[annotation]]
        p.logits[0] = np.eye(3)[rng.integers(0, 3, annotation.max() + 1)[annotation]]
        p.table['chunk'] = p.table['event']
        options = dict(n_permutations=100, seed=seed)
        whole.append(beats_chance(p, 'front', **options).p[0] <= 0.05)
        chunks.append(beats_chance(p, 'front', instance='chunk', **options).p[0] <= 0.05)
    assert np.mean(whole) <= 0.11 and np.mean(chunks) > 0.17


def test_a_diverged_probe_beats_nothing():
    p = people(np.random.default_rng(0), heads=('a', 'b'))
    p.logits[1, 0] = np.nan
    found = beats_chance(p, 'front', n_permutations=50).set_index('head')
    assert found.loc['b'].isna().all() and found.loc['a'].notna().all()


def equal_heads(seed, n_seeds, scatter=0.05):
    "Two heads of one skill whose training runs scatter by five points"
    rng = np.random.default_rng(seed)
    names = {h: [f'{h} {i}' for i in range(n_seeds)] for h in 'ab'}
    p = people(rng, n_events=60, heads=names['a'] + names['b'])
    label, knack = p.labels, rng.choice([-0.1, 0.1], 12)[p.table.subject]
    for z in p.logits:
        right = rng.random(len(label)) < 0.5 + knack + scatter * rng.normal()
        wrong = (label + 1 + rng.integers(0, 2, len(label))) % 3
        z[:] = np.eye(3)[np.where(right, label, wrong)]
    return bootstrap(p, trained_view='front', heads=names, n_resamples=250)


def test_equal_heads_whose_runs_scatter_are_different_only_as_often_as_the_level_says():
    one, three = (
        np.mean([differences(equal_heads(s, n)).p[0] < 0.05 for s in range(100)]) for n in (1, 3)
    )
    assert one > 0.2 and three <= 0.09  # one run a head says nothing of other runs


def test_a_difference_without_spread_is_not_testable():
    "All people show the same difference, which is no certainty"
    p = people(np.random.default_rng(0), n_events=3, heads=('a', 'b'))
    p.table['label'] = CLASSES * 12
    p.logits[0] = np.eye(3)[p.labels]
    p.logits[1] = np.where((p.labels == 2)[:, None], np.eye(3)[0], np.eye(3)[p.labels])
    found = differences(bootstrap(p, trained_view='front', n_resamples=50)).iloc[0]
    assert found.difference == pytest.approx(-1 / 3)
    assert found[['p', 'p_holm', 'low', 'high']].isna().all()


def test_not_worse_than_the_best_beyond_chance():
    p = people(np.random.default_rng(0), n_people=20, heads=('a', 'b', 'c', 'd'), views=('x', 'y'))
    y = p.labels
    p.logits[0] = np.eye(3)[y]  # all right
    p.logits[1] = p.logits[0]
    p.logits[1, :2] = 0  # all but a handful
    p.logits[2] = np.eye(3)[np.where(np.arange(len(y)) % 3, y, (y + 1) % 3)]  # two of three
    p.logits[3] = np.nan
    marks = not_worse(bootstrap(p, trained_view='x', n_resamples=500))
    assert marks.loc[['a', 'b']].all(axis=None) and not marks.loc[['c', 'd']].any(axis=None)
    one = people(np.random.default_rng(0), n_people=1, heads=('a', 'b'))
    assert not not_worse(bootstrap(one, trained_view='front', n_resamples=50)).any(axis=None)


def test_statistics_import_without_torch():
    "A table of counts needs no network"
    code = 'import sys, fmhar.statistics; print(*sys.modules)'
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert 'fmhar.statistics' in loaded
    assert not loaded & {'torch', 'transformers', 'av', 'torch.distributed', 'huggingface_hub'}


def test_pairs_make_the_family():
    p = people(np.random.default_rng(0), heads=('a', 'b', 'c'), views=('front', 'side'))
    boot = bootstrap(p, trained_view='front', n_resamples=50)
    found = differences(boot, pairs=[('c', 'a'), ('b', 'c')], views=['front'])
    assert found[['a', 'b']].values.tolist() == [['c', 'a'], ['b', 'c']]
    np.testing.assert_allclose(found.p_holm, holm(found.p))
    with pytest.raises(InputError, match='a, b, c'):
        differences(boot, pairs=[('a', 'z')])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_stepping_down_rejects(p):
    p = np.array(p)
    adjusted = holm(p)
    assert (adjusted >= p).all() and (adjusted <= 1).all()
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), np.argsort(p, kind='stable')
        for i, j in enumerate(order):
            if p[j] * (len(p) - i) > level:
                break
            rejected.add(j)
        assert set(np.flatnonzero(adjusted <= level)) == rejected


def test_reference_and_views_make_the_family():
    p = people(np.random.default_rng(0), heads=('a', 'b', 'c'), views=('front', 'side'))
    boot = bootstrap(p, trained_view='front', n_resamples=50)
    assert len(differences(boot)) == 9
    family = differences(boot, reference='b', views=['novel'])
    assert family[['a', 'b', 'view']].values.tolist() == [['b', 'a', 'novel'], ['b', 'c', 'novel']]
    whole = differences(boot).set_index(['a', 'b', 'view'])
    assert family.difference[0] == pytest.approx(-whole.difference['a', 'b', 'novel'])
    with pytest.raises(InputError, match='a, b, c'):
        differences(boot, reference='d')


def test_runs_are_paired_by_what_they_answered_for():
    p = people(np.random.default_rng(0), heads=('a',), views=('front', 'side'))
    order = np.random.default_rng(1).permutation(len(p.table))
    mixed = Predictions(p.table.iloc[order], p.logits[:, order], p.probes, CLASSES)
    both = join({'x': p, 'y': mixed})
    np.testing.assert_array_equal(both.of('x/a'), both.of('y/a'))
    fewer = Predictions(p.table[2:], p.logits[:, 2:], p.probes, CLASSES)
    with pytest.raises(InputError, match='358 of them the same'):
        join({'x': p, 'y': fewer})


def test_counts_hold_every_segment_once():
    p = people(np.random.default_rng(0), views=('front', 'side'))
    right, total, views, clusters = cluster_counts(p, 'subject')
    assert total.sum() == len(p.table) and (views, len(clusters)) == (['front', 'side'], 12)
    assert right.sum() == (p.logits[0].argmax(1) == p.labels).sum()
