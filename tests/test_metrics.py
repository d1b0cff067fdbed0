"Metrics agree with scikit-learn and torchmetrics, and do what is stated where those leave it open"

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torchmetrics.functional import classification as tm

from fmhar import metrics
from fmhar.errors import InputError


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


@st.composite
def problems(draw, ties=False):
    "(labels, scores, number of classes), with classes that never occur"
    n_classes = draw(st.integers(2, 8))
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = rng.permutation(n_classes)[: draw(st.integers(1, n_classes))]
    scores = rng.integers(0, 3, (n, n_classes)) if ties else rng.normal(size=(n, n_classes))
    return rng.choice(present, n), scores.astype(float), n_classes


@settings(deadline=None, max_examples=60)
@given(problems())
def test_accuracies_agree_with_scikit_learn(problem):
    y, scores, n_classes = problem
    pred = scores.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # scikit-learn warns of predictions of an absent class
        theirs = sk.balanced_accuracy_score(y, pred)
    assert metrics.balanced_accuracy(y, pred, n_classes) == pytest.approx(theirs)
    assert metrics.top_k_accuracy(y, scores, 1) == pytest.approx(sk.accuracy_score(y, pred))
    for k in range(1, n_classes) if n_classes > 2 else ():  # for two it takes one score column
        theirs = sk.top_k_accuracy_score(y, scores, k=k, labels=np.arange(n_classes))
        assert metrics.top_k_accuracy(y, scores, k) == pytest.approx(theirs)


@settings(deadline=None, max_examples=40)
@given(problems())
def test_accuracies_agree_with_torchmetrics(problem):
    y, scores, n_classes = problem
    pred = scores.argmax(1)
    t_y, t_pred, t_scores = (torch.from_numpy(a) for a in (y, pred, scores))
    counts = tm.multiclass_confusion_matrix(t_pred, t_y, n_classes)
    np.testing.assert_array_equal(metrics.confusion(y, pred, n_classes), counts)
    recall = tm.multiclass_recall(t_pred, t_y, n_classes, average='none').numpy()
    ours = metrics.per_class_accuracy(y, pred, n_classes)
    present = np.isin(np.arange(n_classes), y)
    np.testing.assert_array_equal(np.isnan(ours), ~present)
    np.testing.assert_allclose(ours[present], recall[present], atol=1e-6)
    for k in range(1, n_classes):
        theirs = tm.multiclass_accuracy(t_scores, t_y, n_classes, average='micro', top_k=k)
        assert metrics.top_k_accuracy(y, scores, k) == pytest.approx(float(theirs), abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(problems(ties=True), st.integers(1, 8))
def test_a_shared_tie_is_the_mean_over_random_tie_breaks(problem, k):
    y, scores, _ = problem
    rng = np.random.default_rng(0)
    broken = [
        metrics.top_k_accuracy(y, scores + rng.random(scores.shape) / 2, k) for _ in range(400)
    ]
    error = np.std(broken) / np.sqrt(len(broken))
    assert abs(np.mean(broken) - metrics.top_k_accuracy(y, scores, k)) <= 5 * error + 1e-9


@settings(deadline=None, max_examples=30)
@given(problems(ties=True))
def test_metrics_do_not_depend_on_the_order_of_clips_or_classes(problem):
    y, scores, n_classes = problem
    rng = np.random.default_rng(0)
    clips, classes = rng.permutation(len(y)), rng.permutation(n_classes)
    again = np.argsort(classes)[y[clips]], scores[clips][:, classes]
    for k in (1, 2, n_classes):
        assert metrics.top_k_accuracy(*again, k) == pytest.approx(
            metrics.top_k_accuracy(y, scores, k)
        )
    place = np.argsort(classes)
    here = metrics.within_pair_accuracy(y, scores, [(0, 1)])
    there = metrics.within_pair_accuracy(*again, [(place[1], place[0])])
    assert there == pytest.approx(here, nan_ok=True)


def test_a_mean_over_classes_leaves_absent_ones_out_and_counts_the_rest():
    y, pred = np.array([0, 0, 2]), np.array([0, 1, 2])
    assert metrics.balanced_accuracy(y, pred, 5) == pytest.approx((0.5 + 1) / 2)
    assert metrics.n_classes_present(y) == 2


def test_nothing_to_score_is_nan_and_no_warning():
    y, scores = np.array([], int), np.zeros((0, 3))
    values = [
        metrics.balanced_accuracy(y, y, 3),
        metrics.top_k_accuracy(y, scores, 1),
        metrics.within_pair_accuracy(y, scores, [(0, 1)]),
        *metrics.per_class_accuracy(y, y, 3),
    ]
    assert np.isnan(values).all()
    assert metrics.confusion(y, y, 3).sum() == 0


@pytest.mark.parametrize('k', [1, 2, 5, 9])
def test_a_head_that_says_nothing_scores_chance(k):
    y = np.arange(100) % 7
    assert metrics.top_k_accuracy(y, np.zeros((100, 7)), k) == pytest.approx(metrics.chance(7, k))
    assert metrics.within_pair_accuracy(y, np.zeros((100, 7)), [(0, 1), (2, 3)]) == 0.5


def test_within_a_pair_the_commoner_class_is_worth_no_more():
    y = np.array([0] * 90 + [1] * 10)
    always_first = np.tile([1.0, 0.0, 5.0], (100, 1))
    assert metrics.within_pair_accuracy(y, always_first, [(0, 1)]) == 0.5


@settings(deadline=None, max_examples=40)
@given(problems())
def test_within_a_pair_it_is_the_balanced_accuracy_of_a_two_class_problem(problem):
    y, scores, n_classes = problem
    ours = metrics.within_pair_accuracy(y, scores, [(0, 1)])
    of_pair = np.isin(y, [0, 1])
    if len(np.unique(y[of_pair])) < 2:
        assert np.isnan(ours)
    else:
        theirs = sk.balanced_accuracy_score(y[of_pair], scores[of_pair][:, :2].argmax(1))
        assert ours == pytest.approx(theirs)


@settings(deadline=None, max_examples=40)
@given(problems(), st.floats(0.1, 30))
def test_proper_scores_agree_with_scikit_learn(problem, scale):
    y, scores, n_classes = problem
    logits, labels = scale * scores, np.arange(n_classes)
    p = softmax(logits, 1)
    ours = metrics.negative_log_likelihood(y, logits)
    if p.min() > 1e-12:  # it clips smaller ones
        assert ours == pytest.approx(sk.log_loss(y, p, labels=labels))
    assert ours >= 0 and np.isfinite(ours)
    theirs = sk.brier_score_loss(y, p, labels=labels, scale_by_half=False)
    assert metrics.brier(y, logits) == pytest.approx(theirs)


@settings(deadline=None, max_examples=30)
@given(problems(), st.floats(0.1, 5))
def test_scores_agree_with_torch_and_torchmetrics(problem, scale):
    y, scores, n_classes = problem
    t_y, t_logits = torch.from_numpy(y), torch.from_numpy(scale * scores)
    ours = metrics.negative_log_likelihood(y, scale * scores)
    assert ours == pytest.approx(float(torch.nn.functional.cross_entropy(t_logits, t_y)))
    p = torch.from_numpy(softmax(scale * scores, 1))
    theirs = tm.multiclass_calibration_error(p, t_y, n_classes, n_bins=1)  # its bins: equal widths
    assert metrics.calibration_error(y, scale * scores, 1) == pytest.approx(float(theirs), abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 10_000))
def test_equal_mass_bins_are_scikit_learns_quantile_bins(n_bins, per_bin, seed):
    rng = np.random.default_rng(seed)
    n = n_bins * per_bin
    y, logits = rng.integers(0, 4, n), 2 * rng.normal(size=(n, 4))
    right, sure = logits.argmax(1) == y, softmax(logits, 1).max(1)
    if n > 1:
        true, said = calibration_curve(right, sure, n_bins=n_bins, strategy='quantile')
        assert metrics.calibration_error(y, logits, n_bins) == pytest.approx(
            np.abs(true - said).mean()
        )


def test_with_one_bin_the_calibration_error_is_the_gap_of_the_means():
    rng = np.random.default_rng(0)
    y, logits = rng.integers(0, 4, 50), rng.normal(size=(50, 4))
    gap = softmax(logits, 1).max(1).mean() - (logits.argmax(1) == y).mean()
    assert metrics.calibration_error(y, logits, 1) == pytest.approx(abs(gap))


def test_calibration_bins_have_equal_mass():
    "90 clips in 3 bins, by hand"
    rng = np.random.default_rng(0)
    y, logits = rng.integers(0, 4, 90), 3 * rng.normal(size=(90, 4))
    confidence, right = softmax(logits, 1).max(1), logits.argmax(1) == y
    bins = np.split(np.argsort(confidence), 3)
    by_hand = np.mean([abs(confidence[b].mean() - right[b].mean()) for b in bins])
    assert metrics.calibration_error(y, logits, 3) == pytest.approx(by_hand)


@settings(deadline=None, max_examples=30)
@given(problems(ties=True), st.integers(1, 20))
def test_calibration_does_not_depend_on_the_order_of_clips(problem, n_bins):
    y, logits, _ = problem
    order = np.random.default_rng(0).permutation(len(y))
    again = metrics.calibration_error(y[order], logits[order], n_bins)
    assert again == pytest.approx(metrics.calibration_error(y, logits, n_bins))


@pytest.mark.parametrize('temperature', [0.3, 1.0, 4.0])
def test_the_fitted_temperature_is_the_one_that_was_put_on(temperature):
    rng = np.random.default_rng(0)
    honest = 2 * rng.normal(size=(20_000, 4))
    p = softmax(honest, 1)
    y = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)
    logits = temperature * honest
    fitted = metrics.fit_temperature(y, logits)
    assert fitted == pytest.approx(temperature, rel=0.05)
    best = metrics.negative_log_likelihood(y, logits / fitted)
    for other in (0.9, 1.1):
        assert metrics.negative_log_likelihood(y, logits / (fitted * other)) > best
    assert metrics.calibration_error(y, logits / fitted) < 0.02


# -- common and rare classes ---------------------------------------------------------------------
@st.composite
def counted(draw):
    "(labels, splits, classes): some classes never occur, and counts tie often"
    classes = list('hgfedcba')[: draw(st.integers(1, 8))]
    pairs = st.tuples(st.sampled_from(classes), st.sampled_from(['train', 'val', 'test']))
    rows = draw(st.lists(pairs, min_size=1, max_size=40))
    return [r[0] for r in rows], [r[1] for r in rows], classes


@settings(deadline=None)
@given(counted(), st.sampled_from(['train', 'test', 'all']))
def test_halves_are_the_classes_sorted_by_count(data, basis):
    labels, splits, classes = data
    if basis not in ('all', *splits):
        with pytest.raises(InputError, match='basis'):
            metrics.halves(labels, splits, classes, basis=basis)
        return
    n = Counter(c for c, s in zip(labels, splits) if basis in ('all', s))
    by_hand = sorted(classes, key=lambda c: (-n[c], classes.index(c)))
    found = metrics.halves(labels, splits, classes, basis=basis)
    assert found['class'].tolist() == by_hand
    assert found.n.tolist() == [n[c] for c in by_hand]
    assert found.half.tolist() == ['common'] * -(-len(classes) // 2) + ['rare'] * (
        len(classes) // 2
    )


def test_halves_refuse_a_label_that_is_no_class():
    with pytest.raises(InputError, match='eating'):
        metrics.halves(['eating'], ['train'], ['drinking'])


@settings(deadline=None, max_examples=60)
@given(problems(), st.data())
def test_scores_of_a_half_are_those_of_its_clips(problem, data):
    "Restricted to some classes' clips: scikit-learn's macro recall over them, its accuracy"
    y, scores, n_classes = problem
    kept = data.draw(st.lists(st.integers(0, n_classes - 1), unique=True, min_size=1))
    mine = np.isin(y, kept)
    pred = scores.argmax(1)
    ours = metrics.balanced_accuracy(y[mine], pred[mine], n_classes)
    present = sorted(set(y) & set(kept))
    if not present:
        assert np.isnan(ours) and np.isnan(metrics.top_k_accuracy(y[mine], scores[mine], 1))
        return
    theirs = sk.recall_score(y, pred, labels=present, average='macro')  # of all clips
    assert ours == pytest.approx(theirs)
    top1 = metrics.top_k_accuracy(y[mine], scores[mine], 1)
    assert top1 == pytest.approx(sk.accuracy_score(y[mine], pred[mine]))
