"The paper's cells are consistent where they can be derived, and tables show what they are given"

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmhar.evaluation.predictions import Predictions
from fmhar.evaluation.scores import random_baseline, score
from fmhar.paper import results
from fmhar.paper.layout import Layout
from fmhar.paper.printed import ACCURACIES, MISPRINTS, PAPER, THIRTEEN, VIEW_COLOURS, printed
from fmhar.paper.results import results_table

VIEWS = list(VIEW_COLOURS)[:6]
NAMES = dict(
    zip(VIEWS, ['front-top', 'right-top', 'back', 'face-view', 'left-top', 'kinect-color'])
)
CLASSES = [f'action_{i}' for i in range(12)]
TRAINED = 'inner_mirror'
HEADS = list(THIRTEEN)


# -- the paper's cells ---------------------------------------------------------------------------
def cell(table, row, metric='balanced_accuracy', **where):
    "One number of the paper"
    where = dict(table=table, row=row, metric=metric) | where
    found = PAPER.loc[np.logical_and.reduce([PAPER[k] == v for k, v in where.items()]), 'value']
    assert len(found) == 1, where
    return found.iloc[0]


def test_every_cell_is_a_percentage_and_only_i3d_lacks_some():
    empty = PAPER[PAPER.value.isna()]
    assert set(empty.row) == {'I3D'} and set(empty.metric) == {'balanced_accuracy'}
    assert PAPER.value.dropna().between(2.9, 95).all()
    assert not PAPER.drop(columns='value').duplicated().any()
    assert len(PAPER) == 444


def test_rows_are_the_thirteen_heads():
    for table in (3, 4):
        assert list(PAPER[PAPER.table == table].row.unique()) == [printed(h) for h in HEADS]


def test_best_trained_cells_are_those_the_text_names():
    for dataset, best in (('Drive&Act', 56.33), ('IKEA-ASM', 25.58)):
        mine = PAPER[(PAPER.dataset == dataset) & PAPER.table.isin([3, 4])]
        mine = mine[(mine.view == 'trained') & (mine.metric == 'balanced_accuracy')]
        assert mine.value.max() == best


def same_cells(left, right):
    "Pairs of (cell of one table, the same cell in the other) that differ"
    keys = ['dataset', 'model', 'head', 'view', 'metric']
    both = left.merge(right, on=keys, suffixes=('', '_other'))
    assert len(both) >= 4
    return both[both.value != both.value_other]


def with_head(table):
    "Cells of a table with model and head in columns of their own, spelt as in Table 3"
    df = PAPER[PAPER.table == table].copy()
    if table in (2, 5):
        parts = df.row.str.split(' / ')
        df['model'], df['head'] = parts.str[0], parts.str[-1]
        df.loc[df['head'] == df.model, 'head'] = 'Average Pooling'  # Sec. 4.1
        df['head'] = df['head'].str.replace('Cross-Attention -ALL', 'Cross-Attention-ALL')
    else:
        df['head'] = df.row
    return df


def test_tables_2_3_4_and_5_agree_but_for_one_known_cell():
    assert same_cells(with_head(5), with_head(3)).empty
    odd = same_cells(with_head(5), with_head(4))
    assert odd[['row', 'view', 'metric', 'value', 'value_other']].values.tolist() == [
        ['DinoV2 / Max Pooling + ReLU', 'cross', 'top1', 32.22, 32.34]
    ]
    assert same_cells(with_head(2), with_head(5)).empty
    assert '32.34' in MISPRINTS[4][0] and '32.22' in MISPRINTS[4][0]


NOVEL = ['Right-top', 'Back', 'Face-view', 'Left-Top', 'Kinect-color']
ROWS_6_IN_5 = {
    'DinoV2 w Max Pooling': 'DinoV2 / Max Pooling + ReLU',  # a known misprint
    'DinoV2 w Self Attention': 'DinoV2 / Self-Attention -ALL + Avg.',
    'X-CLIP': 'X-CLIP',
}


@pytest.mark.parametrize('metric', ACCURACIES)
@pytest.mark.parametrize('row', ROWS_6_IN_5)
def test_the_unweighted_mean_of_table_6s_novel_views_is_table_5s_cell(row, metric):
    mean = np.mean([cell(6, row, metric, view=v) for v in NOVEL])
    cross = cell(5, ROWS_6_IN_5[row], metric, dataset='Drive&Act', view='cross')
    assert mean == pytest.approx(cross, abs=0.011)


def test_table_6s_trained_view_agrees_with_table_5_but_for_one_known_cell():
    odd = {}
    for row, other in ROWS_6_IN_5.items():
        for metric in ACCURACIES:
            here = cell(6, row, metric, view='trained')
            there = cell(5, other, metric, dataset='Drive&Act', view='trained')
            if here != there:
                odd[row, metric] = here, there
    assert odd == {('DinoV2 w Self Attention', 'balanced_accuracy'): (56.63, 56.33)}
    assert '56.63' in MISPRINTS[6][1]


ROWS_7_IN_5 = ROWS_6_IN_5 | {'DinoV2 w Max Pooling': 'DinoV2 / Max Pooling'}


@pytest.mark.parametrize('view', ['trained', 'cross'])
@pytest.mark.parametrize('row', ROWS_7_IN_5)
def test_table_7s_halves_average_to_table_5s_mean(row, view):
    halves = [cell(7, row, view=view, classes=c) for c in ('common', 'rare')]
    whole = cell(5, ROWS_7_IN_5[row], dataset='Drive&Act', view=view)
    assert np.mean(halves) == pytest.approx(whole, abs=0.011)


def test_video_swins_halves_do_not_average_to_table_6_as_noted():
    for view, in_6 in (('trained', ['trained']), ('cross', NOVEL)):
        halves = np.mean([cell(7, 'Video Swin', view=view, classes=c) for c in ('common', 'rare')])
        whole = np.mean([cell(6, 'Video Swin', view=v) for v in in_6])
        assert abs(halves - whole) > 0.1
        assert f'{halves:.2f}' in MISPRINTS[7][1] and f'{whole:.2f}' in MISPRINTS[7][1]


def test_one_share_of_common_clips_explains_table_7s_top1():
    "top-1 = share x common + (1 - share) x rare, with the same share for every model and view"
    shares = []
    for row, other in ROWS_7_IN_5.items():
        for view in ('trained', 'cross'):
            common, rare = (cell(7, row, 'top1', view=view, classes=c) for c in ('common', 'rare'))
            whole = cell(5, other, 'top1', dataset='Drive&Act', view=view)
            shares.append((whole - rare) / (common - rare))
    assert np.ptp(shares) < 0.002 and np.mean(shares) == pytest.approx(0.8387, abs=1e-3)


def test_random_is_one_over_the_number_of_classes():
    for dataset, n_classes in (('Drive&Act', 34), ('IKEA-ASM', 33)):
        for view in ('trained', 'cross'):
            for metric in ACCURACIES:
                assert cell(5, 'Random', metric, dataset=dataset, view=view) == round(
                    100 / n_classes, 2
                )


def test_the_texts_differences_are_not_the_cells_as_noted():
    drive = dict(dataset='Drive&Act', view='trained')
    clip, dino, xclip = (cell(2, m, **drive) for m in ('CLIP', 'DinoV2', 'X-CLIP'))
    best = cell(5, 'DinoV2 / Self-Attention -ALL + Avg.', **drive)
    assert f'{dino - clip:.2f}' in MISPRINTS[2][0] and '7.23' in MISPRINTS[2][0]
    assert f'{best - xclip:.2f}' in MISPRINTS[5][0] and '16.6 ' in MISPRINTS[5][0]
    row = dict(dataset='IKEA-ASM', model='DinoV2', view='cross')
    assert str(cell(4, 'Self-Attention -ALL + Avg.', **row)) in MISPRINTS[4][1]


def test_the_outlier_is_one():
    top1 = with_head(3)
    top1 = top1[(top1.view == 'cross') & (top1.metric == 'top1') & (top1.model == 'CLIP')]
    outlier = top1.set_index('head').value['Cross-Attention-ALL']
    assert outlier == 40.12 and outlier > 10 + top1.value[top1.value != outlier].max()
    assert '40.12' in MISPRINTS[3][0]


# -- our own table -------------------------------------------------------------------------------
def predictions(heads=HEADS, views=VIEWS, n_events=40, seed=0, people=1):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        dict(segment=f'{e} {v}', event=f'e{e}', view=v, subject=f'vp{e % people}', split='test')
        | dict(label=CLASSES[e % 12])
        for e in range(n_events)
        for v in views
    )
    table.attrs = dict(trained_view=TRAINED, cluster='subject')
    logits = rng.normal(size=(len(heads), len(table), 12)).astype(np.float32)
    return Predictions(table, logits, list(heads), CLASSES)


def rows_of(p, trained_view=TRAINED):
    options = dict(trained_view=trained_view, pairs=[(CLASSES[0], CLASSES[1])])
    rows = pd.concat([score(p, **options), random_baseline(p, **options)], ignore_index=True)
    return rows.assign(fusion_=rows.probe.str.split().str[0])


def test_each_cell_is_the_score_it_says():
    rows = rows_of(predictions())
    table = results_table(rows, trained_view=TRAINED, view_names=NAMES).rows
    assert list(table['Temporal Fusion']) == [printed(h) for h in [*HEADS, 'random']]
    of = rows.set_index(['probe', 'view'])
    for i, head in enumerate([*HEADS, 'random']):
        for column, metric, view in [
            ('Trained View/Mean Acc.', 'balanced_accuracy', TRAINED),
            ('Trained View/Top-1 Acc.', 'top1', TRAINED),
            ('Cross View/Mean Acc.', 'balanced_accuracy', 'novel'),
            ('Cross View/Top-1 Acc.', 'top1', 'novel'),
            ('Mean Acc. of Each Novel View/back', 'balanced_accuracy', 'ceiling'),
            ('Top-5 Acc./cross', 'top5', 'novel'),
            ('In Pairs/train', 'within_pair', TRAINED),
        ]:
            assert table[column][i] == pytest.approx(100 * of[metric][head, view])


def test_thirteen_heads_by_six_views_fit_a_terminal():
    p = predictions(people=5)
    table = results_table(rows_of(p), trained_view=TRAINED, view_names=NAMES, predictions=p)
    lines = table.to_text().splitlines()
    assert max(map(len, lines)) <= 120
    assert all(sum(line.startswith(f'{printed(h)} ') for line in lines) >= 1 for h in HEADS)
    full = table.rows.copy()
    full.iloc[:, 2:] = 100.0
    values = full.iloc[:, 2:]
    ends = values[['Trained View/Mean Acc.', 'Cross View/Mean Acc.']]
    wide = Layout(full, decimals=1, marked=values.astype(bool), low=ends, high=ends)
    assert max(map(len, wide.to_text().splitlines())) <= 120


ROWS = results_table(rows_of(predictions(['lstm'])), trained_view=TRAINED).rows


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_what_is_marked_is_marked_in_every_writer(seed, decimals):
    rng = np.random.default_rng(seed)
    rows = ROWS.copy()
    rows.iloc[:, 2:] = rng.integers(0, 20, (14, rows.shape[1] - 2)) * 1.37
    rows.iloc[2, 2] = np.nan
    marked = pd.DataFrame(rng.random(rows.shape) < 0.3, columns=rows.columns)
    table = Layout(rows, decimals=decimals, marked=marked)
    cells = [line for _, lines in table.groups for line in lines]
    for i, line in enumerate(cells):
        for name, cell in zip(rows.columns[2:], line[1:]):
            assert cell.best == marked[name][i]
            if not np.isnan(rows[name][i]):
                assert cell.text == f'{rows[name][i]:.{decimals}f}'
    assert cells[2][1].text == '–'
    n = int(marked[rows.columns[2:]].sum().sum())
    assert table.to_html().count('<b>') == n and table.to_text().count('*') == n


def test_the_marked_are_not_worse_than_the_best_beyond_chance():
    p = predictions(['lstm', 'tcn', 'max_pooling'], people=6)
    truth = 30 * np.eye(12)[p.labels]
    p.logits[0] += truth
    p.logits[1] += truth + 1e-3
    table = results_table(rows_of(p), trained_view=TRAINED, predictions=p)
    names = table.rows['Temporal Fusion']
    for column in table.marked:
        assert set(names[table.marked[column]]) == {'LSTM', 'TCN'}, column
    assert table.low['Cross View/Mean Acc.'].notna().sum() == 3


def test_one_person_marks_nobody():
    p = predictions(['lstm', 'tcn'])
    table = results_table(rows_of(p), trained_view=TRAINED, predictions=p)
    assert not table.marked.any(axis=None) and '[' not in table.to_text()
    notes = results.footnotes(rows_of(p), weights='w', trained_view=TRAINED, predictions=p)
    assert any('No intervals and no marks: one subject' in n for n in notes)


def test_seeds_of_a_head_are_one_line_and_a_diverged_one_empties_it():
    p = predictions(['lstm', 'lstm seed=1', 'tcn', 'tcn seed=1'], people=5)
    p.logits[3] = np.nan
    table = results_table(rows_of(p), trained_view=TRAINED, predictions=p)
    column = table.rows.set_index('Temporal Fusion')['Trained View/Mean Acc.']
    both = rows_of(p).query("view == @TRAINED and fusion_ == 'lstm'").balanced_accuracy
    assert len(both) == 2 and column['LSTM'] == pytest.approx(100 * both.mean())
    assert np.isnan(column['TCN'])
    notes = ' '.join(
        results.footnotes(rows_of(p), weights='w', trained_view=TRAINED, predictions=p)
    )
    assert 'Mean over 2 seeds' in notes and 'diverged: tcn seed=1' in notes


def test_rendered_data_and_few_clips_are_said():
    rows = rows_of(predictions(['lstm'], n_events=11)).assign(data='rendered')
    notes = results.footnotes(rows, weights='w', trained_view=TRAINED)
    assert results.RENDERED in notes and results.SMOKE in notes


def test_heads_that_were_not_run_stay_empty_and_own_heads_are_kept():
    table = results_table(rows_of(predictions(['lstm', 'my_head'])), trained_view=TRAINED)
    filled = table.rows[table.rows['Trained View/Mean Acc.'].notna()]
    assert list(filled['Temporal Fusion']) == ['LSTM', 'my_head', 'Random']
    first = [line for _, lines in table.groups for line in lines][0]
    assert {cell.text for cell in first[1:]} == {'–'}


def test_markdown_has_a_cell_a_column():
    table = results_table(rows_of(predictions()), trained_view=TRAINED, view_names=NAMES)
    lines = table.to_markdown().splitlines()
    assert len({line.count('|') for line in lines}) == 1
    assert len(lines) == 2 + 14 + 4  # head, rows, groups


def test_footnotes_say_what_is_missing():
    p = predictions(['lstm'], n_events=11)  # the twelfth class never occurs
    options = dict(weights='w', trained_view=TRAINED)
    notes = results.footnotes(rows_of(p), **options)
    assert '11 test segments a view, 11 of 12 classes' in notes[2]
    assert not any('could not be read' in n for n in notes)
    failed = pd.DataFrame(dict(path=['a', 'b'], n_clips=[3, 4]))
    assert '2 videos could not be read; 7 clips' in results.footnotes(
        rows_of(p), failed=failed, **options
    )[-1]  # fmt: skip
