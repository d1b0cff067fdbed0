"The paper's cells are consistent where they can be derived, and tables show what they are given"

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmhar.evaluation.predictions import Predictions
from fmhar.evaluation.scores import random_baseline, score
from fmhar.paper import figures as plots
from fmhar.paper import layout as report
from fmhar.paper.printed import MISPRINTS, PAPER

VIEWS = list(plots.VIEW_COLOURS)[:6]
NAMES = dict(
    zip(VIEWS, ['front-top', 'right-top', 'back', 'face-view', 'left-top', 'kinect-color'])
)
CLASSES = [f'action_{i}' for i in range(12)]
TRAINED = 'inner_mirror'
HEADS = [h for h in plots.HEADS if h != 'random']


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
        assert list(PAPER[PAPER.table == table].row.unique()) == [plots.HEADS[h][1] for h in HEADS]


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


@pytest.mark.parametrize('metric', report.ACCURACIES)
@pytest.mark.parametrize('row', ROWS_6_IN_5)
def test_the_unweighted_mean_of_table_6s_novel_views_is_table_5s_cell(row, metric):
    mean = np.mean([cell(6, row, metric, view=v) for v in NOVEL])
    cross = cell(5, ROWS_6_IN_5[row], metric, dataset='Drive&Act', view='cross')
    assert mean == pytest.approx(cross, abs=0.011)


def test_table_6s_trained_view_agrees_with_table_5_but_for_one_known_cell():
    odd = {}
    for row, other in ROWS_6_IN_5.items():
        for metric in report.ACCURACIES:
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
            for metric in report.ACCURACIES:
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
def predictions(heads=HEADS, views=VIEWS, n_events=40, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        dict(segment=f'{e} {v}', event=f'e{e}', view=v, subject='vp1', split='test')
        | dict(label=CLASSES[e % 12])
        for e in range(n_events)
        for v in views
    )
    logits = rng.normal(size=(len(heads), len(table), 12)).astype(np.float32)
    return Predictions(table, logits, list(heads), CLASSES)


def rows_of(p, trained_view=TRAINED):
    options = dict(trained_view=trained_view, pairs=[(CLASSES[0], CLASSES[1])])
    return pd.concat([score(p, **options), random_baseline(p, **options)], ignore_index=True)


def test_each_cell_is_the_score_it_says():
    rows = rows_of(predictions())
    table = report.table3(rows, trained_view=TRAINED, view_names=NAMES)
    assert list(table['Temporal Fusion']) == [plots.printed(h) for h in plots.HEADS]
    of = rows.set_index(['probe', 'view'])
    for i, head in enumerate(plots.HEADS):
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
    table = report.table3(rows_of(predictions()), trained_view=TRAINED, view_names=NAMES)
    lines = report.to_text(table).splitlines()
    assert max(map(len, lines)) <= 110 and len(lines) < 32
    assert all(sum(line.startswith(plots.printed(h)) for line in lines) for h in plots.HEADS)
    full = table.copy()
    full.iloc[:, 2:] = 100.0
    assert max(map(len, report.to_text(full).splitlines())) <= 110


EMPTY = report.table3(rows_of(predictions(['lstm'])), trained_view=TRAINED)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_the_best_of_a_column_as_printed_is_marked(seed, decimals):
    rng = np.random.default_rng(seed)
    table = EMPTY.copy()
    table.iloc[:, 2:] = rng.integers(0, 20, (14, table.shape[1] - 2)) * 1.37
    table.iloc[2, 2] = np.nan
    text = report.cell_texts(table, decimals, '{}*')
    for column in table.columns[2:]:
        best = f'{table[column][:13].max():.{decimals}f}'
        starred = {t for t in text[column] if t.endswith('*')}
        assert starred == {best + '*'}
        assert not text[column][13].endswith('*')  # the random row does not compete
        assert [t for t in text[column][:13] if t.strip('*') == best] == [best + '*'] * sum(
            text[column][:13].str.strip('*') == best
        )
    assert text.iloc[2, 2] == '-'


def test_heads_that_were_not_run_stay_empty_and_own_heads_are_kept():
    table = report.table3(rows_of(predictions(['lstm', 'my_head'])), trained_view=TRAINED)
    filled = table[table['Trained View/Mean Acc.'].notna()]
    assert list(filled['Temporal Fusion']) == ['LSTM', 'my_head', 'Random']
    assert (report.cell_texts(table, 1, '{}*').iloc[:11, 2:] == '-').all(axis=None)


def test_markdown_has_a_cell_a_column():
    table = report.table3(rows_of(predictions()), trained_view=TRAINED, view_names=NAMES)
    lines = report.to_markdown(table).splitlines()
    assert len({line.count('|') for line in lines}) == 1
    assert len(lines) == 2 + 14 + 4  # head, rows, groups
    assert all(sum('**' in x.split('|')[c] for x in lines[2:]) >= 1 for c in range(1, 14))


def test_footnotes_say_what_is_missing():
    p = predictions(['lstm'], n_events=11)  # the twelfth class never occurs
    options = dict(weights='w', trained_view=TRAINED)
    notes = report.footnotes(rows_of(p), **options)
    assert '11 test segments a view, 11 of 12 classes' in notes[2]
    assert not any('could not be read' in n for n in notes)
    failed = pd.DataFrame(dict(path=['a', 'b'], n_clips=[3, 4]))
    assert '2 videos could not be read; 7 clips' in report.footnotes(
        rows_of(p), failed=failed, **options
    )[-1]  # fmt: skip
