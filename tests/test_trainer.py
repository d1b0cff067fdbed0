"Probes do not disturb each other; a killed run continues bit for bit; the recipe is the paper's"

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from test_processes import run_on
from torch.utils._python_dispatch import TorchDispatchMode

import fmhar.trainer.curves
import fmhar.trainer.loop
from fmhar.contracts import Features
from fmhar.errors import InputError
from fmhar.files import fingerprint
from fmhar.fusion.base import FUSIONS
from fmhar.probe import ProbeBank, ProbeSpec, load_bank, save_bank, sweep
from fmhar.processes import Processes
from fmhar.trainer.checkpoints import Checkpoint
from fmhar.trainer.curves import Curves, draw
from fmhar.trainer.labels import class_weight, cross_entropy, labels_of, targets
from fmhar.trainer.loop import balanced_accuracy, fit, keep, read_part, start, step
from fmhar.trainer.recipe import Recipe, epoch_clips, lr_factor
from fmhar.trainer.state import History, state_on_cpu

DIM, N_CLASSES = 16, 3
SETS = dict(label=N_CLASSES, side=2, day=5)  # classes of each label set
QUICK = dict(device='cpu', progress=False)


@dataclass
class InMemory:
    "What training needs of a feature dataset"

    labels: torch.Tensor
    segments: torch.Tensor
    tokens: torch.Tensor  # (n, T, N, D)
    pause: float = 0.0

    def __len__(self):
        return len(self.labels)

    @property
    def table(self):
        "Two more label sets: one with fewer classes than `labels`, one with more"
        n = self.segments.numpy()
        table = pd.DataFrame(dict(side=np.array(['left', 'right'])[n % 2]))
        table['day'] = np.array(['mon', 'tue', 'wed', 'thu', 'fri'])[n % 5]
        table.attrs['label_sets'] = dict(
            side=['right', 'left'], day=['mon', 'tue', 'wed', 'thu', 'fri']
        )
        return table

    def batch(self, indices):
        time.sleep(self.pause)
        return Features(self.tokens[indices][:, :, 0], self.tokens[indices])


def dataset(n=24, seed=0, scale=2.0, clips=2):
    "Class means far apart, `clips` clips a segment"
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(N_CLASSES, DIM, generator=torch.Generator().manual_seed(9))
    segments = torch.arange(n) // clips
    labels = segments % N_CLASSES
    noise = torch.randn(n, 4, 3, DIM, generator=g)
    return InMemory(labels, segments, scale * (means[labels][:, None, None] + noise))


def bank(specs=None):
    return ProbeBank(sweep() if specs is None else specs, DIM, SETS)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


def test_defaults_are_the_papers():
    r, s = Recipe(), ProbeSpec('lstm')
    assert (r.epochs, r.batch_size, r.warmup_epochs, r.label_smoothing) == (60, 32, 0, 0)
    assert (s.lr, s.weight_decay, r.keep) == (1e-3, 0.02, 'last')


@pytest.mark.parametrize('warmup', [0, 2])
def test_against_a_plain_loop_with_pytorchs_own_schedule(warmup):
    "Linear probing as anyone would write it: same batches, `LambdaLR`, one model"
    data, spec = dataset(), ProbeSpec('average_pooling', lr=3e-3, weight_decay=0.1)
    recipe = Recipe(epochs=5, batch_size=5, warmup_epochs=warmup, label_smoothing=0.1)
    ours, plain = bank([spec]), bank([spec]).probes[0].linear
    fit(ours, data, recipe=recipe, **QUICK)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: lr_factor(i, 5 * 3, warmup * 3)
    )
    for epoch in range(5):
        for clips in torch.as_tensor(epoch_clips(data.segments.numpy(), 0, epoch)).split(5):
            x = data.tokens[clips][:, :, 0].mean(1)
            loss = F.cross_entropy(plain(x), data.labels[clips], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for a, b in zip(ours.probes[0].linear.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_cosine_is_pytorchs():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for i in range(20):
        assert lr_factor(i, 20) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    rise = [lr_factor(i, 20, 4) for i in range(5)]
    assert np.allclose(np.diff(rise), 0.2) and rise[-1] == 1


@pytest.mark.parametrize('name', list(FUSIONS))
def test_weights_equal_those_of_the_probe_trained_alone(name):
    "In a bank of all heads, some at other learning rates, whatever the kind"
    spec = ProbeSpec(name, lr=3e-3, seed=1)
    others = sweep() + sweep([name], lr=[1e-3, 1e-2], seed=[2])
    recipe, data = Recipe(epochs=3, batch_size=4), dataset()
    together, alone = bank([*others, spec]), bank([spec])
    fit(together, data, recipe=recipe, **QUICK)
    fit(alone, data, recipe=recipe, **QUICK)
    for a, b in zip(together.probes[-1].parameters(), alone.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not same(alone, bank([spec]))


def test_gradients_are_independent():
    "Labels of another probe's loss do not matter: each gradient is that of the own loss"
    b, data = bank(), dataset()
    logits = b(data.batch(np.arange(8)))
    loss = cross_entropy(logits, F.one_hot(data.labels[:8], N_CLASSES))
    for i in 0, 4, 12:
        parameters = list(b.probes[i].parameters())
        own = torch.autograd.grad(loss[i], parameters, retain_graph=True, allow_unused=True)
        of_sum = torch.autograd.grad(loss.sum(), parameters, retain_graph=True, allow_unused=True)
        assert all(x is y or torch.equal(x, y) for x, y in zip(own, of_sum))


@pytest.mark.parametrize('name', list(FUSIONS))
def test_a_diverging_probe_stops_alone(name):
    data, recipe = dataset(), Recipe(epochs=3, batch_size=4)
    specs = [ProbeSpec(name), ProbeSpec(name, lr=1e35), ProbeSpec('max_pooling', lr=1e-2)]
    with_it, without = bank(specs), bank([specs[0], specs[2]])
    history = fit(with_it, data, data, recipe=recipe, **QUICK)
    fit(without, data, recipe=recipe, **QUICK)
    assert list(history.stopped) == [specs[1].name]
    for i, j in (0, 0), (2, 1):
        for a, b in zip(with_it.probes[i].parameters(), without.probes[j].parameters()):
            assert a.isfinite().all()
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    table = history.table
    assert set(table[table.epoch == 3].probe) == {specs[0].name, specs[2].name}
    assert table.loss.notna().all()


@pytest.mark.parametrize('name', ['average_pooling_relu', 'max_pooling_relu'])
def test_one_of_many_side_by_side_diverges(name):
    "The middle row of a stack of weights leaves it; the others go on, exactly, and lie apart again"
    data, recipe = dataset(), Recipe(epochs=3, batch_size=4)
    specs = [ProbeSpec(name, lr=lr) for lr in (1e-3, 3e-3, 1e35, 1e-2)]
    with_it, without = bank(specs), bank([s for s in specs if s.lr < 1])
    history = fit(with_it, data, data, recipe=recipe, **QUICK)
    fit(without, data, recipe=recipe, **QUICK)
    assert list(history.stopped) == [specs[2].name]
    for i, j in (0, 0), (1, 1), (3, 2):
        for a, b in zip(with_it.probes[i].parameters(), without.probes[j].parameters()):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            assert a.untyped_storage().nbytes() == a.nbytes


def test_all_diverge():
    "In the middle of an epoch, and with weights that only the last step made infinite"
    b = bank(sweep(['lstm', 'tcn'], lr=[1e35]))
    history = fit(b, dataset(), recipe=Recipe(epochs=3, batch_size=2), **QUICK)
    assert history.stopped == {s.name: 1 for s in b.specs} and not history.rows
    last = bank([ProbeSpec('average_pooling', lr=1e39)])
    history = fit(last, dataset(), recipe=Recipe(epochs=1), **QUICK)  # one step
    assert history.stopped == {last.specs[0].name: 1}


def test_a_diverged_probe_has_no_score(tmp_path):
    "Its logits are NaN, also after it was saved; with keep='best' it goes back to what it was"
    specs = [ProbeSpec('lstm'), ProbeSpec('max_pooling', lr=1e35)]
    b, data = bank(specs), dataset()
    history = fit(b, data, recipe=Recipe(epochs=2, batch_size=4), **QUICK)
    save_bank(b, tmp_path)
    for one in b, load_bank(tmp_path)[0]:
        logits = one(data.batch(np.arange(8)))
        assert logits[1].isnan().all() and logits[0].isfinite().all()
    assert specs[1].name not in history.kept
    run = start(b, data, data, Recipe(keep='best'), 'cpu')
    run.best[specs[1].name] = dict(epoch=1, weights=state_on_cpu(bank(specs).probes[1]))
    run.history.stopped[specs[1].name] = 2
    keep(run)
    assert b(data.batch(np.arange(8))).isfinite().all() and run.history.kept[specs[1].name] == 1


class NoWaiting(TorchDispatchMode):
    "Fails where a number or a count would be fetched from the device"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device():
    "Losses, masks and clipping stay where they are; what they decide is read once an epoch"
    data, recipe = dataset(), Recipe(grad_clip=1.0, precision='bf16')
    run = start(bank(), data, None, recipe, 'cpu')
    run.choose()
    x, target = read_part(run, np.arange(8), torch.eye(3)[data.labels[:8]][:, None], 0)
    with NoWaiting():
        for _ in range(2):
            loss = step(run, x, target)
    run.part()
    assert loss.isfinite().all() and loss.shape == (13,)


def test_clipping_is_by_probe():
    "A neighbour with a huge gradient does not shrink that of the others"
    data, recipe = dataset(scale=100), Recipe(epochs=1, grad_clip=1e-3)
    specs = [ProbeSpec('average_pooling'), ProbeSpec('lstm')]
    together, alone, free = bank(specs), bank(specs[1:]), bank(specs[1:])
    fit(together, data, recipe=recipe, **QUICK)
    fit(alone, data, recipe=recipe, **QUICK)
    fit(free, data, recipe=replace(recipe, grad_clip=None), **QUICK)
    for a, b in zip(together.probes[1].parameters(), alone.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    norm = torch.cat([p.grad.flatten() for p in alone.parameters()]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-2)
    assert torch.cat([p.grad.flatten() for p in free.parameters()]).norm() > 2e-3


@pytest.mark.parametrize('smoothing', [0, 0.1])
@pytest.mark.parametrize('balance', [None, 'loss'])
def test_loss_is_pytorchs(smoothing, balance):
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 50, 4, generator=g)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])[torch.randint(10, (50,), generator=g)]
    weight = class_weight(labels, 4, balance)
    for z, ours in zip(logits, cross_entropy(logits, targets(labels, weight, smoothing))):
        each = F.cross_entropy(z, labels, reduction='none', label_smoothing=smoothing)
        torch.testing.assert_close(ours, (each * weight[labels]).mean())
    if balance:
        expected = compute_class_weight('balanced', classes=np.arange(4), y=labels.numpy())
        assert np.allclose(weight, expected)


def test_balanced_sampling_draws_classes_equally_and_clips_within_them():
    labels = np.repeat([0, 1, 2], [90, 9, 1])
    draws = np.array([epoch_clips(np.arange(100), 0, e, labels) for e in range(300)])
    share = np.bincount(labels[draws].ravel()) / draws.size
    assert np.allclose(share, 1 / 3, atol=0.015)  # 5 standard deviations
    count = np.bincount(draws.ravel(), minlength=100)
    assert count[:90].min() > 60 and count[:90].max() < 180  # 111 each


def test_mixup_mixes_features_and_targets_alike():
    "Whichever process reads which part of the batch"
    g = torch.Generator().manual_seed(0)
    data = InMemory(torch.arange(6), torch.arange(6), torch.randn(6, 2, 3, 4, generator=g))
    b, clips, seen = ProbeBank([ProbeSpec('lstm')], 4, 6), np.array([3, 1, 0, 5, 2, 4]), set()
    for now in range(20):
        run = start(b, data, None, Recipe(mixup=0.5), 'cpu')
        mixed, target = read_part(run, clips, torch.eye(6)[clips], now)
        torch.testing.assert_close(target.sum(1), torch.ones(6))
        assert (target > 0).sum(1).max() <= 2
        assert (target[np.arange(6), clips] > 0).all()  # the own class is there
        for a, x in (mixed.cls, data.tokens[:, :, 0]), (mixed.tokens, data.tokens):
            torch.testing.assert_close(a.flatten(1), target @ x.flatten(1))
        for rank in range(4):
            part = replace(run, me=Processes(rank, 4))
            own, said = read_part(part, clips, torch.eye(6)[clips], now)
            assert torch.equal(own.tokens, mixed.tokens[rank::4])
            assert torch.equal(said, target[rank::4])
        seen.add(round(target.max(1).values.min().item(), 3))
    assert len(seen) > 10


def test_a_process_without_a_clip_reads_one_that_weighs_nothing():
    data = dataset(4, clips=1)
    run = start(bank(), data, None, Recipe(), 'cpu')
    x, target = read_part(replace(run, me=Processes(2, 3)), np.array([1, 3]), torch.ones(2, 3), 0)
    assert len(x.cls) == 1 and target.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    'option', [dict(balance='loss'), dict(balance='sampling'), dict(mixup=0.4)]
)
def test_options_learn_and_resume(option, tmp_path, monkeypatch):
    data, recipe = dataset(44), Recipe(epochs=6, batch_size=8, **option)  # 8, 7, 7 segments
    specs, path = sweep(lr=[5e-3]), tmp_path / 'bank.pt'
    whole, plain, continued = bank(specs), bank(specs), bank(specs)
    fit(whole, data, recipe=recipe, **QUICK)
    fit(plain, data, recipe=Recipe(epochs=6, batch_size=8), **QUICK)
    assert not any(same(a, b) for a, b in zip(whole.probes, plain.probes))  # it does something
    with torch.no_grad():
        right = (whole(data.batch(np.arange(44))).argmax(2) == data.labels).float().mean(1)
    assert right.median() > 0.6  # of three classes
    real = fmhar.trainer.loop.save_checkpoint
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(fmhar.trainer.loop, 'save_checkpoint', lambda r, p: (real(r, p), interrupt()))
        fit(bank(specs), data, recipe=recipe, checkpoint=path, **QUICK)
    fit(continued, data, recipe=recipe, checkpoint=path, **QUICK)
    assert same(whole, continued)


def interrupt():
    raise KeyboardInterrupt


def test_patience_stops_each_probe_by_itself():
    train, val = dataset(), dataset(60, seed=5, scale=0.6, clips=3)
    specs = sweep(['average_pooling', 'lstm'], lr=[0.3, 1e-4])
    recipe = Recipe(epochs=30, batch_size=4, keep='best', patience=4)
    history = fit(bank(specs), train, val, recipe=recipe, **QUICK)
    scores = history.table.pivot(index='epoch', columns='probe', values='balanced_accuracy')
    assert len(set(history.early.values())) > 1  # at different epochs
    for name, epoch in history.early.items():
        assert scores[name].last_valid_index() == epoch == scores[name].idxmax() + 4
    for name in scores.columns.difference(history.early):
        assert scores[name].last_valid_index() == 30


def test_an_epoch_is_one_random_clip_of_each_segment():
    segments = np.repeat(np.arange(50), 4)
    draws = np.array([epoch_clips(segments, 0, e) for e in range(400)])
    assert (np.sort(segments[draws], 1) == np.arange(50)).all()
    chosen = np.bincount(draws.ravel(), minlength=200)
    assert chosen.min() > 60 and chosen.max() < 145  # binomial(400, 1/4): 100 +- 8.7
    assert len({tuple(d) for d in segments[draws]}) == 400  # another order each time
    assert not np.array_equal(epoch_clips(segments, 1, 0), draws[0])


def test_stored_clips_are_drawn_without_replacement():
    "K epochs show each of K clips once, also where segments have different numbers of them"
    segments = np.repeat(np.arange(30), np.tile([1, 2, 6], 10))
    shown = np.array([epoch_clips(segments, 3, e) for e in range(12)])
    assert (np.sort(segments[shown], 1) == np.arange(30)).all()
    count = np.bincount(segments)[segments]
    for k in 1, 2, 6:
        for start_at in range(0, 12, k):
            drawn = np.bincount(shown[start_at : start_at + k].ravel(), minlength=len(segments))
            assert (drawn[count == k] == 1).all()
    first = [np.sort(shown[e][np.isin(shown[e], np.flatnonzero(count == 6))]) for e in (0, 6)]
    assert not np.array_equal(*first)  # shuffled anew


def test_same_seed_same_weights_and_another_order_others():
    data, recipe = dataset(), Recipe(epochs=2, batch_size=4)
    runs = [bank([ProbeSpec('tcn')]) for _ in range(3)]
    for b, seed in zip(runs, (0, 0, 1)):
        fit(b, data, recipe=replace(recipe, seed=seed), **QUICK)
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_validation_averages_clips_and_is_sklearns_balanced_accuracy():
    val, b = dataset(60, seed=5, scale=0.6, clips=3), bank()
    history = fit(b, dataset(), val, recipe=Recipe(epochs=2), **QUICK)
    rows = history.table[history.table.epoch == 2].set_index('probe').balanced_accuracy
    with torch.no_grad():
        logits = b(val.batch(np.arange(60))).view(13, 20, 3, N_CLASSES).mean(2)
    for spec, z in zip(b.specs, logits):
        expected = balanced_accuracy_score(val.labels[::3], z.argmax(1))
        assert rows[spec.name] == pytest.approx(expected, abs=1e-6)
    assert rows.nunique() > 3


def test_balanced_accuracy_with_absent_classes():
    g = torch.Generator().manual_seed(0)
    truth = torch.tensor([0, 4])[torch.randint(2, (50,), generator=g)]
    predicted = torch.randint(5, (1, 50), generator=g)
    with pytest.warns(UserWarning, match='y_pred contains classes'):
        expected = balanced_accuracy_score(truth, predicted[0])
    assert balanced_accuracy(predicted, truth).item() == pytest.approx(expected)


def test_validation_only_when_due():
    history = fit(
        bank([ProbeSpec('lstm')]),
        dataset(),
        dataset(),
        recipe=Recipe(epochs=5, validate_every=2),
        **QUICK,
    )
    assert history.table.balanced_accuracy.notna().tolist() == [False, True, False, True, True]


def test_keep_best():
    "The weights kept are those of the best epoch, for each probe its own"
    train, val = dataset(), dataset(60, seed=5, scale=0.6, clips=3)
    specs = sweep(['average_pooling', 'lstm'], lr=[0.3])
    b = bank(specs)
    history = fit(b, train, val, recipe=Recipe(epochs=6, batch_size=4, keep='best'), **QUICK)
    scores = history.table.pivot(index='epoch', columns='probe', values='balanced_accuracy')
    assert (scores.idxmax() < 6).any()  # else this test shows nothing
    with torch.no_grad():
        logits = b(val.batch(np.arange(60))).view(2, 20, 3, N_CLASSES).mean(2)
    for spec, z in zip(specs, logits):
        now = balanced_accuracy_score(val.labels[::3], z.argmax(1))
        assert now == pytest.approx(scores[spec.name].max(), abs=1e-6)


def test_bf16_learns_the_same():
    data, results = dataset(48), []
    for precision in 'fp32', 'bf16':
        history = fit(
            bank(sweep(lr=[5e-3])),
            data,
            data,
            recipe=Recipe(epochs=8, batch_size=8, precision=precision),
            **QUICK,
        )
        results.append(history.table.pivot(index='epoch', columns='probe', values='loss').loc[8])
    assert (results[0] < 1).all()  # from ln 3
    assert (results[0] - results[1]).abs().max() < 0.1


@pytest.mark.parametrize('name', list(FUSIONS))
def test_stable_at_the_scale_of_dinov2(name):
    "Token norms of 45 at D = 384 and some features 10 times larger: the paper's 1e-3 must learn"
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 4
    x = torch.randn(64, 8, 3, 384, generator=g)
    x[..., :5] *= 10
    x += 0.7 * torch.randn(4, 384, generator=g)[labels][:, None, None]
    x *= 45 / x.norm(dim=-1, keepdim=True)
    b = ProbeBank([ProbeSpec(name)], 384, 4)
    history = fit(b, InMemory(labels, torch.arange(64), x), recipe=Recipe(epochs=15), **QUICK)
    loss = history.table.loss
    assert not history.stopped and loss.max() < 4 and loss.iloc[-1] < 0.5


# --- resuming


def test_interrupted_at_any_epoch_it_ends_with_the_same_bits(tmp_path, monkeypatch):
    train, val = dataset(), dataset(seed=5, scale=0.6)
    recipe = Recipe(epochs=4, batch_size=4, keep='best')
    whole = bank()
    expected = fit(whole, train, val, recipe=recipe, **QUICK)
    path = tmp_path / 'bank.pt'
    real = fmhar.trainer.loop.save_checkpoint

    def save_and_die(run, path):
        real(run, path)
        raise KeyboardInterrupt

    for _ in range(4):
        monkeypatch.setattr(fmhar.trainer.loop, 'save_checkpoint', save_and_die)
        with pytest.raises(KeyboardInterrupt):
            fit(bank(), train, val, recipe=recipe, checkpoint=path, **QUICK)
    monkeypatch.undo()
    last = bank()
    history = fit(last, train, val, recipe=recipe, checkpoint=path, **QUICK)
    assert same(last, whole)
    assert history.table.equals(expected.table) and history.stopped == expected.stopped


def test_a_stopped_probe_stays_stopped_after_a_restart(tmp_path):
    specs = [ProbeSpec('tcn', lr=1e35), ProbeSpec('lstm')]
    recipe, path = Recipe(epochs=3, batch_size=4), tmp_path / 'bank.pt'
    first = fit(bank(specs), dataset(), recipe=recipe, checkpoint=path, **QUICK)
    again = fit(bank(specs), dataset(), recipe=recipe, checkpoint=path, **QUICK)
    assert list(again.stopped) == [specs[0].name] and again.table.equals(first.table)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_trainer import KILL, bank, dataset, fit, replace, torch
torch.set_num_threads(1)
fit(bank(), replace(dataset(), pause=0.2), checkpoint={path!r}, **KILL)
"""
KILL = dict(recipe=Recipe(epochs=8, batch_size=4), **QUICK)


def test_kill_9_and_run_again(tmp_path):
    "A real process, killed in the middle of an epoch by a signal that it cannot catch"
    path = tmp_path / 'bank.pt'
    code = KILLED.format(tests=os.path.dirname(__file__), path=str(path))
    process = subprocess.Popen([sys.executable, '-c', code])
    deadline = time.time() + 120
    while not path.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # an epoch takes 0.6 s
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < torch.load(path, weights_only=True)['epoch'] < 8
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, continued = bank(), bank()
    fit(whole, dataset(), **KILL)
    fit(continued, dataset(), checkpoint=path, **KILL)
    torch.set_num_threads(threads)
    assert same(whole, continued)


def test_a_finished_run_is_not_trained_again(tmp_path):
    path, data = tmp_path / 'bank.pt', dataset()
    first, second = bank(), bank()
    fit(first, data, recipe=Recipe(epochs=2), checkpoint=path, **QUICK)
    data.batch = None  # reading would fail
    fit(second, data, recipe=Recipe(epochs=2), checkpoint=path, **QUICK)
    assert same(first, second)


@pytest.mark.parametrize('what', ['recipe', 'bank', 'data', 'dim'])
def test_a_checkpoint_of_something_else_is_refused(what, tmp_path):
    specs, data, recipe = [ProbeSpec('lstm')], dataset(), Recipe(epochs=1)
    path = tmp_path / 'bank.pt'
    fit(bank(specs), data, recipe=recipe, checkpoint=path, **QUICK)
    other = ProbeBank([ProbeSpec('lstm', seed=1)] if what == 'bank' else specs, DIM, N_CLASSES)
    if what == 'recipe':
        recipe = replace(recipe, epochs=2)
    if what == 'data':
        data.labels[0] += 1
    if what == 'dim':
        other = ProbeBank(specs, DIM, N_CLASSES + 1)
    part = 'bank' if what == 'dim' else what
    with pytest.raises(InputError, match=f'A checkpoint of another {part}\n'):
        fit(other, data, recipe=recipe, checkpoint=path, **QUICK)


def test_a_checkpoint_of_before_is_continued(tmp_path):
    "It had one fingerprint of everything and no version; of another run it is refused as well"
    data, recipe, path = dataset(), Recipe(epochs=2), tmp_path / 'bank.pt'
    first, again = bank([ProbeSpec('lstm')]), bank([ProbeSpec('lstm')])
    fit(first, data, recipe=recipe, checkpoint=path, **QUICK)
    state = torch.load(path, weights_only=True)
    shapes = {k: list(v.shape) for k, v in first.state_dict().items()}
    labels = [labels_of(data, name) for name in first.label_sets]
    known = fingerprint([recipe, first.specs, shapes, [[labels, data.segments]]])
    state = {k: v for k, v in state.items() if k != 'version'} | dict(identity=known)
    torch.save(state, path)
    data.batch = None  # reading would fail
    fit(again, data, recipe=recipe, checkpoint=path, **QUICK)
    assert same(first, again)
    with pytest.raises(InputError, match='another bank or recipe or data, written by an earlier'):
        fit(again, data, recipe=Recipe(epochs=3), checkpoint=path, **QUICK)
    torch.save(dict(state, version=3), path)
    with pytest.raises(InputError, match='another version of fmhar'):
        fit(again, data, recipe=recipe, checkpoint=path, **QUICK)


def test_flipped_bits_of_a_checkpoint_are_found(tmp_path):
    "Of 40 flips each is refused, or lies between the entries and changes nothing"
    path, rng = tmp_path / 'run.pt', np.random.default_rng(0)
    file = Checkpoint(path, bank='a')
    file.write(weights=torch.arange(3000.0))
    whole, found = path.read_bytes(), 0
    for at in rng.integers(0, 8 * len(whole), 40):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        try:
            assert torch.equal(file.read()['weights'], torch.arange(3000.0))
        except InputError as e:
            found += e.what.startswith('Not a checkpoint')
    assert found > 30
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match='Not a checkpoint'):
        file.read()


def test_checkpoints_hold_no_code(tmp_path):
    "A pickle that would run something is refused, and not run"
    path = tmp_path / 'bank.pt'
    torch.save({'identity': Evil(str(tmp_path / 'ran'))}, path)
    with pytest.raises(InputError, match='Not a checkpoint'):
        fit(bank([ProbeSpec('lstm')]), dataset(), checkpoint=path, **QUICK)
    assert not (tmp_path / 'ran').exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


# --- label sets

OTHER = {'side': ['right', 'left'], 'day': ['mon', 'tue', 'wed', 'thu', 'fri']}


def relabelled(data, name):
    "The same clips with another column as their labels"
    labels = torch.tensor([OTHER[name].index(x) for x in data.table[name]])
    return replace(data, labels=labels)


@pytest.mark.parametrize(
    'option', [dict(), dict(balance='loss', label_smoothing=0.1, mixup=0.4, grad_clip=0.5)]
)
def test_label_sets_in_one_pass_are_those_trained_alone(option):
    train, val = dataset(36), dataset(60, seed=5, scale=0.6, clips=3)
    recipe, kinds = Recipe(epochs=3, batch_size=4, **option), list(FUSIONS)
    specs = sweep(kinds, labels=['label']) + sweep(kinds, labels=['side', 'day'])
    together = ProbeBank([*specs, ProbeSpec('tcn', lr=1e35, labels='side')], DIM, SETS)
    history = fit(together, train, val, recipe=recipe, **QUICK)
    assert list(history.stopped) == ['tcn lr=1e+35 labels=side']
    found = {p.spec.name: p for p in together.probes}
    table = history.table.set_index(['probe', 'epoch'])
    for name, n in SETS.items():
        of = [replace(s, labels='label') for s in specs if s.labels == name]
        alone = ProbeBank(of, DIM, n)
        data = (train, val) if name == 'label' else (relabelled(d, name) for d in (train, val))
        expected = fit(alone, *data, recipe=recipe, **QUICK).table.set_index(['probe', 'epoch'])
        for probe in alone.probes:
            key = replace(probe.spec, labels=name).name
            for a, b in zip(probe.parameters(), found[key].parameters()):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            for column in 'loss', 'balanced_accuracy':
                ours, theirs = (
                    t.loc[k][column] for t, k in ((table, key), (expected, probe.spec.name))
                )
                assert np.allclose(ours, theirs, atol=1e-5)


def test_label_sets_that_are_not_there():
    specs = sweep(['lstm'], labels=['label', 'side'])
    with pytest.raises(InputError, match="Unknown label set 'side'"):
        ProbeBank(specs, DIM, 3)
    with pytest.raises(InputError, match="(?s)Unknown label set 'room'.*side"):
        room = ProbeBank([ProbeSpec('lstm', labels='room')], DIM, dict(room=2))
        fit(room, dataset(), **QUICK)
    table = dataset().table
    table.attrs['label_sets']['side'] = ['left']
    with pytest.raises(InputError, match='not among the classes'):
        fmhar.trainer.labels.class_indices(table, 'side')


# --- curves in a notebook

CELL = """
import os, sys
sys.path[:0] = {path!r}
from test_trainer import *
os.environ['TQDM_DISABLE'] = '{disable}'
fit(bank([ProbeSpec('lstm')]), dataset(), {val}, recipe=Recipe(epochs=3), device='cpu', {more})
None
"""


def test_curves_are_renewed_in_a_notebook(tmp_path):
    "As JupyterLab runs it; not where progress is not wanted, and one picture is left of all"
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    root = os.path.dirname(fmhar.__file__) + '/..'
    path = [os.path.dirname(__file__), root]
    wanted = [
        ('', 'dataset()', ''),
        ('', 'None', ''),
        ('1', 'None', ''),
        ('', 'None', 'progress=False'),
    ]
    cells = [CELL.format(path=path, disable=d, val=v, more=m) for d, v, m in wanted]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    counts = [{} for _ in cells]

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, i):
            if 'image/png' in message['content'].get('data', ()):
                counts[i][message['msg_type']] = counts[i].get(message['msg_type'], 0) + 1
            return super().process_message(message, cell, i)

    Client(book, timeout=120, resources={'metadata': {'path': str(tmp_path)}}).execute()
    drawn = dict(display_data=1, update_display_data=1)  # the first epoch and the last
    assert counts == [drawn, drawn, {}, {}]
    left = [[o for o in c.outputs if 'image/png' in o.get('data', ())] for c in book.cells]
    assert list(map(len, left)) == [1, 1, 0, 0]


def test_curves_cost_a_twentieth_of_the_time(monkeypatch):
    "A picture that takes a second is drawn anew after twenty, and after the last epoch"
    clock, shown = [0.0], []

    def slow(history):
        clock[0] += 1
        return draw(history)

    monkeypatch.setattr(
        fmhar.trainer.curves, 'time', SimpleNamespace(perf_counter=lambda: clock[0])
    )
    monkeypatch.setattr(fmhar.trainer.curves, 'draw', slow)
    handle = SimpleNamespace(update=lambda picture: shown.append(clock[0]))
    monkeypatch.setattr('IPython.display.display', lambda *_, **__: shown.append(0) or handle)
    history, curves = History([dict(zip(History.columns, (1, 'a', 1.0, 0.9)))]), Curves()
    for now in (0, 5, 20.5, 21.5, 30):
        clock[0] = max(clock[0], now)
        curves.show(history, last=False)
    curves.show(history, last=True)
    assert shown == [0, 22.5, 31]


def legends(fig):
    return [text.get_text() for of in fig.legends for text in of.get_texts()]


def test_curves_are_named():
    "A few have a colour each; of many, the best of the last validation"
    rows = [(1, 'a', 1.0, 0.9), (1, 'b', 2.0, 0.1), (2, 'a', 0.5, 0.4), (2, 'b', 1.0, 0.6)]
    rows += [(3, 'a', 0.4, np.nan), (3, 'b', 0.9, np.nan)]  # not validated
    few = [dict(zip(History.columns, r)) for r in rows]
    fig = draw(History(few))
    assert len(fig.axes) == 2 and legends(fig) == ['a', 'b']
    assert [line.get_marker() for line in fig.axes[0].lines] == ['', '.']
    many = [dict(row, probe=row['probe'] + k) for row in few for k in 'xyzw']
    assert legends(draw(History(many))) == ['the other 7', 'bw']
    for row in many:
        row['balanced_accuracy'] = np.nan
    fig = draw(History(many))
    assert len(fig.axes) == 1 and legends(fig) == ['the other 7', 'aw']


# --- several processes

TOGETHER = """
import sys
sys.path.insert(0, {tests!r})
from test_trainer import *
from fmhar.processes import processes

torch.set_num_threads(1)
me, out = processes(), {{}}
for name, (specs, train, val, recipe) in jobs().items():
    b = bank(specs)
    file = {folder!r} + '/' + name + '.pt'
    history = fit(b, train, val, recipe=recipe, checkpoint=file, **QUICK)
    weights = {{k: v.nan_to_num(-1e9) for k, v in b.state_dict().items()}}  # NaN: diverged
    for other in me.gather((weights, history.stopped, history.early, history.rows)):
        assert all(torch.equal(a, b) for a, b in zip(weights.values(), other[0].values()))
        assert other[1:] == (history.stopped, history.early, history.rows)
    out[name] = dict(weights=weights, history=vars(history))
mine = dataset()
mine.labels[0] += me.rank
try:
    fit(bank(), mine, recipe=Recipe(epochs=1), **QUICK)
except InputError as e:
    assert 'do not train the same' in str(e)
else:
    raise SystemExit('trained on different data')
try:
    fit(bank(), dataset(), recipe=Recipe(epochs=1), checkpoint={folder!r} + '/all.pt', **QUICK)
except InputError as e:
    assert 'another bank' in str(e)
else:
    raise SystemExit('a checkpoint of something else')
if me.first:
    torch.save(out, {folder!r} + '/out.pt')
"""


def jobs():
    "All heads, one that diverges, every option; 21 segments in batches of 5: the last has one"
    train, val = dataset(42), dataset(150, seed=5, scale=0.6, clips=2)
    kinds = [name for name in FUSIONS if name != 'max_pooling']
    specs = [*sweep(kinds), ProbeSpec('max_pooling', lr=1e35), *sweep(['max_pooling'], seed=[1])]
    every = Recipe(3, 5, 1, 0.1, grad_clip=0.5, balance='loss', mixup=0.4)
    best = Recipe(5, 5, keep='best', patience=2, balance='sampling', validate_every=1)
    return {
        'all': (specs, train, val, every),
        'best': (sweep(['lstm', 'average_pooling'], lr=[0.3, 1e-4]), train, val, best),
        'sets': (sweep(['tcn'], labels=SETS), train, val, replace(every, epochs=2)),
    }


def test_two_processes_train_as_one_does(tmp_path, monkeypatch):
    "To rounding; the second continues what one process began"
    expected = {}
    for name, (specs, train, val, recipe) in jobs().items():
        b = bank(specs)
        expected[name] = b, fit(b, train, val, recipe=recipe, **QUICK)
    real = fmhar.trainer.loop.save_checkpoint
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(fmhar.trainer.loop, 'save_checkpoint', lambda r, p: (real(r, p), interrupt()))
        specs, train, val, recipe = jobs()['best']
        fit(bank(specs), train, val, recipe=recipe, checkpoint=tmp_path / 'best.pt', **QUICK)
    code = TOGETHER.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    ran = run_on(2, code, tmp_path)
    assert ran.returncode == 0, ran.stderr
    out = torch.load(tmp_path / 'out.pt', weights_only=True)
    for name, (b, history) in expected.items():
        for key, weight in b.state_dict().items():
            weight = weight.nan_to_num(-1e9)  # NaN: diverged
            torch.testing.assert_close(out[name]['weights'][key], weight, rtol=1e-5, atol=1e-5)
        said = out[name]['history']
        assert said['stopped'] == history.stopped and said['early'] == history.early
        assert said['kept'] == history.kept
        theirs = type(history)(**said).table
        assert np.allclose(theirs.loss, history.table.loss, atol=1e-5)
        assert np.array_equal(theirs.balanced_accuracy, history.table.balanced_accuracy)
    assert expected['all'][1].stopped and expected['best'][1].early  # it happened at all


def test_errors():
    with pytest.raises(InputError, match='Unknown weights to keep'):
        Recipe(keep='worst')
    with pytest.raises(InputError, match='Unknown way to balance'):
        Recipe(balance='classes')
    with pytest.raises(InputError, match="keep='best'"):
        Recipe(patience=3)
    with pytest.raises(InputError, match='needs validation data'):
        fit(bank(), dataset(), recipe=Recipe(keep='best'), **QUICK)
    with pytest.raises(InputError, match='No clips to train on'):
        fit(bank(), dataset(0), **QUICK)
    with pytest.raises(InputError, match='fp16 has too small a range'):
        fit(bank(), dataset(), recipe=Recipe(precision='fp16'), **QUICK)
    with pytest.raises(InputError, match='Unknown precision'):
        fit(bank(), dataset(), recipe=Recipe(precision='int8'), **QUICK)
