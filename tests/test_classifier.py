"scikit-learn's own checks, clips of several axes, and nothing pickled"

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from fmhar.classifier import FusionClassifier
from fmhar.errors import InputError
from fmhar.fusion.base import FUSIONS
from fmhar.probe import ProbeBank, ProbeSpec, save_bank

QUICK = dict(epochs=15, lr=1e-2, batch_size=16, device='cpu')


@parametrize_with_checks([FusionClassifier(options={'hidden': 32}, **QUICK | dict(lr=0.03))])
def test_sklearns_estimator_checks(estimator, check):
    check(estimator)


def clips(n=60, shape=(6, 3, 16), seed=0):
    "Three classes, each a direction"
    rng = np.random.default_rng(seed)
    y = np.array(['open', 'close', 'eat'])[np.arange(n) % 3]
    means = np.random.default_rng(9).normal(size=(3, shape[-1]))
    return rng.normal(size=(n, *shape)) + means[np.arange(n) % 3].reshape(n, 1, 1, -1), y


@pytest.mark.parametrize('name', list(FUSIONS))
def test_every_head(name):
    X, y = clips()
    X = X if FUSIONS[name].tokens == 'all' else X[:, :, 0]
    clf = FusionClassifier(name, **QUICK).fit(X[:40], y[:40])
    assert list(clf.classes_) == ['close', 'eat', 'open']
    p = clf.predict_proba(X[40:])
    assert p.shape == (20, 3) and np.allclose(p.sum(1), 1)
    assert np.array_equal(clf.predict(X[40:]), clf.classes_[p.argmax(1)])
    if name not in ('temporal_moments', 'attended_moments'):  # nothing moves here
        assert clf.score(X[40:], y[40:]) > 0.8


def test_four_axes_are_read_as_class_token_and_patches():
    X, y = clips()
    a = FusionClassifier('max_pooling', **QUICK).fit(X, y)
    b = FusionClassifier('max_pooling', **QUICK).fit(X[:, :, 0], y)
    assert np.array_equal(a.predict_proba(X), b.predict_proba(X[:, :, 0]))


def test_batches_do_not_matter():
    X, y = clips(150)
    clf = FusionClassifier('self_attention_all_max', **QUICK).fit(X[:30], y[:30])
    whole = clf.predict_proba(X)
    parts = np.concatenate([clf.predict_proba(x) for x in np.array_split(X, 7)])
    assert np.allclose(whole, parts, atol=1e-6)


def test_random_state():
    X, y = clips(shape=(6, 1, 16))
    same = [FusionClassifier(**QUICK, random_state=3).fit(X[:, :, 0], y) for _ in range(2)]
    other = FusionClassifier(**QUICK, random_state=4).fit(X[:, :, 0], y)
    a, b, c = (m.decision_function(X[:, :, 0]) for m in (*same, other))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert clone(other).random_state == 4


def test_in_a_pipeline():
    X, y = clips()
    reverse = FunctionTransformer(lambda x: x[:, ::-1])
    model = make_pipeline(reverse, FusionClassifier('tcn', **QUICK)).fit(X[:, :, 0], y)
    assert model.score(X[:, :, 0], y) > 0.9


@pytest.mark.parametrize('labels', [['a', 'b', 'c'], [3, 5, 7]])
def test_save_and_load(labels, tmp_path):
    X, y = clips()
    y = np.array(labels)[np.unique(y, return_inverse=True)[1]]
    clf = FusionClassifier('cross_attention_all', options={'heads': 2}, **QUICK).fit(X, y)
    clf.save(tmp_path / 'model')
    again = FusionClassifier.load(tmp_path / 'model')
    assert np.array_equal(clf.predict_proba(X), again.predict_proba(X))
    assert np.array_equal(clf.predict(X), again.predict(X))
    assert again.get_params() == clf.get_params()
    assert {p.suffix for p in (tmp_path / 'model').iterdir()} == {'.json', '.safetensors'}


def test_a_probe_trained_elsewhere(tmp_path):
    "One probe of a bank, with the names of its classes"
    bank = ProbeBank([ProbeSpec('lstm', 3e-4), ProbeSpec('tcn')], 16, 3)
    save_bank(bank.keep(['tcn']), tmp_path, classes=['open', 'close', 'eat'])
    clf = FusionClassifier.load(tmp_path)
    X = clips()[0][:, :, 0]
    assert clf.fusion == 'tcn' and set(clf.predict(X)) <= {'open', 'close', 'eat'}
    save_bank(bank, tmp_path)
    with pytest.raises(InputError, match='several probes'):
        FusionClassifier.load(tmp_path)


def test_errors():
    X, y = clips()
    with pytest.raises(InputError, match='reads .clips, frames, tokens, features'):
        FusionClassifier('cross_attention_all').fit(X[:, :, 0], y)
    with pytest.raises(InputError, match='Unknown fusion head'):
        FusionClassifier('gru').fit(X, y)
    with pytest.raises(ValueError, match='contains NaN'):
        FusionClassifier().fit(np.full_like(X, np.nan), y)
    with pytest.raises(ValueError, match='inconsistent numbers of samples'):
        FusionClassifier().fit(X, y[:-1])
    clf = FusionClassifier(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match='expecting 288 features'):
        clf.predict(X[..., :8])


def test_a_training_that_diverges_is_an_error():
    X, y = clips()
    with pytest.raises(InputError, match='(?s)diverged.*smaller lr'):
        FusionClassifier(epochs=3, lr=1e35, batch_size=16, device='cpu').fit(X, y)


def test_frames_of_a_table():
    X = pd.DataFrame(clips(shape=(1, 1, 4))[0][:, 0, 0], columns=list('abcd'))
    clf = FusionClassifier(**QUICK).fit(X, clips()[1])
    assert list(clf.feature_names_in_) == list('abcd')
