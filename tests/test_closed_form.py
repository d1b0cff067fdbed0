"Closed forms are scikit-learn's, choose on validation alone, and answer like any probe"

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors

from fmhar.analysis.companions import METHODS, closed_form, mean_cls, standardiser, tried
from fmhar.errors import InputError
from fmhar.evaluation.predictions import Predictions, join
from fmhar.evaluation.scores import score

CLASSES = ['closing', 'eating', 'never', 'opening', 'reading']


@dataclass
class InMemory:
    "What closed forms need of a feature dataset"

    table: pd.DataFrame
    cls: torch.Tensor
    classes = CLASSES

    @property
    def labels(self):
        return torch.tensor([CLASSES.index(x) for x in self.table.label])

    def __len__(self):
        return len(self.table)


def data(n=60, seed=0, views=('mirror',), n_clips=1, noise=3.0, n_classes=5, dim=16):
    "Segments of each view, every one with a few clips; nobody does `never`"
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(5, dim, generator=torch.Generator().manual_seed(9))
    seen = [c for c in range(n_classes) if c != 2]
    rows = [
        dict(segment=v * n + i, clip=c, event=i, view=view, split='test')
        | dict(label=CLASSES[seen[i % len(seen)]])
        for v, view in enumerate(views)
        for i in range(n)
        for c in range(n_clips)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)
    label = [CLASSES.index(x) for x in table.label]
    x = means[label][:, None] + noise * torch.randn(len(label), 4, dim, generator=g)
    scale = torch.logspace(-2, 2, dim)  # some features are large
    return InMemory(table, (scale * x).half())


def features(train, other):
    scale = standardiser(mean_cls(train))
    return scale(mean_cls(train)), scale(mean_cls(other))


def test_standardised_by_the_training_clips():
    train, test = data(), data(seed=1)
    x, z = features(train, test)
    assert np.allclose(x.mean(0), 0) and np.allclose(x.std(0), 1)
    assert np.abs(z.mean(0)).max() > 1e-3
    np.testing.assert_allclose(mean_cls(train), train.cls.float().mean(1), rtol=1e-6)


@pytest.mark.parametrize('n_classes', [2, 5])
def test_linear_ones_are_scikit_learns(n_classes):
    train, test = data(n_classes=n_classes), data(seed=1, n_classes=n_classes)
    x, z = features(train, test)
    y = np.unique(train.labels, return_inverse=True)[1]
    targets, n = 2 * np.eye(y.max() + 1)[y] - 1, len(x)
    seen = [c for c in range(n_classes) if c != 2]
    table, models = tried(train, test, 'ridge')
    for setting, model in zip(table.setting, models):
        expected = Ridge(alpha=setting * n).fit(x, targets).predict(z)
        np.testing.assert_allclose(model(test)[:, seen], expected, rtol=1e-4, atol=1e-5)
    table, models = tried(train, test, 'logistic_regression')
    for setting, model in zip(table.setting, models):
        theirs = LogisticRegression(C=1 / (setting * n), max_iter=1000).fit(x, y)
        expected = theirs.predict_log_proba(z)
        np.testing.assert_allclose(model(test)[:, seen], expected, rtol=1e-4, atol=1e-5)


def test_neighbours_vote_by_similarity():
    train, test = data(), data(seed=1)
    x, z = features(train, test)
    y = np.unique(train.labels, return_inverse=True)[1]
    table, models = tried(train, test, 'knn')
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, z)]
    cosine = unit[1] @ unit[0].T
    for k, model in zip(table.setting, models):
        nearest = NearestNeighbors(n_neighbors=k, metric='cosine').fit(x).kneighbors(z)[1]
        votes = np.zeros((len(z), 4))
        for i, row in enumerate(nearest):
            np.add.at(votes[i], y[row], np.exp(cosine[i, row] / 0.07))
        shares = votes / votes.sum(1, keepdims=True)
        ours = model(test)
        assert (shares.argmax(1) == ours[:, [0, 1, 3, 4]].argmax(1)).mean() > 0.99  # of ties
        np.testing.assert_allclose(
            np.exp(ours[:, [0, 1, 3, 4]]), (k * shares + 0.25) / (k + 1), rtol=1e-4
        )


def test_scores_serve_as_logits():
    train, val, test = data(), data(seed=1), data(50, 2, ('mirror', 'ceiling'), 3, noise=1)
    p = closed_form(train, val, test)
    assert p.probes == ['ridge', 'logistic_regression', 'knn'] == list(METHODS)
    assert p.logits.shape == (3, 300, 5) and p.logits.dtype == np.float32
    assert np.isfinite(p.logits).all()
    assert (p.logits[:, :, 2] < p.logits[:, :, [0, 1, 3, 4]].min(2)).all()  # nobody does it
    pd.testing.assert_frame_equal(p.table, test.table)
    rows = score(p, trained_view='mirror')
    assert (rows.balanced_accuracy > 0.6).all() and set(rows['view']) == {
        'mirror',
        'ceiling',
        'novel',
    }
    assert np.array_equal(p.logits, closed_form(train, val, test).logits)
    other = Predictions(test.table, p.logits[:1], ['lstm'], CLASSES)
    assert join(other, p).probes == ['lstm', *METHODS]


@pytest.mark.parametrize('method', METHODS)
def test_the_setting_is_chosen_by_validation_segments_and_nothing_else(method):
    train, val = data(80, noise=9), data(40, 1, n_clips=3, noise=9)
    table, models = tried(train, val, method)
    for setting, value, model in table.assign(model=models).itertuples(index=False):
        p = Predictions(val.table, model(val)[None], ['x'], CLASSES)
        expected = score(p, trained_view='mirror').balanced_accuracy[0]
        assert value == pytest.approx(expected), setting
    assert table.validation.nunique() > 1
    best = int(np.argmax(table.validation))
    test, other = data(30, 2), data(30, 3)
    for some in test, other:
        chosen = closed_form(train, val, some, methods=[method]).logits[0]
        assert np.array_equal(chosen, models[best](some))
    default = closed_form(train, None, test, methods=[method]).logits[0]
    at = tuple(METHODS[method].settings).index(METHODS[method].default)
    assert np.array_equal(default, models[at](test))
    empty = InMemory(val.table.iloc[:0], val.cls[:0])
    assert np.array_equal(default, closed_form(train, empty, test, methods=[method]).logits[0])


def test_more_neighbours_than_clips():
    p = closed_form(data(6), None, data(8, 1), methods=['knn'])
    assert np.isfinite(p.logits).all()


def test_errors():
    train = data()
    with pytest.raises(InputError, match='Unknown method'):
        closed_form(train, None, train, methods=['svm'])
    one = InMemory(
        train.table[train.table.label == 'eating'].reset_index(drop=True), train.cls[:15]
    )
    with pytest.raises(InputError, match='two classes or more'):
        closed_form(one, None, train)
