"The paper's tables hold its rows, columns and cells; ours are the scores they say they are"

import json
import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score

from fmhar.errors import InputError
from fmhar.evaluation.predictions import Predictions, join
from fmhar.evaluation.scores import score
from fmhar.metrics import halves
from fmhar.paper import tables
from fmhar.paper.layout import Layout
from fmhar.paper.printed import MISPRINTS, PAPER, PRINTED, THIRTEEN
from fmhar.paper.runs import Run
from fmhar.statistics import bootstrap, differences, holm, intervals

pytestmark = pytest.mark.filterwarnings('ignore::pandas.errors.PerformanceWarning')

HEADS = list(THIRTEEN)
NAMES = dict(
    inner_mirror='front-top', a_column_co_driver='right-top', ceiling='back',
    steering_wheel='face-view', a_column_driver='left-top', kinect_color='kinect-color',
)  # fmt: skip
VIEWS = {'Drive&Act': NAMES, 'IKEA-ASM': dict(front='front', side='side', top='top')}
CLUSTER = {'Drive&Act': 'subject', 'IKEA-ASM': 'scan'}
N_CLASSES = {'Drive&Act': 8, 'IKEA-ASM': 6}


def predictions(dataset, probes, seed, n_people=5, n_events=24):
    "Two clips a segment; the trained view is easier"
    rng, views = np.random.default_rng(seed), VIEWS[dataset]
    classes = [f'action_{i}' for i in range(N_CLASSES[dataset])]
    table = pd.DataFrame(
        dict(segment=f'{e} {v}', clip=c, event=f'e{e}', view=v, split='test')
        | {CLUSTER[dataset]: f'p{e % n_people}', 'label': classes[(e // 2) % len(classes)]}
        for e in range(n_events)
        for v in views
        for c in range(2)
    )
    table.attrs = dict(
        cluster=CLUSTER[dataset], trained_view=next(iter(views)), view_names=views, classes=classes
    )
    truth = np.eye(len(classes))[pd.Categorical(table.label, classes).codes]
    strength = np.where(table.view == next(iter(views)), 1.5, 0.5)[:, None]
    logits = rng.normal(size=(len(probes), len(table), len(classes))) + truth * strength
    return Predictions(table, logits.astype(np.float32), list(probes), classes)


def whole_study():
    "All runs of the paper, made up"
    runs = {}
    for i, dataset in enumerate(VIEWS):
        for j, model in enumerate(tables.TYPES):
            image = tables.TYPES[model] == 'Image'
            probes = [*HEADS, 'ridge', 'step'] if image else ['average_pooling', 'ridge']
            p = predictions(dataset, probes, 10 * i + j)
            runs[dataset, model] = Run(p, f'{model} from nowhere')
    for j, (model, probe) in enumerate([('I3D', 'i3d'), ('Video Swin', 'video_swin')]):
        runs['Drive&Act', model] = Run(predictions('Drive&Act', [probe], 50 + j), 'as made up')
    return runs


RUNS = whole_study()
CLASSES = halves(
    ['action_5'] * 3 + [f'action_{i}' for i in range(8)], ['train'] * 11,
    [f'action_{i}' for i in range(8)],
)  # fmt: skip


class Made(dict):
    "The tables, each made when a test first asks for it"

    def __missing__(self, n):
        self[n] = getattr(tables, f'table{n}')(RUNS, *([CLASSES] if n == 7 else []))
        return self[n]


ALL, NUMBERS = Made(), [2, 3, 4, 5, 6, 7]


# -- rows and columns ----------------------------------------------------------------------------
@pytest.mark.parametrize('n', NUMBERS)
def test_rows_columns_and_paper_cells_are_those_printed(n):
    table, printed = ALL[n], PAPER[PAPER.table == n]
    rows = [r.split(' / ')[-1] for r in printed.row.unique()]
    assert table.lines.name.tolist()[: len(rows) - (n == 5)] == [r for r in rows if r != 'Random']
    assert table.lines.name.iloc[-1] == 'Random'
    wide = table.values('paper')
    there = wide[table.lines.printed.isin(printed.row).to_numpy()]
    np.testing.assert_array_equal(there.to_numpy().ravel(), printed.value)
    assert wide[~table.lines.printed.isin(printed.row).to_numpy()].isna().all(axis=None)


def test_headings_are_those_printed():
    assert ALL[2].columns[2] == ('Drive&Act', 'Top-5 Acc')
    assert ALL[3].columns[4] == ('DinoV2', 'Trained View', 'Mean Acc.')
    assert ALL[4].columns == ALL[3].columns
    assert ALL[5].columns[-1] == ('IKEA-ASM', 'Cross View', 'Top-1 Acc.')
    assert ALL[6].columns[:2] == [('Trained View', 'Acc.'), ('Trained View', 'Mean Acc.')]
    assert ALL[7].columns[-1] == ('Cross View', 'Rare Classes', 'Mean Acc.')


def test_groups_are_those_printed_and_ours_come_after_them():
    groups = list(dict.fromkeys(ALL[3].lines.group))
    assert groups == [
        'Pooling Methods', 'Attention-Based Methods', 'Sequence Modeling Methods',
        'Heads Beyond the Paper', 'Closed Form on Mean CLS', 'Random Baseline',
    ]  # fmt: skip
    assert list(dict.fromkeys(ALL[5].lines.group)) == [
        'CLIP', 'DinoV2', 'Video Foundation Models', 'Random Baseline',
    ]  # fmt: skip
    assert ALL[2].lines.type.tolist()[:4] == ['Image', 'Image', 'Video', 'Video']


# -- our cells -----------------------------------------------------------------------------------
WHERE = {
    'Trained View': 'trained', 'Cross View': 'novel', 'Mean Acc': 'balanced_accuracy',
    'Mean Acc.': 'balanced_accuracy', 'Top-1 Acc': 'top1', 'Top-1 Acc.': 'top1', 'Acc.': 'top1',
    'Top-5 Acc': 'top5', 'Common Classes': 'common', 'Rare Classes': 'rare',
}  # fmt: skip


@cache
def scored(dataset, model, half):
    p = RUNS[dataset, model].predictions
    if half:
        p = tables.only(p, CLASSES['class'][CLASSES.half == half])
    rows = score(p, trained_view=p.table.attrs['trained_view'])
    return rows.set_index(['probe', 'view'])


def looked_up(n, row, column):
    "A cell of ours, computed again from the printed names alone"
    dataset = next((c for c in column if c in VIEWS), 'IKEA-ASM' if n == 4 else 'Drive&Act')
    model = next((c for c in column if c in tables.TYPES), row['model'])
    p = RUNS[dataset, model].predictions
    said = [WHERE.get(c, c) for c in column]
    half = next(iter({'common', 'rare'} & set(said)), None)
    trained = p.table.attrs['trained_view']
    views = {'trained': trained, 'novel': 'novel'} | {v.lower(): k for k, v in NAMES.items()}
    view = next((views[c.lower()] for c in said if c.lower() in views), trained)
    rows = scored(dataset, model, half)
    metric = next(c for c in said if c in ('balanced_accuracy', 'top1', 'top5'))
    return 100 * rows[metric][row['head'] or p.probes[0], view]


@pytest.mark.parametrize('n', NUMBERS)
def test_every_cell_is_the_score_of_its_head_view_and_metric(n):
    table, checked = ALL[n], 0
    wide = table.values('ours')
    rng = np.random.default_rng(n)
    for i in rng.permutation(len(wide) - 1)[:6]:
        for j in rng.permutation(len(table.columns))[:4]:
            expected = looked_up(n, table.lines.iloc[i], table.columns[j])
            assert wide.iloc[i, j] == pytest.approx(expected), (table.lines.name[i], j)
            checked += 1
    assert checked >= 15 and wide.notna().all(axis=None)


def test_max_pooling_of_table_6_is_the_one_with_relu_as_in_the_paper():
    six, seven = (ALL[n].lines.set_index('name')['head'] for n in (6, 7))
    assert six['DinoV2 w Max Pooling'] == 'max_pooling_relu'
    assert seven['DinoV2 w Max Pooling'] == 'max_pooling'
    assert 'Max Pooling + ReLU' in MISPRINTS[6][0] and 'plain' in MISPRINTS[7][0]


@pytest.mark.parametrize('n', NUMBERS)
def test_random_is_one_over_the_classes(n):
    wide = ALL[n].values('ours').iloc[-1]
    for column, value in wide.items():
        size = N_CLASSES['IKEA-ASM' if 'IKEA-ASM' in column or n == 4 else 'Drive&Act']
        assert value == pytest.approx(100 * (5 if 'Top-5 Acc' in column else 1) / size)


def test_table_5_repeats_tables_2_3_and_4():
    five = ALL[5].values('ours').set_axis(ALL[5].lines.printed)
    for n, dataset in ((3, 'Drive&Act'), (4, 'IKEA-ASM')):
        other = ALL[n].values('ours').set_axis(ALL[n].lines.name)
        for model in ('CLIP', 'DinoV2'):
            for row in ('Average Pooling', 'Max Pooling', 'Self-Attention -ALL + Max.'):
                a, b = five[dataset].loc[f'{model} / {row}'], other[model].loc[row]
                np.testing.assert_array_equal(a, b)
    two = ALL[2].values('ours').set_axis(ALL[2].lines.name)
    assert (
        two['IKEA-ASM', 'Top-1 Acc']['X-CLIP']
        == five['IKEA-ASM', 'Trained View'].loc['X-CLIP'].iloc[1]
    )


def test_the_mean_of_table_6s_views_is_table_5s_cell():
    six = ALL[6].values('ours').set_axis(ALL[6].lines.name)
    five = ALL[5].values('ours').set_axis(ALL[5].lines.printed)['Drive&Act', 'Cross View']
    novel = six.drop(columns='Trained View', level=0)
    for row, other in (
        ('X-CLIP', 'X-CLIP'),
        ('DinoV2 w Max Pooling', 'DinoV2 / Max Pooling + ReLU'),
    ):
        for here, there in (('Mean Acc.', 'Mean Acc.'), ('Acc.', 'Top-1 Acc.')):
            assert novel.xs(here, axis=1, level=1).loc[row].mean() == pytest.approx(
                five[there][other]
            )


def test_table_7s_halves_average_to_the_whole_and_name_their_classes():
    seven = ALL[7].values('ours').set_axis(ALL[7].lines.name).loc['X-CLIP']
    whole = ALL[5].values('ours').set_axis(ALL[5].lines.printed).loc['X-CLIP']
    for view in ('Trained View', 'Cross View'):
        of = seven[view].xs('Mean Acc.', level=1)
        assert of.mean() == pytest.approx(whole['Drive&Act', view, 'Mean Acc.'])
    said = ' '.join(ALL[7].notes)
    assert 'Common: action_5, action_0, action_1, action_2' in said and 'Rare: action_3' in said


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(0, 7), min_size=1), st.integers(0, 100))
def test_scores_of_some_classes_are_scikit_learns(kept, seed):
    p = predictions('Drive&Act', ['lstm'], seed).mean_clips()
    half = tables.only(p, [p.classes[i] for i in kept])
    row = score(half, trained_view='inner_mirror').set_index('view').loc['ceiling']
    mine = (p.table.view == 'ceiling').to_numpy()
    y, said = p.labels[mine], p.logits[0, mine].argmax(1)
    assert row.balanced_accuracy == pytest.approx(
        recall_score(y, said, labels=sorted(kept), average='macro')
    )
    assert row.top1 == pytest.approx(accuracy_score(y, said, sample_weight=np.isin(y, list(kept))))


def test_classes_without_a_clip_are_refused():
    with pytest.raises(InputError, match='dancing'):
        tables.only(RUNS['Drive&Act', 'CLIP'].predictions, ['dancing'])


# -- what was not run ----------------------------------------------------------------------------
def test_what_was_not_run_is_empty_and_nothing_else_changes():
    some = {k: r for k, r in RUNS.items() if k != ('Drive&Act', 'CLIP')}
    here, whole = tables.table3(some).values('ours'), ALL[3].values('ours')
    heads = here.index[:-1]
    assert here['CLIP'].loc[heads].isna().all(axis=None)
    pd.testing.assert_frame_equal(here[['DinoV2']], whole[['DinoV2']])
    nothing = tables.table5({})
    assert nothing.cells.ours.isna().all() and nothing.cells.paper.notna().sum() == 120
    assert 'IKEA-ASM: not run, so its cells are empty.' in nothing.notes


def test_a_diverged_head_is_empty_and_said():
    p = predictions('Drive&Act', ['lstm', 'tcn'], 0)
    p.logits[0] = np.nan
    table = tables.table3({('Drive&Act', 'CLIP'): Run(p, 'w')})
    assert table.ours('LSTM').isna().all() and table.ours('TCN')['CLIP'].notna().all()
    assert any('diverged: lstm' in n for n in table.notes)


def test_a_run_keeps_the_test_split_only():
    p = predictions('Drive&Act', ['lstm'], 0)
    p.table.loc[p.table.event == 'e0', 'split'] = 'train'
    kept = Run(p, 'w').predictions
    assert set(kept.table.split) == {'test'} and kept.logits.shape[1] == len(kept.table) < len(
        p.table
    )


# -- intervals and notes -------------------------------------------------------------------------
def test_intervals_are_those_of_the_datasets_clusters():
    for n, dataset, trained in ((3, 'Drive&Act', 'inner_mirror'), (4, 'IKEA-ASM', 'front')):
        boot = bootstrap(RUNS[dataset, 'DinoV2'].predictions, trained_view=trained)
        assert boot.cluster == CLUSTER[dataset] and boot.n_clusters == 5
        row = intervals(boot).set_index(['head', 'view']).loc['tcn', 'novel']
        at = ALL[n].lines.name.tolist().index('TCN')
        for name in ('low', 'high'):
            cell = ALL[n].values(name)['DinoV2', 'Cross View', 'Mean Acc.'].iloc[at]
            assert cell == pytest.approx(100 * row[name])
        assert any(f'resampling 5 {CLUSTER[dataset]}s' in t and 'few' in t for t in ALL[n].notes)


def test_one_person_has_no_interval_and_that_is_said():
    p = predictions('Drive&Act', ['lstm'], 0, n_people=1)
    table = tables.table3({('Drive&Act', 'CLIP'): Run(p, 'w')})
    assert table.cells[['low', 'high']].isna().all(axis=None) and table.cells.ours.notna().any()
    assert any('no marks: one subject' in t for t in table.notes)
    assert '[' not in table.layout().to_html().split('<ul')[0].split('<tbody>')[1]


@pytest.mark.parametrize('n', NUMBERS)
def test_notes_name_weights_and_misprints(n):
    said = ' '.join(ALL[n].notes)
    assert all(m in said for m in MISPRINTS[n])
    assert 'DinoV2 from nowhere' in said and len(ALL[n].notes) == len(set(ALL[n].notes))


def test_a_stand_in_for_a_dataset_is_called_one():
    run = RUNS['Drive&Act', 'CLIP']
    other = Run(run.predictions, 'w', data='the embedded synthetic set (quick)')
    said = ' '.join(tables.table5({('Drive&Act', 'CLIP'): other}).notes)
    assert 'embedded synthetic set (quick), not of Drive&Act' in said
    assert 'reproduce nothing' not in ' '.join(ALL[5].notes)


# -- forms ---------------------------------------------------------------------------------------
class Reader(HTMLParser):
    "Rows of cells as text, with the columns each spans; and which tags are open"

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.bold = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag != 'br':
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            at = dict(attrs)
            self.rows[-1].append(['', int(at.get('colspan', 1)), int(at.get('rowspan', 1))])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {'td', 'th'} & set(self.open):
            self.rows[-1][-1][0] += data
        if 'b' in self.open:
            self.bold.append(data)


@pytest.mark.parametrize('n', NUMBERS)
def test_html_has_every_cell_in_a_straight_grid(n):
    table, page = ALL[n], Reader(ALL[n].layout().to_html())
    assert not page.open
    page.rows = [[[c[0].strip(), *c[1:]] for c in row] for row in page.rows]
    depth = len(table.columns[0])
    width = len(table.columns) + 1 + (n == 2)
    labels = width - len(table.columns)
    for level, row in enumerate(page.rows[:depth]):
        assert sum(c[1] for c in row) == (width if level == 0 else width - labels)
        assert all(c[2] == depth for c in row[:labels]) or level
    body = [r for r in page.rows[depth:] if len(r) > 1]
    assert len(body) == len(table.lines) and all(len(r) == width for r in body)
    for i, row in enumerate(body):
        assert row[0][0] == table.lines.name[i]
        for j, cell in enumerate(row[labels:]):
            assert cell[0].startswith(
                f'{table.values("ours").iloc[i, j]:.1f}'.replace('100.0', '100')
            )
    groups = [r[0][0] for r in page.rows[depth:] if len(r) == 1]
    assert groups == [g for g in dict.fromkeys(table.lines.group) if g]


def test_the_best_beyond_chance_are_bold_and_guessing_is_not():
    table = ALL[5]
    shown = table.values('ours').to_numpy()
    assert not table.marked[-1].any()
    for j in range(len(table.columns)):
        assert table.marked[shown[:-1, j].argmax(), j]  # the best is never worse than itself
    bold = Reader(table.layout().to_html()).bold
    assert len(bold) == table.marked.sum()
    strong = dict(RUNS)
    p = RUNS['Drive&Act', 'DinoV2'].predictions
    logits = p.logits.copy()
    logits[p.probes.index('max_pooling')] += 30 * np.eye(8)[p.labels]
    strong['Drive&Act', 'DinoV2'] = Run(Predictions(p.table, logits, p.probes, p.classes), 'w')
    table = tables.table5(strong)
    at = table.lines.printed.tolist().index('DinoV2 / Max Pooling')
    assert table.marked[at, :4].all()
    assert (table.marked[:, 2:4].sum(0) == 1).all()  # far above all others, of whichever model


def test_names_are_escaped():
    p = predictions('Drive&Act', ['<b>head</b>'], 0)
    text = tables.table3({('Drive&Act', 'CLIP'): Run(p, '<script>')}).layout().to_html()
    assert '<script>' not in text and '<b>head' not in text and '&lt;b&gt;head' in text


@pytest.mark.parametrize('n', NUMBERS)
def test_flat_form_has_paper_ours_and_difference(n):
    shown = tables.flat(ALL[n])
    columns = [re.sub(r'/.*', '', c) for c in shown.columns[2:]]
    assert len(columns) == 3 * len(ALL[n].columns) and columns[0] == ' '.join(ALL[n].columns[0])
    last = shown.columns[-1].removesuffix('diff.')
    gap = shown[f'{last}ours'] - shown[f'{last}paper']
    np.testing.assert_allclose(shown[f'{last}diff.'], gap)
    text = Layout(shown, decimals=2).to_markdown()
    assert len({line.count('|') for line in text.splitlines()}) == 1
    assert '/' not in Layout(shown).to_text().split('\n')[1]


def test_files_are_written_and_read(tmp_path):
    tables.write_table(ALL[4], tmp_path)
    back = pd.read_csv(tmp_path / 'tables/table4.csv')
    np.testing.assert_allclose(
        back['DinoV2 Cross View Top-1 Acc./ours'],
        ALL[4].values('ours')['DinoV2', 'Cross View', 'Top-1 Acc.'],
    )
    assert (tmp_path / 'tables/table4.html').read_text() == ALL[4].layout().to_html()
    assert len(list(tmp_path.rglob('*.*'))) == 2


# -- comparisons ---------------------------------------------------------------------------------
def test_comparisons_are_paired_with_holm_over_all_that_was_run():
    pairs = [
        (('X-CLIP', None), ('DinoV2', 'tcn')),
        (('Video Swin', None), ('DinoV2', 'max_pooling')),
        (('DinoV2', 'gru'), ('DinoV2', 'tcn')),  # there is no such head
    ]
    found = tables.compare(RUNS, 'Drive&Act', pairs)
    assert found[['a', 'b', 'view']].values.tolist() == [
        ['X-CLIP/average_pooling', 'DinoV2/tcn', 'trained'],
        ['Video Swin/video_swin', 'DinoV2/max_pooling', 'trained'],
        ['X-CLIP/average_pooling', 'DinoV2/tcn', 'cross'],
        ['Video Swin/video_swin', 'DinoV2/max_pooling', 'cross'],
    ]
    np.testing.assert_allclose(found.p_holm, holm(found.p))
    both = join({m: RUNS['Drive&Act', m].predictions for m in ('X-CLIP', 'DinoV2')})
    alone = differences(
        bootstrap(both, trained_view='inner_mirror'),
        pairs=[('X-CLIP/average_pooling', 'DinoV2/tcn')], views=['novel'],
    )  # fmt: skip
    assert found.difference[2] == pytest.approx(100 * alone.difference[0])
    assert found.low[2] == pytest.approx(100 * alone.low[0])
    six = ALL[6].values('ours').set_axis(ALL[6].lines.name)['Trained View', 'Mean Acc.']
    swin = found[(found.a == 'Video Swin/video_swin') & (found.view == 'trained')].iloc[0]
    plain = ALL[3].ours('Max Pooling')['DinoV2', 'Trained View', 'Mean Acc.']
    assert swin.difference == pytest.approx(plain - six['Video Swin'])


def test_what_one_run_lost_is_left_out_of_a_comparison_and_counted():
    pair = [(('X-CLIP', None), ('VideoMAE', None))]
    whole = tables.compare(RUNS, 'Drive&Act', pair)
    p = RUNS['Drive&Act', 'X-CLIP'].predictions
    lost = p.table.event.isin(['e3', 'e4', 'e9']) & (p.table['view'] == 'ceiling')
    lost = lost.to_numpy()
    broken = Predictions(p.table[~lost], p.logits[:, ~lost], p.probes, p.classes)
    fewer = tables.compare(RUNS | {('Drive&Act', 'X-CLIP'): Run(broken, 'w')}, 'Drive&Act', pair)
    assert (whole.segments == 24 * 6).all() and (fewer.segments == 24 * 6 - 3).all()
    assert fewer.difference[0] == whole.difference[0] and fewer.difference[1] != whole.difference[1]


def test_words_follow_the_numbers():
    row = dict(a='CLIP/lstm', b='Video Swin/video_swin', view='cross', n_clusters=5)
    found = pd.DataFrame(
        [
            row | dict(difference=-3.21, low=-5.0, high=-1.4, p=0.01, p_holm=0.02),
            row | dict(difference=3.21, low=-5.0, high=11.4, p=0.1, p_holm=0.2),
            row | dict(difference=0.0, low=np.nan, high=np.nan, p=np.nan, p_holm=np.nan),
            row | dict(difference=np.nan, low=np.nan, high=np.nan, p=np.nan, p_holm=np.nan),
        ]
    )
    assert tables.in_words(found).splitlines() == [
        'cross view: Video Swin is 3.2 points below CLIP LSTM [-5.0, -1.4], p = 0.02: a difference.',
        'cross view: Video Swin is 3.2 points above CLIP LSTM [-5.0, +11.4], p = 0.2: not significant.',
        'cross view: Video Swin scores the same as CLIP LSTM; one cluster: nothing is known about '
        'others.',
        'cross view: Video Swin or CLIP LSTM has no score.',
    ]


@dataclass
class MadeUpStudy:
    "What the notebooks need of a study, without videos"

    out: Path
    experiments: list = field(default_factory=lambda: [k for k in RUNS if k[1] in tables.TYPES])
    scale: str = 'quick'

    @property
    def datasets(self):
        return list(dict.fromkeys(d for d, _ in self.experiments))

    @property
    def models(self):
        return list(dict.fromkeys(m for _, m in self.experiments))

    def experiment(self, dataset, model):
        assert (dataset, model) in self.experiments

    def run(self, dataset, model, *, progress):
        failed = pd.DataFrame(dict(path=['gone.mp4'], n_clips=[3]))
        return SimpleNamespace(
            predictions=RUNS[dataset, model].predictions,
            extraction=SimpleNamespace(failed=failed if model == 'CLIP' else failed[:0]),
        )

    def note(self, result):
        return 'weights of nobody'


def test_a_study_is_collected_with_what_must_be_said(tmp_path):
    study = MadeUpStudy(tmp_path)
    runs = tables.collect(study)
    assert list(runs) == study.experiments
    table = tables.table5(runs)
    pd.testing.assert_frame_equal(table.cells, ALL[5].cells)
    said = ' '.join(table.notes)
    assert 'weights of nobody' in said and 'embedded synthetic set (quick)' in said
    assert 'Drive&Act, CLIP: 1 videos could not be read; 3 clips' in said
    assert 'DinoV2: 1 videos' not in said
    assert list(tables.collect(study, ['CLIP'])) == [
        ('Drive&Act', 'CLIP'),
        ('IKEA-ASM', 'CLIP'),
    ]


STUDIES = {
    'whole': None,
    'one backbone, as the embedded set': [('Drive&Act', 'DinoV2')],
    'no video model': [(d, m) for d in VIEWS for m in ('CLIP', 'DinoV2')],
    'video models only': [('Drive&Act', 'X-CLIP'), ('Drive&Act', 'VideoMAE')],
}


@pytest.mark.parametrize('kind', STUDIES)
@pytest.mark.parametrize('n', NUMBERS)
def test_the_page_of_a_table_holds_for_any_study(n, kind, tmp_path, monkeypatch, capsys):
    "Its checks are true and its sentences can be made, whatever was run"

    def quick(p, metric='balanced_accuracy', heads=None):
        view = p.table.attrs['trained_view']
        return bootstrap(p, trained_view=view, metric=metric, heads=heads, n_resamples=50)

    monkeypatch.setattr('fmhar.paper.runs.resampled', quick)
    study = MadeUpStudy(tmp_path, *filter(None, [STUDIES[kind]]))
    networks = {k: r for k, r in RUNS.items() if k[1] in ('I3D', 'Video Swin')}
    clips = networks['Drive&Act', 'I3D'].predictions.table.drop_duplicates('segment')
    segments = pd.concat([clips, clips.assign(split='train')])
    segments.attrs = clips.attrs
    monkeypatch.setattr('fmhar.study.from_environment', lambda: study)
    monkeypatch.setattr('fmhar.paper.runs.collect_networks', lambda *args: networks)
    monkeypatch.setattr('fmhar.experiments.read_segments', lambda exp: segments)
    path = Path(__file__).parent.parent / f'nbs/results/table{n}.ipynb'
    names = {}
    for cell in json.loads(path.read_text())['cells']:
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), names)
    assert names['table'].number == n and (tmp_path / f'tables/table{n}.csv').exists()
    assert 'nan' not in re.sub(r'\bNaN\b', '', capsys.readouterr().out)


def test_a_networks_table_says_how_it_began():
    p = predictions('Drive&Act', ['i3d'], 0)
    recipe = dict(n_frames=8, crop=64, epochs=2, optimizer='adamw')
    network = dict(name='i3d', weights='random(0)', note='classifier new', recipe=recipe)
    p.table.attrs |= dict(network=network, failed=[])
    table = tables.table6({('Drive&Act', 'I3D'): tables.of_network(p)})
    assert any(
        'i3d, first weights random(0), classifier new; 8 frames of 64 px' in n for n in table.notes
    )
    assert table.ours('I3D').notna().all() and table.ours('Video Swin').isna().all()


def test_nothing_to_compare_is_an_empty_table():
    assert tables.compare({}, 'Drive&Act', [(('CLIP', 'lstm'), ('CLIP', 'tcn'))]).empty


def test_printed_tables_are_all_there():
    assert sorted(PRINTED) == NUMBERS == sorted(tables.TITLES)
