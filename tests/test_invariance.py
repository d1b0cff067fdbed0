"Each measure of invariance, on data where the answer is known"

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from fmhar.analysis import view_invariance as inv
from fmhar.analysis.erasing import ViewEraser, erase_view
from fmhar.analysis.sentences import erasing, ranking, telling
from fmhar.errors import InputError
from fmhar.evaluation.predictions import Predictions

VIEWS = np.array(['front', 'left', 'top'])


def vectors(rng, action=1.0, event=1.0, view=1.0, noise=1.0, labels=None, dim=20):
    "Sum of an action's, an event's and a view's place and noise, in random row order"
    labels = np.arange(30) % 5 if labels is None else np.asarray(labels)
    n = len(labels)
    e, v = np.divmod(rng.permutation(n * 3), 3)
    x = action * rng.normal(size=(labels.max() + 1, dim))[labels][e]
    x = x + event * rng.normal(size=(n, dim))[e] + view * rng.normal(size=(3, dim))[v]
    table = pd.DataFrame(dict(event=e, view=VIEWS[v], label=labels[e], subject=e // 5))
    return x + noise * rng.normal(size=x.shape), table


# -- CKA -----------------------------------------------------------------------------------------
def test_hsic_is_the_u_statistic():
    "Song et al. 2012: the mean over all 4-tuples of different rows"
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 3))
    k, m = x @ x.T, y @ y.T
    tuples = list(permutations(range(6), 4))
    u = np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in tuples])
    assert inv.unbiased_hsic(k, m) == pytest.approx(u)


def test_cka_is_one_up_to_rotation_scale_and_shift_and_zero_on_average_for_strangers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 50))
    rotation = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    assert inv.debiased_cka(x, 7 * x @ rotation + 3) == pytest.approx(1)
    strangers = [inv.debiased_cka(*rng.normal(size=(2, 20, 50))) for _ in range(200)]
    assert abs(np.mean(strangers)) < 3 * np.std(strangers) / np.sqrt(200) + 1e-3
    assert np.std(strangers) < 0.1


def test_cka_matrix_is_that_of_synchronised_rows_whatever_their_order():
    x, table = vectors(np.random.default_rng(0))
    matrix = inv.cka_between_views(x, table)
    order = {v: table[table.view == v].sort_values('event').index for v in VIEWS}
    expected = inv.debiased_cka(x[order['front']], x[order['top']])
    assert matrix.loc['front', 'top'] == pytest.approx(expected)
    assert (matrix == matrix.T).all(axis=None) and (np.diag(matrix) == 1).all()


def test_events_that_a_view_missed_are_left_out():
    x, table = vectors(np.random.default_rng(0))
    kept = ~((table.event == 3) & (table.view == 'top')).to_numpy()
    block, events, views = inv.by_event(x[kept], table[kept].reset_index(drop=True))
    assert block.shape == (29, 3, 20) and 3 not in events
    row = table.index[(table.event == 7) & (table.view == views[1])][0]
    np.testing.assert_array_equal(block[list(events).index(7), 1], x[row])
    with pytest.raises(InputError, match='Several vectors'):
        inv.by_event(np.vstack([x, x]), pd.concat([table, table], ignore_index=True))


# -- view probe ----------------------------------------------------------------------------------
def test_the_view_probe_finds_views_and_only_views():
    rng = np.random.default_rng(0)
    assert inv.view_probe(*vectors(rng, view=3)) > 0.95
    blind = [inv.view_probe(*vectors(rng, view=0)) for _ in range(10)]
    assert abs(np.mean(blind) - 1 / 3) < 0.06


def test_the_view_probe_holds_people_out():
    "A person's own place in each view, unlike any other person's, tells nothing of others"
    rng = np.random.default_rng(0)
    x, table = vectors(rng, view=0)
    own = table.groupby(['subject', 'view']).ngroup()
    x = x + 20 * rng.normal(size=(own.max() + 1, 20))[own]
    assert inv.view_probe(x, table) < 0.6
    assert inv.view_probe(x, table.assign(subject=np.arange(len(x)))) > 0.9  # leaks


# -- retrieval, mixing, agreement ----------------------------------------------------------------
def test_twins_are_found_when_the_event_outweighs_the_view():
    rng = np.random.default_rng(0)
    found = inv.twin_retrieval(*vectors(rng, event=5, view=0.2, noise=0.2))
    assert (found.twin == 1).all() and len(found) == 6
    found = inv.twin_retrieval(*vectors(rng, action=0, event=0))
    assert abs(found.twin.mean() - 1 / 30) < 0.05 and (found.chance_twin == 1 / 30).all()


def test_same_class_is_found_without_the_twin():
    found = inv.twin_retrieval(*vectors(np.random.default_rng(0), action=5, event=0, view=0))
    assert (found.same_class == 1).all() and found.twin.mean() < 0.5
    assert found.chance_class[0] == pytest.approx(0.2)


def test_centring_takes_off_the_place_of_a_view():
    x, table = vectors(np.random.default_rng(0), event=2, view=0, noise=0.1)
    moved = x + 100 * np.random.default_rng(1).normal(size=(3, 20))[pd.factorize(table.view)[0]]
    plain, centred = (inv.twin_retrieval(moved, table, centre=c).twin.mean() for c in (False, True))
    assert centred == 1 and plain < 0.7


def test_neighbours_are_those_of_scikit_learn():
    x, table = vectors(np.random.default_rng(0))
    views, labels = table.view.to_numpy(), table.label.to_numpy()
    found = inv.neighbour_shares(x, table, k=7)
    near = NearestNeighbors(n_neighbors=7).fit(x).kneighbors(return_distance=False)
    assert found.share.other_view == pytest.approx((views[near] != views[:, None]).mean())
    assert found.share.same_class == pytest.approx((labels[near] == labels[:, None]).mean())
    assert found.chance.other_view == pytest.approx(60 / 89)
    assert found.chance.same_class == pytest.approx(17 / 89)
    assert inv.view_mixing(x, table, k=7) == pytest.approx(found.share.other_view / (60 / 89))
    hits = []
    for view in VIEWS:
        here, there = views == view, views != view
        near = NearestNeighbors(n_neighbors=7).fit(x[there]).kneighbors(x[here])[1]
        hits.append(labels[there][near] == labels[here][:, None])
    assert found.share.same_class_elsewhere == pytest.approx(np.concatenate(hits).mean())
    assert found.chance.same_class_elsewhere == pytest.approx(12 / 60)


def test_neighbours_of_many_vectors_are_found_in_parts():
    x = np.random.default_rng(0).normal(size=(4500, 3))
    near = inv.nearest(x, 4, lambda rows: rows[:, None] == np.arange(len(x)))
    expected = NearestNeighbors(n_neighbors=4).fit(x).kneighbors(return_distance=False)
    np.testing.assert_array_equal(np.sort(near), np.sort(expected))


def test_neighbours_of_few_vectors_and_one_view():
    x, table = vectors(np.random.default_rng(0))
    one = (table.view == 'top').to_numpy()
    found = inv.neighbour_shares(x[one], table[one], k=200)  # more than there are
    assert list(found.index) == ['other_view', 'same_class'] and found.share.other_view == 0
    assert found.share.same_class == pytest.approx(found.chance.same_class)


def test_agreement_counts_common_events():
    table = pd.DataFrame(
        [(e, v, 'ab'[e % 2]) for e in range(6) for v in ('front', 'top')],
        columns=['event', 'view', 'label'],
    )
    table = table.assign(segment=table.index, split='test')[:-1]  # the last event lacks the top
    said = [0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1]
    p = Predictions(table, np.eye(2, dtype=np.float32)[said][None], ['lstm'], ['a', 'b'])
    row = inv.agreement(p, 'lstm').iloc[0]
    assert (row.agree, row.n) == (0.8, 5)
    observed, expected = 0.8, (3 * 2 + 2 * 3) / 25
    assert row.kappa == pytest.approx((observed - expected) / (1 - expected))


# -- variance ------------------------------------------------------------------------------------
@pytest.mark.parametrize('labels', [np.arange(30) % 5, [0] * 15 + [1] * 8 + [2] * 5 + [3] * 2])
def test_shares_of_variance_are_those_that_were_put_in(labels):
    rng = np.random.default_rng(0)
    weights = dict(action=1.0, event=0.7, view=0.5, noise=1.2)
    x, table = vectors(rng, **weights, labels=labels, dim=6000)
    expected = np.array(list(weights.values())) ** 2
    shares = inv.variance_shares(x, table)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.02)


def test_a_part_that_is_not_there_has_no_share():
    x, table = vectors(np.random.default_rng(0), action=0, view=0, dim=2000)
    shares = inv.variance_shares(x, table)
    assert shares.action < 0.01 and shares.view < 0.01
    assert shares.event == pytest.approx(0.5, abs=0.03)


# -- eraser --------------------------------------------------------------------------------------
@pytest.mark.parametrize('dim', [8, 200])  # more rows than features, and fewer
def test_after_erasure_no_linear_map_knows_the_view(dim):
    x, table = vectors(np.random.default_rng(0), view=2, dim=dim)
    erased = ViewEraser().fit(x, table.view).transform(x)
    means = pd.DataFrame(erased).groupby(table.view.to_numpy()).mean().to_numpy()
    assert np.abs(means - erased.mean(0)).max() < 1e-8  # equal means: guardedness
    said = LogisticRegression(C=1e3, max_iter=2000).fit(erased, table.view).predict_proba(erased)
    np.testing.assert_allclose(said, 1 / 3, atol=1e-3)
    np.testing.assert_allclose(erased.mean(0), x.mean(0), atol=1e-10)
    assert np.linalg.matrix_rank(x - erased, tol=1e-6) == 2  # three views


def test_erasure_is_the_published_formula():
    "r(x) = x - W^+ P W (x - mean), P onto the columns of W cov(x, z), W = cov(x)^(-1/2)"
    x, table = vectors(np.random.default_rng(0), dim=8)
    z = pd.get_dummies(table.view).to_numpy(float)
    centred = x - x.mean(0)
    root = sqrtm(centred.T @ centred / len(x)).real
    w = np.linalg.inv(root)
    whitened = w @ centred.T @ (z - z.mean(0)) / len(x)
    projection = whitened @ np.linalg.pinv(whitened)
    expected = x - centred @ (root @ projection @ w).T
    erased = ViewEraser().fit(x, table.view).transform(x)
    np.testing.assert_allclose(erased, expected, atol=1e-8)


def test_erasure_keeps_the_action_and_is_done_once():
    x, table = vectors(np.random.default_rng(0), view=3)
    eraser = ViewEraser().fit(x, table.view)
    erased = eraser.transform(x)
    np.testing.assert_allclose(eraser.transform(erased), erased, atol=1e-8)
    assert inv.silhouette(erased, table.label) > inv.silhouette(x, table.label) + 0.05
    assert inv.silhouette(erased, table.view) < 0.01
    assert inv.view_probe(erased, table) < 0.45


def test_one_view_has_nothing_to_erase():
    x, table = vectors(np.random.default_rng(0))
    one = (table.view == 'top').to_numpy()
    eraser = ViewEraser().fit(x[one], table.view[one])
    np.testing.assert_array_equal(eraser.transform(x), x)


def test_a_head_of_one_view_works_on_others_once_the_view_is_erased():
    "Novel views are the trained one moved aside: erasing brings them back, without any label"
    rng = np.random.default_rng(0)
    x, table = vectors(rng, action=2, event=0.3, view=6, noise=0.3, dim=12)
    trained = (table.view == 'front').to_numpy()
    head = LogisticRegression(max_iter=500).fit(x[trained], table.label[trained])
    erased = erase_view(x, table, trained_view='front')
    before, after = (head.score(v[~trained], table.label[~trained]) for v in (x, erased))
    assert before < 0.6 and after > 0.95
    assert head.score(erased[trained], table.label[trained]) > 0.95


def test_an_eraser_never_saw_the_person_it_is_applied_to():
    x, table = vectors(np.random.default_rng(0))
    mine = (table.subject == 2).to_numpy()
    before = erase_view(x, table, trained_view='front')
    y = x.copy()
    y[mine] *= 10
    after = erase_view(y, table, trained_view='front')
    eraser = ViewEraser().fit(x[~mine], table.view[~mine])
    home = x[~mine & (table.view == 'front')].mean(0) - x[~mine].mean(0)
    np.testing.assert_allclose(before[mine], eraser.transform(x[mine]) + home)
    np.testing.assert_allclose(after[mine], eraser.transform(10 * x[mine]) + home)


# -- how sure ------------------------------------------------------------------------------------
def test_an_interval_from_few_people_covers_the_truth():
    "People differ; a clip-wise interval would not cover, the jackknife does"
    rng, covered, by_clip = np.random.default_rng(0), [], []
    people = pd.Series(np.repeat(np.arange(6), 20), name='person')
    for _ in range(600):
        x = rng.normal(0.5, 0.1, size=6)[people] + 0.1 * rng.normal(size=120)
        made = inv.jackknife(lambda keep: pd.DataFrame(dict(twin=[x[keep].mean()])), people)  # noqa: B023
        row = made.intervals().iloc[0]
        covered.append(row.low <= 0.5 <= row.high)
        by_clip.append(abs(x.mean() - 0.5) < 1.96 * x.std() / 120**0.5)
    assert 0.93 < np.mean(covered) < 0.97 and np.mean(by_clip) < 0.7


def made(n=3):
    "Three kinds of vectors of the same segments"
    kinds = dict(zip('abc'[:n], (4.0, 1.0, 0.0)))
    table = vectors(np.random.default_rng(1))[1]
    return {k: vectors(np.random.default_rng(1), view=v)[0] for k, v in kinds.items()}, table


def test_each_left_out_value_is_that_of_the_others():
    kinds, table = made()
    sure = inv.invariance(kinds, table)
    assert sure.left_out.shape == (6, 3, 9) and sure.n_clusters == 6
    keep = (table.subject != table.subject.unique()[2]).to_numpy()
    shares = inv.variance_shares(kinds['b'][keep], table[keep].reset_index(drop=True))
    m = list(sure.point.columns).index('view_share')
    assert sure.left_out[2, 1, m] == pytest.approx(shares.view)
    assert sure.difference('a', 'a', 'twin') == (0, 0, 0)
    d, low, high = sure.difference('b', 'a', 'view_share')
    assert d == pytest.approx(sure.point.view_share.a - sure.point.view_share.b)
    wide = sure.difference('b', 'a', 'view_share', tests=10)
    assert wide[1] < low < d < high < wide[2]


def test_agreement_is_among_the_measures_when_there_are_predictions():
    kinds, table = made(1)
    table = table.assign(segment=table.index, split='test', label=table.label.map(str))
    logits = np.eye(5, dtype=np.float32)[table.label.astype(int)][None]
    p = Predictions(table, logits, ['a'], list('01234'))
    sure = inv.invariance(kinds, table, predictions=p)
    assert sure.point.loc['a', 'agree'] == 1 and sure.point.loc['a', 'kappa'] == 1


@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('people', [1, 6])
def test_the_sentences_follow_from_the_numbers(n, people):
    kinds, table = made(n)
    table = table.assign(subject=table.subject % people)
    sure = inv.invariance(kinds, table)
    texts = telling(sure, 1 / 3), ranking(sure)
    assert all('nan' not in t and t.endswith('.') for t in texts)
    assert 'best from a (' in texts[0]
    if n == 3:
        assert 'worst from c (' in texts[0] and 'least of the variance in c' in texts[1]
    if people == 1:
        assert 'nothing follows' in texts[0]
    elif n == 3:
        assert 'apart, significant with 6 subjects' in texts[1]
        above = (sure.intervals().query("measure == 'view_probe'").low > 1 / 3).sum()
        assert f'for {above} of 3 the interval lies above' in texts[0]


def test_a_difference_that_is_none_is_called_within():
    kinds, table = made()
    noise = 0.01 * np.random.default_rng(2).normal(size=kinds['b'].shape)
    sure = inv.invariance({'one': kinds['b'], 'two': kinds['b'] + noise}, table)
    assert 'apart, not significant with 6 subjects' in ranking(sure)


def test_erasing_in_words():
    assert 'a loss' in erasing(-0.03, -0.05, -0.01, 5, 'subject')
    assert 'nothing follows' in erasing(0.01, np.nan, np.nan, 1, 'subject')


def test_an_action_that_occurs_once_is_not_told_from_its_event():
    rng = np.random.default_rng(0)
    x, table = vectors(rng, labels=np.arange(30), dim=4000, action=1, event=0, view=1, noise=1)
    shares = inv.variance_shares(x, table)
    assert np.isnan(shares.event)
    np.testing.assert_allclose(shares.drop('event'), 1 / 3, atol=0.03)
