"Each measure of invariance, on data where the answer is known"

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from fmhar import invariance as inv
from fmhar.errors import InputError
from fmhar.evaluation import Predictions

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


def test_mixing_counts_neighbours_as_scikit_learn_does():
    x, table = vectors(np.random.default_rng(0))
    views = table.view.to_numpy()
    near = NearestNeighbors(n_neighbors=7).fit(x).kneighbors(return_distance=False)
    share = (views[near] != views[:, None]).mean()
    assert inv.view_mixing(x, views, k=7) == pytest.approx(share / (60 / 89))


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
    erased = inv.ViewEraser().fit(x, table.view).transform(x)
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
    erased = inv.ViewEraser().fit(x, table.view).transform(x)
    np.testing.assert_allclose(erased, expected, atol=1e-8)


def test_erasure_keeps_the_action_and_is_done_once():
    x, table = vectors(np.random.default_rng(0), view=3)
    eraser = inv.ViewEraser().fit(x, table.view)
    erased = eraser.transform(x)
    np.testing.assert_allclose(eraser.transform(erased), erased, atol=1e-8)
    assert inv.silhouette(erased, table.label) > inv.silhouette(x, table.label) + 0.05
    assert inv.silhouette(erased, table.view) < 0.01
    assert inv.view_probe(erased, table) < 0.45


def test_one_view_has_nothing_to_erase():
    x, table = vectors(np.random.default_rng(0))
    one = (table.view == 'top').to_numpy()
    eraser = inv.ViewEraser().fit(x[one], table.view[one])
    np.testing.assert_array_equal(eraser.transform(x), x)
