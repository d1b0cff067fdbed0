"Corrected logits: shares as expected, nothing where nothing is known, and by hand where that is possible"

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from fmhar.adaptation.knowledge import Known
from fmhar.adaptation.logits import (
    T3A,
    Lame,
    PriorMatching,
    finite,
    lame_logits,
    prior_offsets,
    spread,
    surprise,
    t3a_logits,
)
from fmhar.errors import InputError

RNG = np.random.default_rng(0)
Y = RNG.integers(5, size=300)
TRAINED = 3 * np.eye(5)[Y] + RNG.normal(size=(300, 5))


def others(n):
    "Every clip knows all others"
    return [Known(np.arange(n), np.arange(n), ~np.eye(n, dtype=bool))]


def test_shares_of_the_known_clips_become_the_prior():
    prior = np.array([0.5, 0.2, 0.2, 0.05, 0.05])
    offsets = prior_offsets(TRAINED, prior, np.ones((1, 300), bool), n_iter=500)[0]
    np.testing.assert_allclose(softmax(TRAINED + offsets, 1).mean(0), prior, atol=1e-4)


def test_each_clip_has_offsets_of_its_own_known_clips():
    may = RNG.random((6, 40)) < 0.5
    prior = np.full(5, 0.2)
    together = prior_offsets(TRAINED[:40], prior, may)
    for row, offsets in zip(may, together):
        alone = prior_offsets(TRAINED[:40][row], prior, np.ones((1, row.sum()), bool))[0]
        np.testing.assert_allclose(offsets, alone, atol=1e-8)


def test_strength_lies_between_nothing_and_all():
    prior, may = np.array([0.6, 0.1, 0.1, 0.1, 0.1]), np.ones((1, 300), bool)
    size = [np.abs(prior_offsets(TRAINED, prior, may, strength=s)).max() for s in (0, 0.5, 1)]
    assert size[0] < 1e-12 and size[1] < size[2]


def test_a_class_of_share_zero_is_ruled_out_and_huge_logits_stay_finite():
    prior = np.array([0.5, 0.5, 0, 0, 0])
    z = 500 * TRAINED
    offsets = prior_offsets(z, prior, np.ones((1, 300), bool))
    assert np.isfinite(offsets).all()
    mild = TRAINED + prior_offsets(TRAINED, prior, np.ones((1, 300), bool))
    assert (mild.argmax(1) < 2).all()


def test_a_lean_towards_one_class_is_undone_without_labels():
    new = 0.3 * TRAINED + np.array([3.0, 0, 0, 0, 0])
    assert (new.argmax(1) == Y).mean() < 0.4
    z = PriorMatching().fit(TRAINED, Y).adapt_logits(new, others(300))
    assert (z.argmax(1) == Y).mean() > (TRAINED.argmax(1) == Y).mean() - 0.05


def test_the_size_of_a_new_cameras_logits_does_not_matter():
    m = PriorMatching().fit(TRAINED, Y)
    a, b = (m.adapt_logits(f * TRAINED, others(300)) for f in (0.1, 10))
    np.testing.assert_allclose(a, b, atol=1e-6)
    m = PriorMatching(same_spread=False).fit(TRAINED, Y)
    a, b = (m.adapt_logits(f * TRAINED, others(300)) for f in (0.1, 10))
    assert np.abs(a - b).max() > 1


def test_clips_that_know_nothing_keep_their_answers():
    none = [Known(np.arange(300), np.arange(0), np.zeros((300, 0), bool))]
    m = PriorMatching().fit(TRAINED, Y)
    np.testing.assert_allclose(m.adapt_logits(TRAINED, none), TRAINED / m.temperature_)


def test_classes_that_were_never_learnt_are_never_answered():
    z = TRAINED.copy()
    z[:, 3] = -np.inf
    kept = Y != 3
    m = PriorMatching().fit(z[kept], Y[kept])
    out = m.adapt_logits(z, others(300))
    assert np.isfinite(out).all() and (out.argmax(1) != 3).all()


def test_a_class_distribution_unlike_training_shows_in_the_surprise():
    prior = np.full(5, 0.2)
    alike = surprise(3 * TRAINED, prior)
    few = surprise(3 * TRAINED[Y == 1], prior)
    assert alike[0] < 0.15 < 0.5 < few[0] and alike[1] > 4 and few[1] < 3


def test_t3a_without_clips_is_the_classifiers_cosine_and_keeps_the_surest():
    w = RNG.normal(size=(3, 4))
    x = RNG.normal(size=(6, 4))
    cosine = x @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    np.testing.assert_allclose(T3A().fit(w).adapt(x, x[:0]), cosine, atol=1e-8)
    sure, unsure = np.array([[9.0, 0]]), np.array([[1.0, 0.9]])
    a, b = (T3A(2).fit(np.eye(2)).adapt(np.eye(2), np.vstack(k)) for k in ((sure, unsure), (sure,)))
    assert a.argmax(1).tolist() == [0, 1] and b.argmax(1).tolist() == [0, 1]
    assert not np.allclose(a, b) or np.allclose(a[:, 1], b[:, 1])


def test_lame_is_the_softmax_where_there_is_no_neighbour():
    z = RNG.normal(size=(1, 4))
    np.testing.assert_allclose(Lame().adapt(z, np.ones((1, 3))), log_softmax(z, 1), atol=1e-8)


def test_lame_is_a_fixed_point_of_its_own_equation():
    z, x = RNG.normal(size=(20, 4)), RNG.normal(size=(20, 3))
    y = softmax(Lame(4, 0.5, n_iter=300).adapt(z, x), 1)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = u @ u.T - 9 * np.eye(20)
    w = np.zeros((20, 20))
    for i in range(20):
        w[i, np.argsort(-near[i])[:4]] = 1
    again = softmax(log_softmax(z, 1) + 0.5 * ((w + w.T) / 2) @ y, 1)
    np.testing.assert_allclose(again, y, atol=1e-6)


@pytest.mark.parametrize('adapt', [t3a_logits, lame_logits])
def test_by_a_rule_only_known_clips_count(adapt):
    x, w = RNG.normal(size=(12, 4)), RNG.normal(size=(3, 4))
    may = np.zeros((12, 12), bool)
    may[0, [3, 4]] = True
    blocks = [Known(np.arange(12), np.arange(12), may)]
    method = T3A().fit(w) if adapt is t3a_logits else Lame(2)
    a = adapt(method, x @ w.T, x, blocks)
    other = x.copy()
    other[5:] += 3
    b = adapt(method, other @ w.T, other, blocks)
    np.testing.assert_allclose(a[0], b[0])
    np.testing.assert_allclose(a[1:5], (x @ w.T)[1:5])


def test_spread_and_finite_by_hand():
    assert spread(np.array([[1.0, -1.0], [1.0, -1.0]])) == 1
    np.testing.assert_array_equal(finite([[1.0, -np.inf]]), [[1, -29]])
    np.testing.assert_array_equal(finite([[-np.inf, -np.inf]]), [[-30, -30]])


def test_labels_of_another_length_say_so():
    with pytest.raises(InputError, match='do not fit'):
        PriorMatching().fit(TRAINED, Y[1:])


def test_few_known_clips_are_trusted_less():
    prior, may = np.full(5, 0.2), np.zeros((2, 300), bool)
    may[0, :2], may[1, :] = True, True
    sure, wary = (prior_offsets(TRAINED, prior, may, strength=s) for s in (1.0, None))
    small, large = np.abs(wary).max(1) / np.abs(sure).max(1)
    assert small < 0.5 and large > small
    alone = prior_offsets(TRAINED, prior, may[1:], strength=300 / 305)
    np.testing.assert_allclose(wary[1:], alone, atol=1e-9)
