"A finished run gets rows for every kind of knowledge, and its own rows do not change"

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from fmhar.adaptation.apply import (
    adapt_run,
    combinations,
    fit_head,
    head_predictions,
    read_adaptation,
)
from fmhar.contracts import Features
from fmhar.errors import InputError
from fmhar.evaluation.inference import predict
from fmhar.evaluation.scores import score
from fmhar.probe import ProbeBank, ProbeSpec

CLASSES = ['close', 'eat', 'never', 'open', 'read']
SEEN = [0, 1, 3, 4]


@dataclass
class InMemory:
    "What a run needs of a feature dataset"

    table: pd.DataFrame
    cls: torch.Tensor
    classes = CLASSES

    @property
    def labels(self):
        return torch.tensor([CLASSES.index(x) for x in self.table.label], dtype=torch.long)

    def __len__(self):
        return len(self.table)

    def batch(self, indices):
        return Features(self.cls[torch.as_tensor(indices)])

    def copy(self):
        table = self.table.copy()
        table.attrs = dict(self.table.attrs)
        return InMemory(table, self.cls.clone())


def in_memory(split, people, seed, n=16, dim=24, frames=6):
    "Two cameras in the test split; the second turns some features round and adds a background"
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(9)
    mean, move = 2 * fixed.normal(size=(2, 5, 1, dim))
    time = np.linspace(-1, 1, frames)[:, None]
    turn, background = np.where(np.arange(dim) < 5, -1, 1), 4 * fixed.normal(size=dim)
    rows, x = [], []
    for view in ('front', 'side') if split == 'test' else ('front',):
        for who in people:
            for i in range(n):
                c = SEEN[i % 4]
                z = mean[c] + move[c] * time + 2 * rng.normal(size=(frames, dim))
                x.append(z if view == 'front' else z * turn + background)
                rows.append(
                    dict(segment=f'{view}{who}{i}', clip=0, event=f'{who}{i}', view=view)
                    | dict(subject=who, path=f'{view}/{who}', start=18 * i, end=18 * i + 18)
                    | dict(split=split, label=CLASSES[c], fps=30.0)
                )
    table = pd.DataFrame(rows)
    table.attrs = dict(classes=CLASSES, trained_view='front', cluster='subject')
    return InMemory(table, torch.tensor(np.stack(x), dtype=torch.float32))


@pytest.fixture(scope='module')
def run():
    return in_memory('train', 'abcd', 0), in_memory('val', 'e', 2), in_memory('test', 'xyz', 1)


def accuracy(p, view='side'):
    rows = score(p, trained_view='front').set_index('view')
    return rows.balanced_accuracy[view]


def test_centring_and_the_prior_help_where_the_camera_adds_a_background(run):
    train, val, test = run
    got = adapt_run(train, val, test, None, ['recording', 'prior'])
    assert list(got) == ['none', 'recording', 'prior', 'recording+prior']
    values = {name: accuracy(p) for name, p in got.items()}
    assert values['recording'] > values['none'] + 0.2
    assert values['prior'] >= values['none'] and values['recording+prior'] > 0.9


def test_the_trained_view_is_not_harmed(run):
    train, val, test = run
    got = adapt_run(train, val, test, None, ['recording'])
    assert accuracy(got['recording'], 'front') > accuracy(got['none'], 'front') - 0.05


@pytest.mark.parametrize('rule', ['recording', 'causal', 'camera', 'footage'])
def test_answers_come_in_the_rows_of_the_test_clips_and_are_finite(run, rule):
    train, val, test = run
    for p in adapt_run(train, val, test, None, [rule, 'prior']).values():
        assert p.probes == ['moment_lda'] and np.isfinite(p.logits).all()
        pd.testing.assert_frame_equal(p.table, test.table)


def test_a_class_without_training_clips_is_never_answered(run):
    train, _, test = run
    for p in adapt_run(train, None, test, None, ['recording', 'prior']).values():
        assert (p.logits[0].argmax(1) != 2).all()


def test_test_labels_are_not_used(run):
    train, val, test = run
    other = test.copy()
    other.table['label'] = other.table.label.sample(frac=1, random_state=0).values
    names = ['causal', 'prior']
    a, b = (adapt_run(train, val, t, None, names) for t in (test, other))
    for name in a:
        np.testing.assert_array_equal(a[name].logits, b[name].logits)


def test_heads_of_the_bank_that_read_class_tokens_answer_again(run):
    train, val, test = run
    specs = [ProbeSpec('max_pooling'), ProbeSpec('self_attention_all_avg', options=dict(heads=2))]
    whole = ProbeBank(specs, 24, 5)
    both = whole.keep([specs[0].name])
    p = predict(both, test, progress=False)
    got = adapt_run(train, val, test, p, ['recording', 'prior'], bank=whole)
    assert got['none'].probes == ['moment_lda']
    for name in ('recording', 'prior', 'recording+prior'):
        assert got[name].probes == ['moment_lda', both.specs[0].name]
    moved = got['recording'].of(both.specs[0].name)
    side = (test.table['view'] == 'side').to_numpy()
    assert np.abs(moved - p.logits[0])[side].max() > 0.1


def test_a_video_backbones_single_vector_has_the_mean_alone(run):
    train, _, test = (InMemory(d.table, d.cls[:, :1]) if d else None for d in run)
    assert fit_head(train).parts_ == ('m0',)
    assert np.isfinite(head_predictions(fit_head(train), test).logits).all()


def test_the_head_is_the_same_for_any_order_of_training_clips(run):
    train, _, test = run
    order = np.random.default_rng(0).permutation(len(train))
    table = train.table.iloc[order].reset_index(drop=True)
    table.attrs = train.table.attrs
    a, b = (head_predictions(fit_head(d), test) for d in (train, InMemory(table, train.cls[order])))
    np.testing.assert_allclose(a.logits, b.logits, rtol=1e-3, atol=1e-3)


def test_names_of_adaptations():
    assert read_adaptation('prior+recording') == ('recording', True)
    assert combinations(['prior', 'recording', 'recording']) == [
        'prior',
        'recording',
        'recording+prior',
    ]
    assert combinations(['none', 'causal']) == ['causal']
    for wrong in ('recording+causal', 'prior+prior', 'oracle', ''):
        with pytest.raises(InputError):
            read_adaptation(wrong)


class WithTokens(InMemory):
    "The same with the class token of each frame twice as all tokens"

    tokens = 1, 'float16'

    def batch(self, indices):
        cls = self.cls[torch.as_tensor(indices)]
        return Features(cls, torch.stack([cls, cls], 2))


def test_heads_that_read_all_tokens_get_rows_with_the_prior_where_validation_has_tokens(run):
    train, val, test = (WithTokens(d.table, d.cls) for d in run)
    specs = [ProbeSpec('max_pooling'), ProbeSpec('self_attention_all_avg', options=dict(heads=2))]
    bank = ProbeBank(specs, 24, 5)
    p = predict(bank, test, progress=False)
    got = adapt_run(train, val, test, p, ['recording', 'prior'], bank=bank)
    names = [s.name for s in specs]
    assert got['prior'].probes == ['moment_lda', *names]
    assert got['recording'].probes == ['moment_lda', names[0]]
