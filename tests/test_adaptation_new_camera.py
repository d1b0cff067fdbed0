"A video nobody annotated is answered by the head that a run left, and by nothing else"

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from numbered import write_video

from fmhar.adaptation.new_camera import (
    FILE,
    Adapter,
    adapt_camera,
    find_adapter,
    load_adapter,
    make_adapter,
    save_adapter,
    windows,
)
from fmhar.backbones.load import load_backbone, quietly
from fmhar.datasets.segments import as_segments
from fmhar.errors import InputError
from fmhar.features.dataset import FeatureDataset
from fmhar.features.extraction import extract
from fmhar.features.options import Reading
from fmhar.features.store import FeatureStore

N = 120  # frames of a video


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Two people on the old camera, a video of a new one, and a tiny encoder with random weights"
    root = tmp_path_factory.mktemp('new_camera')
    torch.manual_seed(0)
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with quietly():
        config = tf.Dinov2Config(**small, image_size=28, patch_size=14)
        tf.Dinov2Model(config).save_pretrained(root / 'encoder')
    tf.BitImageProcessor(size=32, crop_size=28).save_pretrained(root / 'encoder')
    rows = []
    for who in 'ab':
        write_video(root / f'{who}.mkv', N, g=20)
        for i in range(12):
            rows.append((str(root / f'{who}.mkv'), 'front', who, f'{who}{i}', 10 * i, 10 * i + 10))
    columns = 'path view subject event start end'.split()
    rows = pd.DataFrame(rows, columns=columns).assign(split='train', fps=30.0)
    rows['label'] = np.tile(['close', 'open'], 12)
    segments = as_segments(rows, dataset='tiny', classes=['close', 'open'], trained_view='front')
    write_video(root / 'new.mkv', N, g=20)
    encoder = dict(weights=None, size=28, n_frames=4, precision='fp32', seed=0)
    backbone = load_backbone(str(root / 'encoder'), **encoder)
    store = FeatureStore(root / 'run' / 'features')
    got = extract(segments, backbone, store, reading=Reading(workers=0), progress=False)
    adapter = make_adapter(FeatureDataset(store, got.clips), backbone, **encoder)
    adapter.encoder['name'] = str(root / 'encoder')
    save_adapter(adapter, root / 'run' / 'runs' / 'abc' / FILE)
    return root, adapter


def test_windows_follow_each_other_and_are_as_long_as_the_training_segments(made):
    root, adapter = made
    assert adapter.seconds == pytest.approx(10 / 30)
    table = windows([root / 'new.mkv'], adapter.seconds)
    assert table.start.tolist() == list(range(0, N, 10)) and (table.end - table.start == 10).all()
    assert windows([root / 'new.mkv'], 100).end.tolist() == [N]


def test_a_video_gets_a_csv_and_a_picture(made, tmp_path):
    root, _ = made
    out = tmp_path / 'out'
    answers = adapt_camera(root / 'run', root / 'new.mkv', out=out, workers=0, progress=False)
    kept = pd.read_csv(out / 'predictions.csv')
    assert len(kept) == 12 and set(kept.label) <= {'close', 'open'}
    assert kept.confidence.between(0.5, 1).all()
    np.testing.assert_allclose(kept.confidence + kept.second_confidence, 1, atol=1e-3)
    assert (out / 'strip.png').stat().st_size > 5000
    again = adapt_camera(root / 'run', root / 'new.mkv', out=out, workers=0, progress=False)
    pd.testing.assert_frame_equal(answers, again)


def test_a_table_of_clips_serves_as_well_and_one_clip_knows_nothing(made, tmp_path):
    root, _ = made
    table = pd.DataFrame(dict(path=[str(root / 'new.mkv')], start=[5], end=[25]))
    answers = adapt_camera(root / 'run', table=table, out=tmp_path, workers=0, progress=False)
    assert answers[['start', 'end']].values.tolist() == [[5, 25]]


def test_the_file_is_read_back_and_anything_else_is_refused(made, tmp_path):
    root, adapter = made
    kept = load_adapter(find_adapter(root / 'run'))
    np.testing.assert_array_equal(kept.coef, adapter.coef)
    assert isinstance(kept, Adapter) and kept.classes == ['close', 'open']
    (tmp_path / FILE).write_text('no')
    with pytest.raises(InputError, match='Not a head for new cameras'):
        load_adapter(tmp_path / FILE)
    with pytest.raises(InputError, match='--adapt recording'):
        find_adapter(tmp_path / 'nothing')


def test_other_weights_and_missing_or_broken_videos_are_clear_errors(made, tmp_path):
    root, adapter = made
    with pytest.raises(InputError, match='one of the two'):
        adapt_camera(root / 'run', out=tmp_path)
    with pytest.raises(InputError):
        adapt_camera(root / 'run', root / 'gone.mkv', out=tmp_path, progress=False)
    (tmp_path / 'broken.mkv').write_bytes(b'nothing' * 99)
    with pytest.raises(InputError):
        adapt_camera(root / 'run', tmp_path / 'broken.mkv', out=tmp_path, progress=False)
    with pytest.raises(InputError, match='Not a table of clips'):
        adapt_camera(root / 'run', table=pd.DataFrame(dict(path=['a'])), out=tmp_path)
    other = Adapter(**{**adapter.__dict__, 'identity': 'another@123'})
    save_adapter(other, tmp_path / FILE)
    with pytest.raises(InputError, match='other weights'):
        adapt_camera(tmp_path, root / 'new.mkv', out=tmp_path, progress=False)
