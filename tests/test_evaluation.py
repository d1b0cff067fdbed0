"Every clip is predicted once, a segment counts once, each view is scored by itself"

import json
import os
import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import recall_score
from test_processes import run_on

from fmhar.contracts import Features
from fmhar.errors import InputError
from fmhar.evaluation.inference import predict
from fmhar.evaluation.order import order_test
from fmhar.evaluation.predictions import Predictions, join
from fmhar.evaluation.scores import METRICS, calibration, random_baseline, score, within_pairs
from fmhar.evaluation.selection import ORACLE, oracle_gap, select
from fmhar.metrics import fit_temperature
from fmhar.probe import ProbeBank, ProbeSpec, sweep
from fmhar.trainer.state import History

CLASSES = ['closing', 'opening', 'eating', 'writing', 'reading', 'sitting']
VIEWS = ['inner_mirror', 'ceiling', 'kinect_color']
PAIRS = [('closing', 'opening')]


def clips(n_events=30, n_clips=3, seed=0):
    "A table of clips in random row order"
    rng = np.random.default_rng(seed)
    label = rng.choice(CLASSES[:5], n_events)  # nobody sits still
    rows = [
        dict(segment=e * len(VIEWS) + v, clip=c, event=f'e{e}', view=view, split='test')
        | dict(subject=f'vp{e % 4}', label=label[e], frames=(c, c + 5), start=e)
        for e in range(n_events)
        for v, view in enumerate(VIEWS)
        for c in range(n_clips)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)
    table.attrs = dict(classes=CLASSES, trained_view=VIEWS[0], view_names={'ceiling': 'back'})
    return table


def predictions(n_probes=2, seed=0, **options):
    table = clips(seed=seed, **options)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n_probes, len(table), len(CLASSES))).astype(np.float32)
    return Predictions(table, logits, [f'probe {i}' for i in range(n_probes)], CLASSES)


@dataclass
class Spec:
    name: str
    labels: str = 'label'


@dataclass
class InMemory:
    "The part of a feature dataset that evaluation uses; remembers what was asked for"

    table: pd.DataFrame
    features: torch.Tensor  # (n, T, D)
    classes: list = field(default_factory=lambda: CLASSES)
    asked: list = field(default_factory=list)

    def __len__(self):
        return len(self.table)

    def batch(self, indices):
        self.asked.extend(indices)
        return Features(
            self.features[indices], self.features[indices][:, :, None].repeat(1, 1, 2, 1)
        )


class Bank(torch.nn.Module):
    "Two probes: one is blind to order, one is not; in training mode dropout would show"

    specs, needs_tokens = [Spec('mean'), Spec('last')], False

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(4, len(CLASSES)), torch.nn.Dropout(0.5)

    def forward(self, features):
        cls, tokens = features.cls.float(), features.tokens.float()
        return self.linear(self.dropout(torch.stack([cls.mean(1), tokens[:, -1].mean(1)])))


def dataset(n_events=7, n_frames=5, dtype=torch.float16):
    table = clips(n_events)
    generator = torch.Generator().manual_seed(0)
    return InMemory(table, torch.randn(len(table), n_frames, 4, generator=generator).to(dtype))


OPTIONS = dict(device='cpu', progress=False)


@pytest.mark.parametrize('batch_size', [1, 8, 63, 64, 1000])
def test_each_clip_is_read_and_answered_once(batch_size):
    data, bank = dataset(), Bank()
    p = predict(bank, data, batch_size=batch_size, **OPTIONS)
    assert sorted(data.asked) == list(range(len(data)))
    assert p.logits.shape == (2, 63, len(CLASSES)) and p.logits.dtype == np.float32
    one = data.batch([5])
    with torch.no_grad():
        alone = bank.eval()(Features(one.cls.float(), one.tokens.float()))
    np.testing.assert_allclose(p.logits[:, 5], alone[:, 0], atol=1e-6)
    pd.testing.assert_frame_equal(p.table, data.table)


TOGETHER = """
import sys
sys.path.insert(0, {tests!r})
from test_evaluation import *
from fmhar.processes import processes

torch.set_num_threads(1)
torch.manual_seed(0)
me, data, bank = processes(), dataset(), Bank()
mine = predict(bank, data, batch_size=8, **OPTIONS)
asked = me.gather(data.asked)
assert not set(asked[0]) & set(asked[1]) and sorted(sum(asked, [])) == list(range(63))
assert abs(len(asked[0]) - len(asked[1])) <= 8
one_batch = predict(bank, dataset(), batch_size=64, **OPTIONS)  # rank 1 has nothing to do
order = order_test(bank, dataset(), batch_size=8, **OPTIONS)
every = me.gather((mine.logits, one_batch.logits, order))
assert (every[0][0] == every[1][0]).all() and every[0][2].equals(every[1][2])
if me.first:
    mine.save({file!r})
    np.savez({file!r} + '.npz', one_batch=one_batch.logits)
    order.to_csv({file!r} + '.csv', index=False)
"""


def test_two_processes_answer_with_the_same_bits(tmp_path):
    "Of a clip that has neighbours of its own batch only: whole batches are shared out"
    torch.manual_seed(0)
    threads, bank, file = torch.get_num_threads(), Bank(), str(tmp_path / 'two.parquet')
    torch.set_num_threads(1)
    ran = run_on(2, TOGETHER.format(tests=os.path.dirname(__file__), file=file), tmp_path)
    assert ran.returncode == 0, ran.stderr
    alone = predict(bank, dataset(), batch_size=8, **OPTIONS)
    two = Predictions.load(file)
    assert np.array_equal(two.logits, alone.logits) and two.probes == alone.probes
    pd.testing.assert_frame_equal(two.table[['segment', 'clip']], alone.table[['segment', 'clip']])
    one_batch = predict(bank, dataset(), **OPTIONS).logits
    assert np.array_equal(np.load(file + '.npz')['one_batch'], one_batch)
    order = order_test(bank, dataset(), batch_size=8, **OPTIONS)
    pd.testing.assert_frame_equal(pd.read_csv(file + '.csv'), order, check_exact=False)
    torch.set_num_threads(threads)


def test_each_label_set_is_answered_for_by_its_own_probes():
    data = dataset()
    data.table['place'] = np.where(data.table['view'] == 'ceiling', 'above', 'beside')
    data.table.attrs['label_sets'] = {'place': ['above', 'below', 'beside']}
    specs = [ProbeSpec('lstm'), ProbeSpec('lstm', labels='place'), ProbeSpec('tcn', labels='place')]
    bank = ProbeBank(specs, 4, dict(label=6, place=3))
    one, other = predict(bank, data, **OPTIONS), predict(bank, data, labels='place', **OPTIONS)
    assert (one.probes, one.logits.shape, one.classes) == (['lstm'], (1, 63, 6), CLASSES)
    assert other.probes == ['lstm labels=place', 'tcn labels=place']
    assert other.logits.shape == (2, 63, 3) and other.classes == ['above', 'below', 'beside']
    assert (other.labels == np.where(data.table['view'] == 'ceiling', 0, 2)).all()
    x = Features(data.features.float())
    with torch.no_grad():
        np.testing.assert_allclose(other.logits, bank(x)[1:, :, :3], atol=1e-5)
    rows = score(other, trained_view=VIEWS[0])
    assert set(rows.n_classes) == {3}
    with pytest.raises(InputError, match="Unknown label set 'room'"):
        predict(bank, data, labels='room', **OPTIONS)


def test_nothing_to_predict():
    assert predict(Bank(), InMemory(clips().iloc[:0], None), **OPTIONS).logits.shape == (2, 0, 6)


def test_joined_probes_keep_their_logits_whatever_the_order_of_clips():
    a, b = predictions(2), predictions(3)
    b.probes = list('xyz')
    order = np.random.default_rng(5).permutation(len(b.table))
    shuffled = Predictions(
        b.table.iloc[order].reset_index(drop=True), b.logits[:, order], b.probes, CLASSES
    )
    both = join(a, shuffled)
    assert both.probes == [*a.probes, *'xyz'] and both.table is a.table
    assert np.array_equal(both.logits, np.concatenate([a.logits, b.logits]))
    averaged = join(a.mean_clips(), shuffled.mean_clips())
    for name in both.probes:
        np.testing.assert_allclose(averaged.of(name), both.mean_clips().of(name), atol=1e-6)


@pytest.mark.parametrize('harm', ['fewer', 'clip', 'label', 'classes', 'names', 'twice'])
def test_answers_for_other_clips_are_not_joined(harm):
    a, b = predictions(1), predictions(1)
    b.probes = ['b']
    if harm == 'fewer':
        b = Predictions(b.table.iloc[1:], b.logits[:, 1:], b.probes, CLASSES)
    if harm == 'clip':
        b.table.loc[3, 'clip'] += 7
    if harm == 'label':
        b.table.loc[3, 'label'] = 'sitting'
    if harm == 'classes':
        b.classes = CLASSES[::-1]
    if harm == 'names':
        b.probes = a.probes
    if harm == 'twice':
        b.table.loc[3] = b.table.loc[4]
    with pytest.raises(InputError, match='of one name' if harm == 'names' else 'other clips'):
        join(a, b)


def sweep_history(specs, seed=0):
    "Made-up validation of three epochs; the second probe diverged in the third"
    rng = np.random.default_rng(seed)
    rows = [
        dict(epoch=e, probe=s.name, loss=1.0, balanced_accuracy=rng.random())
        for e in (1, 2, 3)
        for s in specs
        if e < 3 or s != specs[1]
    ]
    kept = {s.name: 3 for s in specs if s != specs[1]}
    return History(rows, stopped={specs[1].name: 3}, kept=kept)


def test_selection_looks_at_validation_of_the_weights_that_were_kept():
    specs = sweep(['lstm', 'tcn'], lr=[1e-3, 1e-2], weight_decay=[0.02, 0.1], seed=[0, 1])
    history = sweep_history(specs)
    history.kept[specs[4].name] = 2
    chosen = select(history, specs).set_index('head')
    table = history.table.set_index(['epoch', 'probe']).balanced_accuracy
    for head in 'lstm', 'tcn':
        value = {}
        for first, second in zip(*[iter(s for s in specs if s.fusion == head)] * 2):  # two seeds
            if specs[1] not in (first, second):
                runs = [table[history.kept[s.name], s.name] for s in (first, second)]
                value[first.name, second.name] = np.mean(runs)
        best = max(value, key=value.get)
        row = chosen.loc[head]
        assert (row.probe, row.probes, row.validation) == (best[0], best, value[best])
        assert (row.n_settings, row.n_seeds) == (4, 2) and row.epoch == history.kept[best[0]]
    history.rows[0]['balanced_accuracy'] = 2.0  # of an epoch whose weights are gone
    pd.testing.assert_frame_equal(select(history, specs).set_index('head'), chosen)


def test_a_lucky_seed_is_no_setting():
    "Two settings of equal worth and many seeds: the mean decides, not the best run"
    specs = sweep(['lstm'], lr=[1e-3, 1e-2], seed=range(5))
    values = [0.6] * 5 + [0.9, 0.4, 0.4, 0.4, 0.4]
    rows = [
        dict(epoch=1, probe=s.name, loss=1.0, balanced_accuracy=v) for s, v in zip(specs, values)
    ]
    chosen = select(History(rows, kept={s.name: 1 for s in specs}), specs).iloc[0]
    assert chosen.probe == 'lstm' and chosen.validation == pytest.approx(0.6)
    assert len(chosen.probes) == 5


def test_options_and_layers_are_heads_of_their_own_and_equals_take_the_first():
    specs = [*sweep(['lstm'], seed=[0, 1], layers=2), ProbeSpec('lstm', options={'hidden': 4})]
    rows = [dict(epoch=1, probe=s.name, loss=1.0, balanced_accuracy=0.5) for s in specs]
    history = History(rows, kept={s.name: 1 for s in specs})
    chosen = select(history, specs)
    assert chosen['head'].tolist() == ['lstm layer=0/2', 'lstm layer=1/2', 'lstm hidden=4']
    assert chosen.probe.tolist() == ['lstm layer=0/2', 'lstm layer=1/2', 'lstm hidden=4']


def test_the_oracle_is_never_what_was_selected_by_and_never_below_it():
    specs = sweep(['lstm', 'tcn'], lr=[1e-3, 3e-3, 1e-2], seed=[0, 1])
    history = sweep_history(specs, seed=2)
    p = predictions(len(specs))
    p.probes = [s.name for s in specs]
    p.logits[1] = np.nan  # the one that diverged
    rows = score(p, trained_view=VIEWS[0])
    gap = oracle_gap(rows, history, specs)
    assert gap.probe.tolist() == select(history, specs).probe.tolist()
    novel = rows[rows['view'] == 'novel'].set_index('probe').balanced_accuracy
    chosen = select(history, specs).set_index('head').probes
    for row in gap.itertuples():
        assert row.novel == pytest.approx(novel[list(chosen[row.head])].mean())
        pairs = zip(*[iter(s.name for s in specs if s.head == row.head)] * 2)
        means = {pair: novel[list(pair)].mean() for pair in pairs}
        assert row.oracle_probe == max(means, key=means.get)[0]
    assert (gap[ORACLE] >= gap.novel).all() and (gap.gap == gap[ORACLE] - gap.novel).all()
    assert (gap.gap > 0).any() and 'novel views' in ORACLE
    other = rows.copy()
    other.loc[other['view'] != 'novel', 'balanced_accuracy'] = 0  # looks at nothing else
    pd.testing.assert_frame_equal(oracle_gap(other, history, specs), gap)


def test_no_selection_without_validation():
    specs = sweep(['lstm'])
    history = History([dict(epoch=1, probe='lstm', loss=1.0, balanced_accuracy=np.nan)])
    history.kept['lstm'] = 1
    with pytest.raises(InputError, match='no validation'):
        select(history, specs)
    rows = score(predictions(1), trained_view=VIEWS[0])
    history.rows[0]['balanced_accuracy'] = 0.5
    with pytest.raises(InputError, match='No scores of novel views'):
        oracle_gap(rows[rows['view'] == VIEWS[0]], history, specs)


def test_bf16_answers_are_close():
    bank = Bank()
    exact = predict(bank, dataset(), **OPTIONS).logits
    half = predict(bank, dataset(), precision='bf16', **OPTIONS).logits
    assert 0 < np.abs(half - exact).max() < 0.03


def test_a_diverged_probe_has_no_score_and_the_others_keep_theirs():
    p = predictions()
    before = score(p, trained_view=VIEWS[0], pairs=PAIRS).set_index('probe')
    p.logits[0] = np.nan
    after = score(p, trained_view=VIEWS[0], pairs=PAIRS).set_index('probe')
    assert after.loc['probe 0', list(METRICS)].isna().all(axis=None)
    pd.testing.assert_frame_equal(after.loc[['probe 1']], before.loc[['probe 1']])
    random = random_baseline(p, trained_view=VIEWS[0], pairs=PAIRS)
    assert random[list(METRICS)].notna().all(axis=None)


def test_order_test_tells_blind_heads_from_others():
    rows = order_test(Bank(), dataset(), **OPTIONS).set_index(['probe', 'frames'])
    assert rows.change['mean'].max() < 1e-5 and (rows.same_class['mean'] == 1).all()
    assert rows.change['last'].min() > 0.05 and (rows.same_class['last'] < 1).all()


def test_shuffling_is_the_same_however_clips_are_batched():
    one = order_test(seeded_bank(), dataset(), batch_size=1, **OPTIONS)
    many = order_test(seeded_bank(), dataset(), batch_size=50, **OPTIONS)
    pd.testing.assert_frame_equal(one, many, atol=1e-6)


def seeded_bank():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bank()


def test_clip_logits_are_averaged_by_segment_whatever_the_row_order():
    p = predictions()
    s = p.mean_clips()
    assert len(s.table) == 90 and s.table.segment.is_unique
    assert not {'clip', 'frames'} & set(s.table.columns)
    for i in (0, 17, 89):
        mine = (p.table.segment == s.table.segment[i]).to_numpy()
        assert mine.sum() == 3
        np.testing.assert_allclose(s.logits[:, i], p.logits[:, mine].mean(1), atol=1e-6)
        assert s.table.label[i] == p.table.label[mine].iloc[0]
    assert s.table.attrs == p.table.attrs


def test_logits_are_averaged_not_probabilities_nor_votes():
    p = predictions(n_events=1)
    p.logits[:] = 0
    first, *others = np.flatnonzero(p.table.segment == 0)
    p.logits[:, first, 0], p.logits[:, others, 1] = 9, 3  # one sure clip against two
    i = int(np.flatnonzero(p.mean_clips().table.segment == 0)[0])
    assert p.mean_clips().logits[0, i].argmax() == 0


def test_files_give_back_what_was_saved(tmp_path):
    p = predictions()
    p.save(tmp_path / 'p.parquet')
    again = Predictions.load(tmp_path / 'p.parquet')
    pd.testing.assert_frame_equal(again.table, p.table)
    np.testing.assert_array_equal(again.logits, p.logits)
    assert (again.probes, again.classes, again.table.attrs) == (p.probes, CLASSES, p.table.attrs)
    plain = pd.read_parquet(tmp_path / 'p.parquet')  # without this package
    np.testing.assert_array_equal(np.stack(plain['logits probe 1']), p.logits[1])


@pytest.mark.parametrize('keep', [0, 4, 100, -1])
def test_a_broken_file_is_refused(tmp_path, keep):
    path = tmp_path / 'p.parquet'
    predictions().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match='p.parquet'):
        Predictions.load(path)


def test_no_flipped_bit_reads_as_another_answer(tmp_path):
    path, p, rng = tmp_path / 'p.parquet', predictions(n_events=6), np.random.default_rng(0)
    p.save(path)
    whole = path.read_bytes()
    for place in rng.integers(len(whole) * 8, size=150):
        harmed = bytearray(whole)
        harmed[place // 8] ^= 1 << place % 8
        path.write_bytes(harmed)
        try:
            again = Predictions.load(path)
        except InputError:
            continue
        assert np.array_equal(again.logits, p.logits) and again.classes == p.classes
        pd.testing.assert_frame_equal(again.table, p.table)


def test_files_without_a_checksum_open_with_a_warning(tmp_path):
    "As versions before wrote them: one row group, no checksum"
    path, p = tmp_path / 'p.parquet', predictions()
    table = pa.Table.from_pandas(p.table, preserve_index=False)
    for name, logits in zip(p.probes, p.logits):
        column = pa.FixedSizeListArray.from_arrays(logits.ravel(), len(CLASSES))
        table = table.append_column(f'logits {name}', column)
    about = dict(probes=p.probes, classes=p.classes, attrs=p.table.attrs)
    pq.write_table(table.replace_schema_metadata({'fmhar': json.dumps(about)}), path)
    with pytest.warns(UserWarning, match='without a checksum'):
        again = Predictions.load(path)
    pd.testing.assert_frame_equal(again.table, p.table)
    assert np.array_equal(again.logits, p.logits)


def test_halves_on_disk_keep_three_digits(tmp_path):
    p = predictions()
    p.save(tmp_path / 'p.parquet', dtype='float16')
    again = Predictions.load(tmp_path / 'p.parquet')
    assert again.logits.dtype == np.float32
    np.testing.assert_allclose(again.logits, p.logits, rtol=2e-3)
    with pytest.raises(InputError, match='float16'):
        p.save(tmp_path / 'p.parquet', dtype='int8')


def test_many_rows_are_written_and_read_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr('fmhar.evaluation.predictions.ROWS', 50)
    p = predictions()
    p.save(tmp_path / 'p.parquet')
    assert pq.ParquetFile(tmp_path / 'p.parquet').num_row_groups == 6
    again = Predictions.load(tmp_path / 'p.parquet')
    assert np.array_equal(again.logits, p.logits)
    pd.testing.assert_frame_equal(again.table, p.table)


def test_averaging_many_clips_needs_little_more_memory_than_its_answer():
    n, n_probes = 30_000, 10
    table = pd.DataFrame(dict(segment=np.arange(n) // 3, view='front', label='a', split='test'))
    p = Predictions(
        table, np.ones((n_probes, n, 34), np.float32), [*map(str, range(n_probes))], ['a']
    )
    p.classes = [f'c{i}' for i in range(34)]
    tracemalloc.start()
    mean = p.mean_clips()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (mean.logits == 1).all() and peak < 2.5 * mean.logits.nbytes


@pytest.mark.parametrize('n_probes', [1, 2, 40])
def test_predictions_show_themselves_in_at_most_fifteen_lines(n_probes):
    p = predictions(n_probes)
    text, html = repr(p), p._repr_html_()
    assert len(text.splitlines()) <= 15 and html.count('<tr>') <= 13
    assert 'ceiling' in text and 'probe 0' in text and 'ceiling' in html
    rows = score(p, trained_view=VIEWS[0]).set_index(['probe', 'view']).balanced_accuracy
    assert f'{100 * rows["probe 0", "ceiling"]:.1f}' in text
    p.table['view'] = p.table['view'] + '<script>'
    assert '<script>' not in p._repr_html_()
    bare = Predictions(pd.DataFrame(dict(x=range(3))), np.zeros((1, 3, 2)), ['p'], ['a', 'b'])
    assert repr(bare) == bare._repr_html_() == 'Predictions: 1 probe, 3 rows, 2 classes'


def test_the_share_of_the_most_frequent_answer_stands_in_every_row():
    p = predictions()
    p.logits[1], p.logits[1, :, 2] = 0, 1  # one answer to everything
    rows = score(p, trained_view=VIEWS[0]).set_index('probe').most_frequent
    assert (rows['probe 1'] == 1).all() and (rows['probe 0'] < 0.6).all()


def test_a_pair_of_no_class_is_refused():
    for call in (score, within_pairs):
        options = dict(trained_view=VIEWS[0]) if call is score else {}
        with pytest.raises(InputError, match='did you mean opening'):
            call(predictions(), pairs=[('closing', 'openin')], **options)


def test_calibrated_answers_show_the_expected_calibration_error():
    "Labels drawn from the confidences themselves, 78 clips"
    rng, errors, expected = np.random.default_rng(0), [], []
    for _ in range(60):
        logits = rng.normal(size=(78, 6)).astype(np.float32) * 2
        drawn = [rng.choice(6, p=softmax(z)) for z in logits.astype(float)]
        table = pd.DataFrame(dict(segment=range(78), view='front', split='test'))
        table['label'] = np.array(CLASSES)[drawn]
        p = Predictions(table, logits[None], ['p'], CLASSES)
        row = calibration(p, p).iloc[0]
        errors.append(row.ece), expected.append(row.ece_expected)
    assert np.mean(errors) == pytest.approx(np.mean(expected), abs=0.01) and np.mean(errors) > 0.1


def test_scores_are_those_of_the_segments_of_each_view():
    p = predictions()
    rows = score(p, trained_view=VIEWS[0], pairs=PAIRS).set_index(['probe', 'view'])
    s = p.mean_clips()
    of_view = (s.table.view == 'ceiling').to_numpy()
    truth, guess = s.labels[of_view], s.of('probe 1')[of_view].argmax(1)
    theirs = recall_score(truth, guess, labels=np.unique(truth), average='macro')
    assert rows.balanced_accuracy['probe 1', 'ceiling'] == pytest.approx(theirs)
    assert rows.n['probe 1', 'ceiling'] == 30 and (rows.n_classes == 6).all()
    assert (rows.n_classes_present == len(set(s.table.label))).all()
    pd.testing.assert_frame_equal(rows, score(s, trained_view=VIEWS[0], pairs=PAIRS).set_index(
        ['probe', 'view']))  # fmt: skip


def test_novel_is_the_unweighted_mean_over_novel_views():
    p = predictions()
    few = (p.table.view != 'ceiling') | p.table.event.isin([f'e{i}' for i in range(8)])
    p = Predictions(p.table[few], p.logits[:, few], p.probes, CLASSES)
    rows = score(p, trained_view=VIEWS[0], pairs=PAIRS).set_index(['probe', 'view'])
    assert rows.n['probe 0', 'ceiling'] == 8  # and yet it weighs as much as the other view
    for metric in ('balanced_accuracy', 'top1', 'top5', 'within_pair'):
        views = rows[metric].unstack()
        np.testing.assert_allclose(views['novel'], views[VIEWS[1:]].mean(axis=1))
    assert rows.n['probe 0', 'novel'] == 38


def test_only_the_trained_view_leaves_no_novel_row():
    p = predictions()
    only = (p.table.view == VIEWS[0]).to_numpy()
    rows = score(
        Predictions(p.table[only], p.logits[:, only], p.probes, CLASSES), trained_view=VIEWS[0]
    )
    assert list(rows.view) == [VIEWS[0]] * 2 and list(rows.probe) == p.probes


def test_random_row_is_what_constant_scores_get():
    p = predictions()
    p.logits[:] = 0
    options = dict(trained_view=VIEWS[0], pairs=PAIRS)
    flat, random = score(p, **options), random_baseline(p, **options)
    assert len(random) == 4 and set(random.probe) == {'random'}
    for metric in ('top1', 'top5', 'within_pair'):
        np.testing.assert_allclose(random[metric], flat[metric][:4])
    np.testing.assert_allclose(random.balanced_accuracy, 1 / 6)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match='inner_mirror'):
        score(predictions(), trained_view='inner_miror')
    with pytest.raises(InputError, match='probe 0'):
        predictions().of('probe 7')


def test_temperature_is_fitted_on_validation_and_changes_no_decision():
    p = predictions()
    p.logits *= 5
    held_out = (p.table.view == VIEWS[0]).to_numpy()
    val = Predictions(p.table[held_out], p.logits[:, held_out], p.probes, CLASSES)
    rows = calibration(p, val)
    assert len(rows) == 2 * len(VIEWS) * 2
    of = rows[rows.probe == 'probe 1']
    fitted = of.temperature[of.temperature != 1].unique()
    assert len(fitted) == 1 and fitted[0] > 5  # random answers know nothing
    plain, scaled = of.nll[of.temperature == 1], of.nll[of.temperature != 1]
    assert (scaled.to_numpy() < plain.to_numpy()).all()
    on_val = calibration(val, val).query('probe == "probe 1"')
    s = val.mean_clips()
    expected = fit_temperature(s.labels, s.of('probe 1'))
    assert on_val.temperature.iloc[1] == expected == fitted[0]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_confined_to_pairs_balanced_accuracy_is_accuracy_within_pairs(seed):
    rng = np.random.default_rng(seed)
    n, classes = 120, list('abcde')
    table = pd.DataFrame(dict(segment=range(n), label=list('abcde') * 24, split='test'))
    table['view'] = np.repeat(['front', 'side', 'top'], n // 3)
    logits = rng.normal(size=(2, n, 5)).astype(np.float32)
    logits[1] = np.nan  # a probe that diverged
    p, pairs = Predictions(table, logits, ['x', 'y'], classes), [('a', 'c'), ('d', 'b')]
    confined = score(within_pairs(p, pairs), trained_view='front')
    whole = score(p, trained_view='front', pairs=pairs)
    np.testing.assert_allclose(confined.balanced_accuracy, whole.within_pair)
    assert set(within_pairs(p, pairs).table.label) == set('abcd')
