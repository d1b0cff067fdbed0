"Moment LDA is scikit-learn's LDA, leaves people out exactly, and adds up over processes"

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fmhar.adaptation.moment_lda import (
    MomentLDA,
    Scatter,
    calibrated,
    fit_batches,
    within_rows,
    within_sums,
)
from fmhar.adaptation.moments import legendre, temporal_features
from fmhar.errors import InputError

T = 6


def clips(n=90, dim=5, n_classes=3, people=3, seed=0, noise=1.0):
    "Clips whose class lies in the mean and in the way it moves"
    rng = np.random.default_rng(seed)
    mean, move = np.random.default_rng(9).normal(size=(2, n_classes, 1, dim))
    y = rng.integers(n_classes, size=n)
    time = np.linspace(-1, 1, T)[:, None]
    x = mean[y] + move[y] * time + noise * rng.normal(size=(n, T, dim))
    return x.astype(np.float32), y, rng.integers(people, size=n)


def sklearns(x, y, z, s):
    return LinearDiscriminantAnalysis(solver='lsqr', shrinkage=s).fit(x, y).decision_function(z)


def alike(a, b, **tol):
    "Scores are equal but for what all classes share"
    np.testing.assert_allclose(a - a[:, :1], b - b[:, :1], **tol)


@pytest.mark.parametrize('dim', [4, 40])  # 40 x 3 features of 90 clips: D > n
@pytest.mark.parametrize('s', [0.02, 0.3, 1.0])
def test_scores_are_scikit_learns_also_with_more_features_than_clips(dim, s):
    x, y, who = clips(dim=dim)
    z = clips(dim=dim, seed=1)[0]
    head = MomentLDA(shrinkage=s).fit(x, y, who)
    f, g = temporal_features(x).astype(float), temporal_features(z).astype(float)
    alike(head.decision_function(z), sklearns(f, y, g, s), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dim', [4, 40])
@pytest.mark.parametrize('s', [0.02, 0.3, 1.0])
def test_a_left_out_person_is_left_out_exactly(dim, s):
    x, y, who = clips(dim=dim)
    head = MomentLDA(shrinkage=s).fit(x, y, who)
    f = temporal_features(x).astype(float)
    for p in range(3):
        expected = sklearns(f[who != p], y[who != p], f[who == p], s)
        alike(head.held_out_[who == p], expected, rtol=1e-4, atol=1e-3)


def test_a_person_who_is_left_out_changes_nothing_in_the_others_scores_of_it():
    x, y, who = clips()
    a = MomentLDA(shrinkage=0.3).fit(x, y, who).held_out_
    moved = x.copy()
    moved[who == 1] += 100 * np.random.default_rng(5).normal(size=moved[who == 1].shape)
    b = MomentLDA(shrinkage=0.3).fit(x, y, who)
    within, _ = within_rows(temporal_features(moved), y, who, 3)
    w, offset = within.solve(0.3, 1)
    z = (temporal_features(x) - within.origin) @ within.basis
    alike((z @ w + offset)[who == 1], a[who == 1], rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(a, b.held_out_)


def test_sums_give_what_rows_give_and_add_up_over_processes():
    x, y, who = clips(dim=7)
    f = temporal_features(x).astype(float)
    parts = [Scatter(21, 3, f.mean(0)).add(f[i::4], y[i::4], who[i::4]) for i in range(4)]
    sums = within_sums(parts[0] + parts[1] + (parts[2] + parts[3]))
    rows, _ = within_rows(f, y, who, 3)
    for leave in (None, 0, 2):
        a, b = (
            (f - one.origin) @ one.basis @ one.solve(0.1, leave)[0] + one.solve(0.1, leave)[1]
            for one in (rows, sums)
        )
        alike(a, b, rtol=1e-6, atol=1e-6)


def test_sums_about_different_points_are_refused():
    with pytest.raises(InputError, match='different points'):
        Scatter(2, 2) + Scatter(2, 2, [1, 1])


def test_batches_choose_and_fit_as_all_rows_do():
    x, y, who = clips(n=200, noise=2.0)
    candidates = [('m0',), ('m0', 'm1')]
    whole = MomentLDA(candidates).fit(x, y, who)
    streamed = MomentLDA(candidates)
    fit_batches(streamed, lambda: ((x[i::5], y[i::5], who[i::5]) for i in range(5)), 3)
    assert streamed.parts_ == whole.parts_ and streamed.shrinkage_ == whole.shrinkage_
    np.testing.assert_allclose(streamed.coef_, whole.coef_, rtol=1e-4, atol=1e-5)


def test_a_clip_backwards_has_minus_the_first_moment():
    x = clips()[0]
    a, b = (temporal_features(z, ('m0', 'm1', 'm2', 'max')) for z in (x, x[:, ::-1]))
    sign = np.repeat([1, -1, 1, 1], 5)
    np.testing.assert_allclose(a * sign, b, atol=1e-5)


@pytest.mark.parametrize('n', [1, 2, 5, 16])
def test_polynomials_are_orthogonal_on_any_number_of_frames(n):
    basis = legendre(n, min(3, n - 1))
    np.testing.assert_allclose(basis @ basis.T / n, np.eye(len(basis)), atol=1e-9)
    with pytest.raises(InputError, match='More temporal moments than frames'):
        legendre(n, n)


def test_ties_go_to_the_strongest_shrinkage_and_the_first_parts():
    x, y, who = clips(noise=0.01)
    head = MomentLDA([('m0', 'm1'), ('m0', 'm1', 'm2')], careful=0).fit(x, y, who)
    best = head.cv_[head.cv_.balanced_accuracy == head.cv_.balanced_accuracy.max()]
    assert len(best) > 1 and best.iloc[0].parts == ' '.join(head.parts_)
    assert head.shrinkage_ == best.iloc[0].shrinkage == best.shrinkage.max()


def test_a_careful_choice_is_within_one_standard_error_and_shrinks_more():
    x, y, who = clips(n=240, noise=3.0, people=8, dim=12)
    bold, careful = (MomentLDA(careful=c).fit(x, y, who) for c in (0, 1))
    table = bold.cv_
    best = table.loc[table.balanced_accuracy.idxmax()]
    good = table[table.balanced_accuracy >= best.balanced_accuracy - best.error]
    assert bold.shrinkage_ == best.shrinkage
    assert careful.shrinkage_ == good.shrinkage.max() >= bold.shrinkage_ and best.error > 0


def test_the_error_is_that_of_the_mean_over_people():
    x, y, who = clips(n=200, noise=3.0, people=5)
    head = MomentLDA(shrinkage=0.3).fit(x, y, who)
    right = head.held_out_.argmax(1) == y
    shares = [right[who == p].mean() for p in range(5)]
    assert head.cv_.error[0] == pytest.approx(np.std(shares, ddof=1) / 5**0.5)


@pytest.mark.parametrize('size', [1e-3, 1.0, 1e5])
def test_the_temperature_suits_scores_of_any_size(size):
    y = np.arange(300) % 3
    z = 2 * np.eye(3)[y] + np.random.default_rng(0).normal(size=(300, 3))
    assert calibrated(y, size * z) == pytest.approx(size * calibrated(y, z), rel=0.02)


def test_a_class_that_one_person_alone_shows_is_learnt_but_not_judged():
    x, y, who = clips()
    y, who = y.copy(), who.copy()
    who[y == 2] = 0
    head = MomentLDA().fit(x, y, who)
    assert (head.predict(x) == 2).any()
    assert np.isneginf(head.held_out_[who == 0, 2]).all()
    assert head.cv_.balanced_accuracy.notna().all() and np.isfinite(head.temperature_)


def test_one_person_leaves_segments_out():
    x, y, _ = clips()
    head = MomentLDA().fit(x, y, segments=np.arange(90) // 2)
    assert head.cv_.balanced_accuracy.max() > 0.5 and np.isfinite(head.held_out_).all()


def test_two_people_of_different_classes_can_still_be_fitted():
    x, y, _ = clips(n_classes=2)
    head = MomentLDA().fit(x, y, groups=y)
    assert (head.predict(x) == y).mean() > 0.9


def test_constant_features_do_no_harm():
    x, y, who = clips()
    wide = np.concatenate([x, np.full_like(x, 7.0)], -1)
    a, b = (MomentLDA(shrinkage=1.0, norm=False).fit(z, y, who) for z in (x, wide))
    np.testing.assert_array_equal(a.predict(x), b.predict(wide))
    assert np.isfinite(MomentLDA().fit(wide, y, who).coef_).all()


def test_features_that_never_vary_within_a_class_are_refused():
    y = np.arange(8) % 2
    with pytest.raises(InputError, match='do not vary'):
        MomentLDA(norm=False).fit(np.ones((8, T, 2)) * y[:, None, None], y)


def test_balanced_priors_differ_by_the_log_shares():
    x, y, who = clips()
    y = np.where(np.random.default_rng(0).random(90) < 0.7, 0, y)
    a, b = (MomentLDA(shrinkage=0.3, priors=p).fit(x, y, who) for p in ('train', 'balanced'))
    shares = np.bincount(y) / 90
    np.testing.assert_allclose(a.intercept_ - b.intercept_, np.log(shares * 3), atol=1e-8)
    np.testing.assert_array_equal(a.coef_, b.coef_)


def test_labels_may_be_strings_and_the_estimator_can_be_cloned():
    x, y, who = clips()
    names = np.array(['close', 'open', 'read'])[y]
    head = clone(MomentLDA(shrinkage=0.3)).fit(x, names, who)
    assert set(head.predict(x)) <= set(names) and head.score(x, names) > 0.8
    np.testing.assert_allclose(head.predict_proba(x).sum(1), 1)


def test_half_precision_features_and_nan_free_scores():
    x, y, who = clips()
    head = MomentLDA().fit(x.astype(np.float16), y, who)
    assert np.isfinite(head.decision_function(x.astype(np.float16))).all()


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(parts=('m0', 'mean')), 'Unknown part'),
        (dict(shrinkage=0.0), 'Not a shrinkage'),
        (dict(priors='flat'), 'Unknown kind of priors'),
        (dict(parts=('m0', 'm9')), 'More temporal moments'),
    ],
)
def test_impossible_settings_say_what_is_wrong(change, message):
    x, y, who = clips()
    with pytest.raises(InputError, match=message):
        MomentLDA(**change).fit(x, y, who)


def test_one_class_and_wrong_lengths_say_so():
    x, y, who = clips()
    with pytest.raises(InputError, match='two classes'):
        MomentLDA().fit(x, 0 * y, who)
    with pytest.raises(InputError, match='differ in length'):
        MomentLDA().fit(x, y[1:], who)
    with pytest.raises(InputError, match='Not tokens'):
        MomentLDA().fit(x[:, 0], y, who)
