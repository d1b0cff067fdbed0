"Views of training segments: which frames and crops, their keys, and a dataset that encodes them"

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import write_video
from tiny_set import read_tiny_set, write_tiny_set

from fmhar.backbones.load import load_backbone
from fmhar.datasets.segments import as_segments
from fmhar.datasets.video import RandomCrop, Transform, sweep_crops
from fmhar.errors import InputError, VideoError
from fmhar.experiments.description import Experiment
from fmhar.experiments.rows import run_name
from fmhar.features.dataset import FeatureDataset
from fmhar.features.extraction import extract, plan
from fmhar.features.keys import clip_keys
from fmhar.features.online import OnlineDataset
from fmhar.features.options import Augmentation, Clips, Reading, Tokens
from fmhar.features.store import FeatureStore
from fmhar.trainer.recipe import epoch_clips

STILL = dict(reading=Reading(workers=0), progress=False)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_tiny_set(root)
    return root


@pytest.fixture(scope='module')
def segments(data):
    table = read_tiny_set(data)
    kept = table[(table.view != 'top') & (table.start < 90)]
    kept.attrs = table.attrs
    return kept


@pytest.fixture(scope='module')
def backbone(data):
    return load_backbone(data / 'encoder', n_frames=4)


def views(n, **how):
    return Clips(test=1, augmentation=Augmentation(views=n, **how))


# Keys of before

SEGMENTS = [
    ('front', 's1', 'a', 0, 90, 'open', 'train', 30.0),
    ('front', 's1', 'b', 90, 180, 'close', 'val', 30.0),
    ('side', 's2', 'a', 0, 45, 'open', 'test', 15.0),
]
BEFORE = {  # written by the version before augmentation
    'plain': '975ab20325def8136614 8249d313204b5855a6d4 a4b0235f57720507aebe e89d883f21d365952c25 '
    'a5f267fb4517efc946d2 e881980bc5b1171f1b97 b72822c672d8c0cc54b9',
    'three crops': '3c0766a627fbdd6930f9 3d319c778ae482eac664 ee85e63e19d673b46367 '
    'a6bd470614ce45ffadf8 c4210842427970578f0c 21771508aec2d5957fdc bb4ffe2a94d557a7e596 '
    '4225cf4f39ff4b562de7',
    'torchcodec': '79e567cae0e57734f5bb 099ad2002c54d738f53e 38184ea5001ad4d43b05',
}


@pytest.fixture
def before(tmp_path):
    "Segments of a file of known content, and keys as `clip_keys` gives them"
    (tmp_path / 'a.mp4').write_bytes(b'frames')
    (tmp_path / 'notes').mkdir()
    table = pd.DataFrame(
        SEGMENTS, columns='view subject event start end label split fps'.split()
    ).assign(path=str(tmp_path / 'a.mp4'))
    table.attrs['classes'] = ['open', 'close']
    encoder = SimpleNamespace(identity=dict(name='encoder', weights='abc', size=28))

    def keys(clips, decoder='pyav', table=table):
        reading = Reading(decoder, 'content')
        return clip_keys(clips.choose(table, 4), encoder, reading, tmp_path / 'notes')

    return table, keys


def test_keys_of_clips_without_augmentation_are_those_of_before(before, monkeypatch):
    table, keys = before
    assert ' '.join(keys(Clips(augmentation=None))) == BEFORE['plain']
    wide = Clips(test=1, train=2, crops=3, seed=1, augmentation=None)
    assert ' '.join(keys(wide)) == BEFORE['three crops']
    strided = Clips(test=1, stride=0.2, augmentation=None)
    assert ' '.join(keys(strided, 'torchcodec')) == BEFORE['torchcodec']
    assert keys(Clips())[8:] == BEFORE['plain'].split()[1:]  # test clips are not augmented


def test_runs_without_augmentation_keep_their_folder(before):
    table, keys = before
    clips = Clips(augmentation=None).choose(table, 4).assign(key=keys(Clips(augmentation=None)))
    assert run_name(Experiment(root='/data', augmentation='none'), clips) == '716dc4d4dca5'
    options = dict(n_train_clips=2, fusions=('lstm',), token_pool=2)
    other = Experiment(root='/data', augmentation='none', **options)
    assert run_name(other, clips) == '6720c29a7c0a'
    assert run_name(Experiment(root='/data'), clips) != '716dc4d4dca5'


def test_a_column_crop_that_is_no_rectangle_is_refused(before):
    table, keys = before
    mine = table.assign(crop=['first', 'left half', 'middle'])
    names = dict(dataset='mine', classes=sorted(set(mine.label)), trained_view=mine['view'].iloc[0])
    with pytest.raises(InputError, match='x y width height'):
        as_segments(mine, **names)


# Views


def test_views_are_fresh_frames_and_crops_in_any_order(segments):
    few = views(6).choose(segments, 4)
    train = few[few.split == 'train']
    assert train.groupby('segment').crop.nunique().eq(6).all()
    assert set(few.crop[few.split == 'test']) == {'centre'}
    turned = views(6).choose(segments[::-1], 4).set_index(['segment', 'clip']).sort_index()
    pd.testing.assert_frame_equal(turned, few.set_index(['segment', 'clip']).sort_index())
    other = Clips(seed=1, augmentation=Augmentation(views=6)).choose(segments, 4)
    assert not set(other.crop[other.split == 'train']) & set(train.crop)


@settings(deadline=None)
@given(
    st.integers(8, 2000), st.integers(8, 2000), st.floats(0.05, 1), st.floats(0.05, 1),
    st.floats(0.3, 3), st.floats(0.3, 3), st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_a_crop_lies_in_its_picture_and_is_known_by_name(width, height, a, b, r, s, draw):
    area, ratio = sorted([round(a, 4), round(b, 4)]), sorted([round(r, 4), round(s, 4)])
    crop = RandomCrop(tuple(area), tuple(ratio), f'{draw:016x}')
    left, top, w, h, mirrored = crop.box(width, height)
    assert 0 <= left and 0 <= top and 0 < w and 0 < h and not mirrored
    assert left + w <= width and top + h <= height
    assert RandomCrop.read(str(crop)) == crop


def test_crops_are_as_torchvision_draws_them():
    from torchvision.transforms import RandomResizedCrop

    picture, draws = torch.zeros(3, 180, 240), 3000
    torch.manual_seed(0)
    theirs = [
        RandomResizedCrop.get_params(picture, (0.4, 1.0), (3 / 4, 4 / 3)) for _ in range(draws)
    ]
    ours = [RandomCrop((0.4, 1), (0.75, 1.3333), f'{i:x}').box(240, 180) for i in range(draws)]
    theirs = np.array([(left, top, w, h) for top, left, h, w in theirs], float)
    ours = np.array([box[:4] for box in ours], float)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=2.5)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=2.5)


def test_all_crops_of_a_frame_come_from_one_decoded_picture(tmp_path):
    write_video(tmp_path / 'v.mkv', 12, g=4)
    crops = [str(RandomCrop((0.4, 1), (0.75, 1.3333), f'{i:x}')) for i in range(3)]
    wanted = [(f, c) for f in (2, 7) for c in ['centre', *crops]]
    t = Transform(32, 28)
    together = dict(sweep_crops(tmp_path / 'v.mkv', wanted, t))
    assert list(together) == sorted(wanted) and len(together) == 8
    for each in wanted:
        ((_, alone),) = sweep_crops(tmp_path / 'v.mkv', [each], t)
        assert alone.shape == (3, 28, 28)
        np.testing.assert_array_equal(together[each], alone)


def test_mirrored_is_the_mirror_image(tmp_path):
    write_video(tmp_path / 'v.mkv', 2, g=1)
    name = next(
        RandomCrop((0.5, 1), (1, 1), f'{i:x}', flip=True)
        for i in range(99)
        if RandomCrop((0.5, 1), (1, 1), f'{i:x}', flip=True).box(64, 64)[4]
    )
    plain = RandomCrop(name.area, name.ratio, name.draw)
    assert name.box(64, 64)[:4] == plain.box(64, 64)[:4]
    pair = [str(name), str(plain)]
    got = dict(sweep_crops(tmp_path / 'v.mkv', [(1, c) for c in pair], Transform(28, 28)))
    np.testing.assert_array_equal(got[1, pair[0]], got[1, pair[1]][..., ::-1])


def test_stored_views_are_the_features_of_their_crops(segments, backbone, tmp_path):
    store = FeatureStore(tmp_path)
    got = extract(segments, backbone, store, clips=views(2), tokens=True, **STILL)
    assert plan(segments, backbone, store, clips=views(2), tokens=True).frames == 0
    for row in got.clips.iloc[[0, 1, -1]].itertuples():
        wanted = [(f, row.crop) for f in row.frames]
        frames = np.stack([x for _, x in sweep_crops(row.path, wanted, backbone.transform)])
        direct = backbone.encode(torch.from_numpy(frames)[None])
        np.testing.assert_allclose(store.cls([row.key])[0], direct.cls[0], atol=0.02)
        np.testing.assert_allclose(store.tokens([row.key])[0], direct.tokens[0], atol=0.02)


def test_more_views_compute_only_the_new_ones(segments, backbone, tmp_path):
    store = FeatureStore(tmp_path)
    two = extract(segments, backbone, store, clips=views(2), **STILL)
    four = extract(segments, backbone, store, clips=views(4), **STILL)
    assert four.counts['stored'] == len(two.clips) and set(two.clips.key) < set(four.clips.key)


# Which view in which epoch


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 99))
def test_k_epochs_show_all_k_views(counts, seed):
    segments = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    for k in set(counts):
        for begin in (0, 3 * k):
            shown = [epoch_clips(segments, seed, begin + e) for e in range(k)]
            for of_epoch in shown:
                assert sorted(segments[of_epoch]) == list(range(len(counts)))
            mine = [c for c in np.concatenate(shown) if counts[segments[c]] == k]
            assert len(mine) == len(set(mine)) == k * counts.count(k)


def test_one_view_is_shown_as_before():
    "The order of the segments is that of versions without views"
    before = [np.random.default_rng([7, e]).permutation(50) for e in range(3)]
    for e, order in enumerate(before):
        np.testing.assert_array_equal(epoch_clips(np.arange(50), 7, e), order)


# Online


@pytest.mark.parametrize('tokens', [None, Tokens(2)])
def test_online_views_are_those_that_would_be_stored(segments, backbone, tmp_path, tokens):
    store = FeatureStore(tmp_path)
    got = extract(segments, backbone, store, clips=views(3), tokens=tokens, **STILL)
    train = got.clips[got.clips.split == 'train']
    stored = FeatureDataset(store, train, tokens=tokens is not None)
    how = dict(clips=views(3, online=True), tokens=tokens, reading=Reading(workers=2))
    online = OnlineDataset(segments, backbone, **how)
    assert len(online) == len(stored) and (online.labels == stored.labels).all()
    assert (online.segments == stored.segments).all()
    rows = [5, 0, 5, len(online) - 1]
    ours, theirs = online.batch(rows), stored.batch(rows)
    np.testing.assert_array_equal(ours.cls, theirs.cls)
    if tokens:
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_online_names_a_broken_video(data, backbone):
    table = read_tiny_set(data)
    cut = table[table.view == 'top']
    cut.attrs = table.attrs
    online = OnlineDataset(cut, backbone, clips=views(1, online=True))
    with pytest.raises(VideoError, match='top.mkv'):
        online.batch([len(online) - 1])


def test_online_stores_nothing(segments, backbone, tmp_path):
    store = FeatureStore(tmp_path)
    with pytest.raises(InputError, match='stores nothing'):
        extract(segments, backbone, store, clips=views(9, online=True), **STILL)
    ahead = plan(segments, backbone, store, clips=views(9, online=True))
    kept = plan(segments, backbone, store, clips=views(9))
    assert ahead.frames == kept.frames and ahead.bytes < kept.bytes / 9


# Settings


@pytest.mark.parametrize(
    'text',
    [
        'views=6',
        'online',
        'views=3 area=centre',
        'area=0.3,1 ratio=3/4,4/3 flip',
        'views=2 flip=no',
    ],
)
def test_settings_read_back_as_written(text):
    read = Augmentation.read(text)
    assert Augmentation.read(str(read)) == read
    exp = Experiment(root='x', augmentation=text)
    assert exp == Experiment(root='x', augmentation=read) == replace(exp, seed=0)


@pytest.mark.parametrize(
    'text', ['views=0', 'views=-1', 'area=0,1', 'area=1,0.5', 'area=0.5', 'area=0.5,2', 'ratio=a,b',
             'ratio=1/0,1', 'flip=maybe', 'mirror', '']
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(text):
    if text:
        with pytest.raises(InputError):
            Augmentation.read(text)
    else:
        assert Augmentation.read(text) == Augmentation()


def test_online_has_a_view_for_each_epoch():
    exp = Experiment(root='x', augmentation='online')
    assert exp.clips.augmentation.views == exp.recipe.epochs == 60
    with pytest.raises(InputError, match='views=2'):
        Experiment(root='x', n_train_clips=2)
