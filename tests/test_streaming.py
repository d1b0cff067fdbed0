"Streaming gives what storing gives, whatever the threads, the interruptions and the broken files"

import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fmhar.backbones.load import load_backbone
from fmhar.datasets.drive_act import load_drive_act
from fmhar.evaluation import streaming
from fmhar.evaluation.inference import predict
from fmhar.evaluation.streaming import stream
from fmhar.features.dataset import FeatureDataset
from fmhar.features.extraction import extract
from fmhar.features.options import Clips, Reading
from fmhar.features.store import FeatureStore
from fmhar.probe import ProbeBank, sweep
from fmhar.synthetic.film import write_synthetic
from fmhar.synthetic.scripts import SyntheticConfig

HEADS = 'max_pooling', 'self_attention_all_avg', 'cross_attention_all', 'step', 'lstm'
QUIET = dict(clips=Clips(test=2), progress=False)
STILL = dict(reading=Reading(workers=0), **QUIET)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('set') / 'set'
    return write_synthetic(folder, SyntheticConfig.tiny(), progress=False)


@pytest.fixture(scope='module')
def test_views(root):
    segments = load_drive_act(root, views=['inner_mirror', 'ceiling', 'kinect_color'])
    return segments[segments.split == 'test']


@pytest.fixture(scope='module')
def backbone():
    return load_backbone('facebook/dinov2-small', weights='random', size=28, precision='fp32')


@pytest.fixture(scope='module')
def bank(backbone):
    return ProbeBank(sweep(HEADS), backbone.dim, 18)


@pytest.fixture(scope='module')
def whole(test_views, backbone, bank, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    return stream(
        test_views,
        backbone,
        bank,
        FeatureStore(out / 's'),
        out,
        reading=Reading(workers=2),
        **QUIET,
    )


def test_agrees_with_stored_tokens_on_every_clip(whole, test_views, backbone, bank, tmp_path):
    store = FeatureStore(tmp_path)
    got = extract(test_views, backbone, store, tokens=True, **STILL)
    theirs = predict(bank, FeatureDataset(store, got.clips, tokens=True), progress=False)
    assert list(whole.predictions.table.key) == list(theirs.table.key)
    assert len(theirs.table) == 2 * len(test_views)
    assert np.abs(whole.predictions.logits - theirs.logits).max() < 2e-3
    assert (whole.predictions.logits.argmax(2) == theirs.logits.argmax(2)).mean() > 0.99


def test_threads_change_no_bit(whole, test_views, backbone, bank, tmp_path):
    store = FeatureStore(tmp_path / 's')
    again = stream(test_views, backbone, bank, store, tmp_path, **STILL)
    np.testing.assert_array_equal(again.predictions.logits, whole.predictions.logits)
    assert sorted(again.vectors) == sorted(h for h in HEADS if 'all' in h or h == 'step')
    for name, vectors in again.vectors.items():
        np.testing.assert_array_equal(vectors, whole.vectors[name])


def test_goes_on_where_it_was_killed(whole, test_views, backbone, bank, tmp_path, monkeypatch):
    encode = streaming.encode_clips

    def killed(*args, **options):
        for i, item in enumerate(encode(*args, **options)):
            if i == 50:
                raise KeyboardInterrupt
            yield item

    store = FeatureStore(tmp_path / 's')
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(streaming, 'encode_clips', killed)
        m.setattr(streaming, 'SHARD_SECONDS', 0)
        stream(test_views, backbone, bank, store, tmp_path, **STILL)
    parts = list(tmp_path.glob('*.part.safetensors'))
    assert 0 < len(parts) < test_views.path.nunique()
    rest = stream(test_views, backbone, bank, FeatureStore(tmp_path / 's'), tmp_path, **STILL)
    assert 0 < rest.frames < whole.frames
    np.testing.assert_array_equal(rest.predictions.logits, whole.predictions.logits)
    cls = FeatureStore(tmp_path / 's').cls(rest.predictions.table.key)
    assert np.isfinite(cls).all() and len(cls) == len(whole.predictions.table)


def test_other_weights_take_no_answers_of_these(whole, test_views, backbone, tmp_path):
    folder, store = tmp_path / 'parts', FeatureStore(tmp_path / 's')
    banks = [ProbeBank(sweep(['cross_attention_all'], seed=[s]), backbone.dim, 18) for s in (0, 1)]
    few = test_views[test_views.view == 'ceiling']
    first, second = (stream(few, backbone, b, store, folder, **QUIET) for b in banks)
    assert second.frames == first.frames > 0
    assert np.abs(first.predictions.logits - second.predictions.logits).max() > 1e-3


def test_broken_videos_are_named_and_the_rest_is_kept(whole, root, backbone, bank, tmp_path):
    copy = Path(shutil.copytree(root, tmp_path / 'set'))
    segments = load_drive_act(copy, views=['inner_mirror', 'ceiling'])
    test = segments[segments.split == 'test']
    cut, gone = (Path(test.path[test.view == v].iloc[0]) for v in ('ceiling', 'inner_mirror'))
    cut.write_bytes(cut.read_bytes()[:1000])
    gone.unlink()
    args = test, backbone, bank, FeatureStore(tmp_path / 's'), tmp_path / 'parts'
    for _ in range(2):  # the second time from the parts
        got = stream(*args, **QUIET)
        failed = got.failed.set_index('view')
        assert set(failed.index) == {'ceiling', 'inner_mirror'}
        assert str(cut) in failed.message['ceiling'] and failed.path['inner_mirror'] == str(gone)
        assert failed.n_clips.sum() + len(got.predictions.table) == 2 * len(test)


@pytest.mark.parametrize('harm', ['cut', 'flip', 'gone'])
def test_a_damaged_part_is_named_and_computed_again(test_views, backbone, bank, tmp_path, harm):
    few = test_views[test_views.view == 'ceiling']
    args = few, backbone, bank, FeatureStore(tmp_path / 's'), tmp_path / 'parts'
    first = stream(*args, **QUIET)
    part = next((tmp_path / 'parts').iterdir())
    whole = part.read_bytes()
    if harm == 'gone':
        part.unlink()
    else:
        part.write_bytes(whole[:100] if harm == 'cut' else whole[:-1] + bytes([whole[-1] ^ 64]))
    quiet = nullcontext() if harm == 'gone' else pytest.warns(UserWarning, match=part.name)
    with quiet:
        again = stream(*args, **QUIET)
    assert 0 < again.frames <= first.frames
    np.testing.assert_array_equal(again.predictions.logits, first.predictions.logits)


@pytest.mark.parametrize('way', ['link', 'copy'])
def test_two_paths_to_one_file_lose_no_clip(test_views, backbone, bank, tmp_path, way):
    "As links do, and copies where videos are known by their content"
    few = test_views[test_views.view == 'ceiling']
    other = {}
    for i, path in enumerate(few.path.unique()):
        other[path] = str(tmp_path / f'{i}.mp4')
        Path(other[path]).symlink_to(path) if way == 'link' else shutil.copy(path, other[path])
    twice = pd.concat([few, few.assign(path=few.path.map(other), view='twin')], ignore_index=True)
    twice.attrs = few.attrs
    options = QUIET | dict(reading=Reading(identity='content' if way == 'copy' else 'state'))
    store = FeatureStore(tmp_path / 's')
    got = stream(twice, backbone, bank, store, tmp_path / 'parts', **options)
    table, logits = got.predictions.table, got.predictions.logits
    assert len(table) == 2 * len(twice) and not len(got.failed)
    mine = (table['view'] == 'twin').to_numpy()
    np.testing.assert_array_equal(logits[:, mine], logits[:, ~mine])
    assert got.frames == stream(few, backbone, bank, store, tmp_path / 'alone', **QUIET).frames


def test_a_broken_file_is_named_at_both_paths(test_views, backbone, bank, tmp_path):
    one = test_views[test_views.view == 'ceiling'].iloc[:1]
    for name in ('a.mp4', 'b.mp4'):
        (tmp_path / name).write_bytes(Path(one.path.iloc[0]).read_bytes()[:1000])
    rows = [one.assign(path=str(tmp_path / name), view=name[0]) for name in ('a.mp4', 'b.mp4')]
    both = pd.concat(rows, ignore_index=True)
    both.attrs = one.attrs
    store = FeatureStore(tmp_path / 's')
    failed = stream(
        both, backbone, bank, store, tmp_path, **QUIET | dict(reading=Reading(identity='content'))
    ).failed
    assert failed.n_clips.tolist() == [2, 2] and failed.message[0] == failed.message[1]
