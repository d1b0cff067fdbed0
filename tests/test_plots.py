"Figures show what they are given, and a view looks the same in all of them"

import numpy as np
import pandas as pd
import pytest

from fmhar.analysis.view_invariance import neighbour_shares, view_probe
from fmhar.errors import InputError
from fmhar.evaluation.predictions import Predictions
from fmhar.evaluation.scores import random_baseline, score
from fmhar.paper import figures as plots
from fmhar.paper import maps
from fmhar.paper.drawing import group_styles
from fmhar.paper.printed import THIRTEEN, VIEW_COLOURS
from fmhar.statistics import bootstrap, intervals

VIEWS = list(VIEW_COLOURS)[:6]
NAMES = dict(zip(VIEWS, 'front-top right-top back face-view left-top kinect-color'.split()))
CLASSES = [f'action_{i}' for i in range(12)]
TRAINED = 'inner_mirror'
HEADS = list(THIRTEEN)


def predictions(heads=HEADS, views=VIEWS, n_events=40, seed=0, people=1):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        dict(segment=f'{e} {v}', event=f'e{e}', view=v, subject=f'vp{e % people}', split='test')
        | dict(label=CLASSES[e % 12])
        for e in range(n_events)
        for v in views
    )
    logits = rng.normal(size=(len(heads), len(table), 12)).astype(np.float32)
    return Predictions(table, logits, list(heads), CLASSES)


def rows_of(p):
    return pd.concat([f(p, trained_view=TRAINED) for f in (score, random_baseline)])


def texts(fig):
    "All text of a figure"
    fig.canvas.draw()
    return ' '.join(t.get_text() for t in fig.findobj(lambda a: hasattr(a, 'get_text')))


def test_a_view_has_one_colour_in_every_company():
    for views in (VIEWS, VIEWS[2:4], [*VIEWS, 'drone'], list(reversed(VIEWS))):
        colours = plots.view_colours(views)
        assert all(colours[v] == VIEW_COLOURS[v] for v in views if v != 'drone')
        assert len(set(colours.values())) == len(views)


def test_figure_4_draws_each_score_at_its_place():
    rows = rows_of(predictions())
    fig = plots.figure4(rows, trained_view=TRAINED, view_names=NAMES, footnote='weights: none')
    ax = fig.axes[0]
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines}
    of = rows.set_index(['probe', 'view']).balanced_accuracy
    for view in VIEWS:
        label = NAMES[view] + (' (trained)' if view == TRAINED else '')
        np.testing.assert_allclose(drawn[label], [100 * of[h, view] for h in HEADS])
    np.testing.assert_allclose(drawn['mean of novel views'], [100 * of[h, 'novel'] for h in HEADS])
    said = texts(fig)
    assert all(plots.printed(h) in said for h in HEADS)
    assert 'balanced accuracy (%)' in said and 'random (8.3 %)' in said and 'weights: none' in said


def test_figure_4_of_one_head_and_one_view():
    p = predictions(['lstm'], views=[TRAINED])
    assert 'LSTM' in texts(plots.figure4(rows_of(p), trained_view=TRAINED))


def test_figure_3_says_what_the_vectors_are_sorted_by():
    rng = np.random.default_rng(0)
    table = pd.DataFrame([(v, c) for v in VIEWS for c in CLASSES], columns=['view', 'label'])
    place = rng.normal(size=(6, 80))[pd.factorize(table.view)[0]]
    x = {'max_pooling': 3 * place + rng.normal(size=(72, 80))}
    fig = plots.figure3(x, table, view_names=NAMES, methods=('t-SNE',), footnote='weights: none')
    by_view = maps.silhouette(x['max_pooling'], table.view)
    assert by_view > 0.4
    said = texts(fig)
    assert f't-SNE by view: silhouette {by_view:+.2f}' in said and 'by class' in said
    assert all(n in said for n in NAMES.values()) and 'action 11' in said and 'weights' in said
    points = sum(len(c.get_offsets()) for c in fig.axes[0].collections)
    assert points == len(table)


def test_maps_are_the_same_each_time():
    x = np.random.default_rng(0).normal(size=(30, 8))
    one, two = (plots.plane_maps(x, methods=('t-SNE',), seed=0)['t-SNE'] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (30, 2) and np.isfinite(one).all()


@pytest.mark.slow
def test_umap_maps_few_points():
    x = np.random.default_rng(0).normal(size=(12, 8))
    one, two = (plots.plane_maps(x, methods=('UMAP',), seed=0)['UMAP'] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(one).all()


def test_classes_are_told_apart_by_colour_and_marker():
    styles = group_styles([f'c{i}' for i in range(34)])
    assert len(set(styles.values())) == 34


def test_example_events_are_right_and_wrong():
    p = predictions(['lstm'], n_events=12)
    truth = np.eye(12)[p.labels]
    p.logits[0] = 3 * truth  # all right
    wrong = (p.table.event == 'e7').to_numpy() & (p.table.view != TRAINED).to_numpy()
    p.logits[0, wrong] = 5 * np.roll(truth, 1, axis=1)[wrong]
    best, worst = plots.example_events(p, 'lstm', trained_view=TRAINED)
    assert worst == 'e7' and best != 'e7'
    frames = {v: np.zeros((3, 8, 8), np.uint8) for v in VIEWS}
    examples = [plots.example(p, 'lstm', e, frames) for e in (best, worst)]
    assert examples[1].predictions == {v: CLASSES[7 if v == TRAINED else 8] for v in VIEWS}
    said = texts(plots.figure5(examples, trained_view=TRAINED, view_names=NAMES))
    assert said.count('✓') == 7 and said.count('✗') == 5
    assert 'truth: action 7' in said and 'front-top (trained)' in said


def test_an_event_that_a_view_missed_is_no_example():
    p = predictions(['lstm'], n_events=4)
    kept = ~((p.table.event == 'e0') & (p.table.view == 'ceiling')).to_numpy()
    p = Predictions(p.table[kept], p.logits[:, kept], p.probes, CLASSES)
    assert 'e0' not in plots.example_events(p, 'lstm', trained_view=TRAINED)


def test_figures_are_written_whole(tmp_path):
    fig = plots.figure4(rows_of(predictions(['lstm'])), trained_view=TRAINED)
    plots.save_figure(fig, tmp_path / 'new' / 'figure4.png')
    assert (tmp_path / 'new' / 'figure4.png').read_bytes()[:4] == b'\x89PNG'
    assert (tmp_path / 'new' / 'figure4.pdf').read_bytes()[:4] == b'%PDF'
    assert len(list((tmp_path / 'new').iterdir())) == 2


def sure_of(p):
    return intervals(bootstrap(p, trained_view=TRAINED, cluster='subject', n_resamples=200))


def test_figure_4_draws_each_interval_at_its_place():
    p = predictions(people=5)
    sure = sure_of(p)
    fig = plots.figure4(rows_of(p), trained_view=TRAINED, intervals=sure)
    for view, lines in zip(VIEWS, fig.axes[0].collections):
        of = sure[sure['view'] == view].set_index('head').loc[HEADS]
        drawn = np.array([[line[0, 0], line[1, 0]] for line in lines.get_segments()])
        np.testing.assert_allclose(drawn, 100 * of[['low', 'high']])
    assert '5 ' in texts(fig) and 'resampling' in texts(fig)


def test_one_person_gives_no_intervals_and_the_figure_says_so():
    p = predictions(['max_pooling', 'lstm'])
    for draw in (plots.figure4, plots.figure4_bars):
        said = texts(draw(rows_of(p), trained_view=TRAINED, intervals=sure_of(p)))
        assert 'No intervals: one subject' in said


def test_bars_are_the_scores_of_table_5s_heads():
    rows = rows_of(predictions())
    fig = plots.figure4_bars(rows, trained_view=TRAINED, view_names=NAMES)
    of = rows.set_index(['probe', 'view']).balanced_accuracy
    assert len(fig.axes[0].containers) == 6
    for view, bars in zip(VIEWS, fig.axes[0].containers):
        drawn = [bar.get_height() for bar in bars]
        np.testing.assert_allclose(drawn, [100 * of[h, view] for h in plots.TABLE_5])
    assert 'Max Pooling +\nReLU' in texts(fig) and 'LSTM' not in texts(fig)
    own = rows[rows.probe.isin(['lstm', 'random'])]
    assert 'LSTM' in texts(plots.figure4_bars(own, trained_view=TRAINED, heads=['lstm']))


def test_a_view_has_its_colour_in_every_figure():
    p = predictions(['max_pooling'])
    rows, x = rows_of(p), np.random.default_rng(0).normal(size=(len(p.table), 4))
    dots = plots.figure4(rows, trained_view=TRAINED).axes[0]
    bars = plots.figure4_bars(rows, trained_view=TRAINED).axes[0].containers
    maps = plots.figure3({'max_pooling': x}, p.table, methods=('t-SNE',)).axes[0].collections
    for i, view in enumerate(VIEWS):
        rgb = tuple(int(VIEW_COLOURS[view][k : k + 2], 16) / 255 for k in (1, 3, 5))
        assert dots.lines[i].get_color() == VIEW_COLOURS[view]
        assert bars[i].patches[0].get_facecolor()[:3] == pytest.approx(rgb)
        j = list(dict.fromkeys(p.table.view)).index(view)
        assert tuple(maps[j].get_facecolor()[0, :3]) == pytest.approx(rgb)


def test_figure_3s_numbers_are_those_of_the_measures():
    rng = np.random.default_rng(0)
    table = predictions(['lstm'], people=5).table
    x = rng.normal(size=(len(table), 8)) + 2 * rng.normal(size=(6, 8))[pd.factorize(table.view)[0]]
    numbers = plots.figure3_numbers({'lstm': x}, table)
    near = neighbour_shares(x, table)
    assert numbers.view_probe.lstm == view_probe(x, table) > 0.5
    assert numbers.view_probe.random == pytest.approx(1 / 6)
    for name in ('other_view', 'same_class', 'same_class_elsewhere'):
        assert numbers.loc['lstm', name] == near.share[name]
        assert numbers.loc['random', name] == near.chance[name]
    said = texts(plots.figure3({'lstm': x}, table, methods=('t-SNE',)))
    share, guess = near.loc['other_view', ['share', 'chance']]
    assert f'neighbours of other views {100 * share:.0f} % ({100 * guess:.0f} %)' in said
    assert f'view told linearly {100 * view_probe(x, table):.0f} % (17 %)' in said


def test_a_head_that_diverged_is_left_out_of_figure_3_by_name():
    p = predictions(['lstm'])
    x = np.random.default_rng(0).normal(size=(len(p.table), 4))
    both = {'lstm': x, 'tcn': np.full_like(x, np.nan)}
    fig = plots.figure3(both, p.table, methods=('t-SNE',))
    assert len(fig.axes) == 2 and 'Training of TCN diverged' in texts(fig)
    with pytest.raises(InputError, match='finite'):
        plots.figure3({'tcn': both['tcn']}, p.table)


def test_a_figure_shows_itself_without_pyplot():
    fig = plots.figure4(rows_of(predictions(['lstm'])), trained_view=TRAINED)
    assert fig._repr_png_()[:4] == b'\x89PNG'


def test_a_figure_is_drawn_into_axes_of_ones_own():
    p = predictions(['lstm'])
    fig = plots.Figure(figsize=(9, 3))
    for ax, draw in zip(fig.subplots(1, 2), (plots.figure4, plots.figure4_bars)):
        options = {} if draw is plots.figure4 else dict(heads=['lstm'])
        assert draw(rows_of(p), trained_view=TRAINED, ax=ax, **options) is ax
    assert len(fig.axes) == 2 and not fig.legends


def test_confusions_are_shares_of_the_true_classes():
    p = predictions(['lstm'])
    p.logits[0] = np.eye(12)[3]  # one answer to everything
    shares = plots.confusion_table(p, 'lstm', 'ceiling')
    assert (shares[CLASSES[3]] == 100).all() and shares.to_numpy().sum() == 1200
    assert 'most frequent answer: action 3, 100 %' in texts(
        plots.figure_confusion(p, 'lstm', 'ceiling')
    )
