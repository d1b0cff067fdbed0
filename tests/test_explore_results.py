"A finished run is opened, explored and drawn without computing or writing anything again"

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fmhar.explore as ex
from fmhar.errors import InputError
from fmhar.experiments.description import Experiment
from fmhar.experiments.running import embed, run
from fmhar.files import write_json
from fmhar.synthetic.film import write_synthetic
from fmhar.synthetic.scripts import SyntheticConfig
from fmhar.trainer.recipe import Recipe


@pytest.fixture(scope='module')
def result(tmp_path_factory):
    root = tmp_path_factory.mktemp('run')
    classes = ('opening_bottle', 'closing_bottle', 'writing')
    write_synthetic(root / 'set', SyntheticConfig.tiny(classes=classes), progress=False)
    exp = Experiment(
        root=str(root / 'set'),
        reader=(('views', ('inner_mirror', 'kinect_color')),),
        backbone='facebook/dinov2-small',
        weights='random',
        size=28,
        precision='fp32',
        n_clips=1,
        fusions=('max_pooling', 'cross_attention_all', 'self_attention_cls_avg'),
        recipe=Recipe(epochs=2, keep='best'),
    )
    done = run(exp, root / 'out', workers=0, progress=False)
    about = dict(name=done.backbone.name, weights=done.backbone.weights, precision='fp32')
    write_json(root / 'out/run.json', dict(settings=exp, backbone=about))
    return done


@pytest.fixture(scope='module')
def out(result):
    return result.folder.parent.parent


def test_a_result_comes_back_as_it_was(result, out):
    opened = ex.load_result(out)
    assert opened.experiment == result.experiment
    np.testing.assert_array_equal(opened.predictions.logits, result.predictions.logits)
    assert opened.history.kept == result.history.kept
    for head in ('max_pooling', 'cross_attention_all'):
        np.testing.assert_allclose(embed(opened, head), embed(result, head), atol=1e-6)
    for a, b in zip(opened.bank.parameters(), result.bank.parameters()):
        assert a.equal(b.cpu())


def test_opening_and_drawing_writes_nothing(out):
    def state():
        return {p: p.stat().st_mtime_ns for p in out.rglob('*')}

    before = state()
    opened = ex.load_result(out)
    ex.confusion_figure(opened)
    ex.map_table(opened, method='PCA')
    ex.attention_table(opened, 'cross_attention_all')
    assert state() == before


def test_a_copied_folder_finds_its_videos(result, out, tmp_path):
    shutil.copytree(out, tmp_path / 'copy')
    root = Path(result.experiment.root)
    gone = root.rename(root.with_name('away'))
    try:
        shutil.copytree(gone, tmp_path / 'copy/set')
        opened = ex.load_result(tmp_path / 'copy')
        assert all(Path(p).is_relative_to(tmp_path) for p in opened.predictions.table.path)
        player = ex.events(opened)
        player.wait()
        assert len(player._kept) == 2
    finally:
        gone.rename(root)


def test_an_unfinished_or_empty_folder_says_what_to_do(out, tmp_path):
    with pytest.raises(InputError, match='No run'):
        ex.load_result(tmp_path)
    (tmp_path / 'runs/x').mkdir(parents=True)
    with pytest.raises(InputError, match='not finished'):
        ex.load_result(tmp_path)
    with pytest.raises(InputError, match='Unknown run'):
        ex.load_result(out, run='nothing')


def test_random_weights_and_rendered_data_are_called_so(out):
    opened = ex.load_result(out)
    assert 'random(0)' in ex.events(opened).info['foot']
    assert 'rendered' in ex.events(opened).info['foot']
    assert 'random(0)' in ex.confusion_figure(opened)._supxlabel.get_text()


def test_a_click_on_a_cell_opens_its_clips(out):
    shown = ex.confusion(
        ex.load_result(out), 'max_pooling', 'kinect-color', second='self_attention_cls_avg'
    )
    matrix = shown.matrices.matrices[0]
    counts = np.array(matrix['counts'])
    i, j = np.argwhere(counts)[0]
    shown.matrices.cell = ['max_pooling', matrix['classes'][i], matrix['classes'][j]]
    assert len(shown.table) == counts[i, j]
    assert shown.player.event in set(shown.table.event)
    assert shown.player.info['label'] == matrix['classes'][i]


def test_a_lasso_gives_its_rows_and_a_click_plays(out):
    shown = ex.map(ex.load_result(out), ['max_pooling', 'cross_attention_all'], method='PCA')
    shown.scatters[1].widget.selection = np.array([0, 3, 4])
    rows = shown.selection()
    assert rows.event.tolist() == shown.source.table.event.iloc[[0, 3, 4]].tolist()
    assert {'x max_pooling', 'y cross_attention_all'} <= set(rows)
    shown.scatters[0].widget.selection = np.array([5])
    assert shown.player.event == shown.source.table.event.iloc[5]


def test_attention_of_a_novel_view_sums_to_one_and_is_what_the_head_uses(out):
    opened = ex.load_result(out)
    table = ex.attention_table(opened, 'self_attention_cls_avg', views=['kinect_color'])
    sums = table.groupby('attention_head').weight.sum()
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    fig = ex.attention_figure(opened, 'cross_attention_all', views=['kinect_color'], n=3)
    assert len(fig.axes) == 3
    with pytest.raises(InputError, match='no attention'):
        ex.attention(opened, 'max_pooling')


def test_attention_weights_reproduce_the_head(out):
    import torch

    from fmhar.explore.looking import head_weights
    from fmhar.fusion.base import make_fusion

    torch.manual_seed(0)
    head, x = make_fusion('cross_attention_all', 128), torch.randn(2, 4, 5, 128)
    z, w = head.prepare(x).flatten(1, 2), head_weights(head, x).flatten(2)
    torch.testing.assert_close(head.attention.read(w, z), head(x), atol=1e-5, rtol=1e-4)


def test_figures_show_themselves_and_take_axes(out):
    from matplotlib import pyplot

    opened = ex.load_result(out)
    makers = ex.confusion_figure, ex.answer_shares_figure, ex.class_figure
    for make in makers:
        assert make(opened)._repr_png_()[:4] == b'\x89PNG'
        fig, ax = pyplot.subplots()
        assert make(opened, ax=ax) is ax
        pyplot.close(fig)


@pytest.mark.parametrize('width', [3.4, 7.0])
def test_a_pdf_has_real_fonts_and_type_of_seven_points_and_more(out, tmp_path, width):
    from matplotlib.text import Text

    opened = ex.load_result(out)
    for i, make in enumerate((ex.confusion_figure, ex.class_figure, ex.answer_shares_figure)):
        fig = make(opened, width=width)
        fig.savefig(tmp_path / f'{i}.pdf')
        assert b'/Type3' not in (tmp_path / f'{i}.pdf').read_bytes()
        texts = [t for t in fig.findobj(Text) if t.get_text().strip() and t.get_visible()]
        assert min(t.get_fontsize() for t in texts) >= 7
        assert fig.get_size_inches()[0] == pytest.approx(width)


def test_two_results_are_compared_event_by_event(out):
    opened = ex.load_result(out)
    table = ex.right_wrong(opened, 'max_pooling', 'max_pooling', other=ex.load_result(out))
    assert set(table.right) <= {'both', 'neither'} and len(table)


def test_shares_are_those_of_a_plain_count(out):
    opened = ex.load_result(out)
    p = opened.predictions.mean_clips()
    kept = (p.table['view'] == 'kinect_color').to_numpy()
    most = pd.Series(p.of('max_pooling')[kept].argmax(1)).value_counts(normalize=True).iloc[0]
    rows = ex.answer_shares(opened).query("head == 'max_pooling' and view == 'kinect_color'")
    assert rows.share.item() == pytest.approx(most)
