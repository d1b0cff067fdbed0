"The arithmetic of frame numbers, held against exact fractions"

from fractions import Fraction
from math import floor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmhar.datasets.clips import CROPS, even_frames, make_clips, random_frames, strided_frames
from fmhar.errors import InputError

starts = st.integers(0, 10**6)
lengths = st.integers(1, 10**5)
frames_of_clip = st.integers(1, 64)


@given(starts, lengths, frames_of_clip, st.integers(1, 10))
def test_even_frames_are_the_exact_points(start, length, n, n_clips):
    clips = even_frames(start, start + length, n, n_clips=n_clips)
    assert clips.shape == (n_clips, n) and clips.dtype == np.int64
    for k, clip in enumerate(clips):
        points = [(i + (k + Fraction(1, 2)) / n_clips) * length / n for i in range(n)]
        assert clip.tolist() == [start + floor(p) for p in points]
    in_time = clips.T.ravel()  # the clips interleave
    assert start <= in_time[0] and in_time[-1] < start + length and np.all(np.diff(in_time) >= 0)


@given(starts, lengths, frames_of_clip, st.integers(0, 2**32))
def test_random_frames_take_one_of_each_bin(start, length, n, seed):
    frames = random_frames(start, start + length, n, rng=np.random.default_rng(seed))
    assert frames.shape == (n,) and frames.dtype == np.int64
    for i, frame in enumerate(frames.tolist()):
        assert floor(Fraction(i * length, n)) <= frame - start <= Fraction((i + 1) * length, n)
    assert np.all(np.diff(frames) >= 0) and frames[-1] < start + length


class Highest:
    "A generator that always draws the largest number below 1"

    def random(self, n):
        return np.full(n, np.nextafter(1, 0))


@given(starts, lengths, frames_of_clip)
def test_rounding_never_leaves_the_segment(start, length, n):
    assert random_frames(start, start + length, n, rng=Highest()).max() < start + length


@given(starts, st.integers(1, 5000), st.sampled_from([2, 3, 4, 8]), frames_of_clip)
def test_a_slower_camera_is_sampled_at_the_same_moments(start, length, ratio, n):
    "Exact for even frames; for random ones up to the rounding of a float, which may cost one frame"
    fast, slow = (start * ratio, (start + length) * ratio), (start, start + length)
    assert np.array_equal(even_frames(*fast, n) // ratio, even_frames(*slow, n))
    drawn = [random_frames(*span, n, rng=np.random.default_rng(5)) for span in (fast, slow)]
    assert np.abs(drawn[0] // ratio - drawn[1]).max() <= (ratio not in (2, 4, 8))


@given(starts, lengths, st.fractions(Fraction(1, 4), 4), frames_of_clip)
def test_any_two_rates_agree_within_a_frame(start, length, ratio, n):
    "A re-timed segment is rounded at both ends, so moments agree to a frame or two"
    other = floor(start * ratio), max(floor((start + length) * ratio), floor(start * ratio) + 1)
    ours, theirs = even_frames(start, start + length, n), even_frames(*other, n)
    assert np.abs(ours * float(ratio) - theirs).max() <= 2 + float(ratio)


@pytest.mark.parametrize('end', [3, 2])
def test_a_segment_without_frames(end):
    for rule in (even_frames, lambda s, e: random_frames(s, e, rng=np.random.default_rng(0))):
        with pytest.raises(InputError, match='start < end'):
            rule(3, end)


def segments(n_events=6):
    "Two views, the second at half the rate; attrs as a reader leaves them"
    rows = [
        (
            view,
            f'e{e}',
            100 * e // slow,
            (100 * e + 60 + e) // slow,
            ('train', 'val', 'test')[e % 3],
        )
        for view, slow in (('front', 1), ('side', 2))
        for e in range(n_events)
    ]
    df = pd.DataFrame(rows, columns=['view', 'event', 'start', 'end', 'split'])
    df.index += 7  # labels that are not positions
    df.attrs = {'classes': ['a', 'b'], 'trained_view': 'front'}
    return df


def by_name(clips):
    return {(r.segment, r.view, r[-2]): r.frames for r in clips.itertuples()}


def test_clips_of_each_split():
    df = segments()
    clips = make_clips(df, n_clips=3, n_train_clips=2)
    counts = clips.groupby(['split', 'segment'], sort=False).size()
    assert set(counts['train']) == {2} and set(counts['test']) == set(counts['val']) == {3}
    assert clips.attrs == df.attrs
    for r in clips.itertuples():
        assert list(r.frames) == sorted(r.frames) and all(isinstance(f, int) for f in r.frames)
        assert df.start[r.segment] <= r.frames[0] and r.frames[-1] < df.end[r.segment]
        assert (df.event[r.segment], df.view[r.segment]) == (r.event, r.view)
    test = clips[(clips.segment == 9)]
    assert np.array_equal(list(test.frames), even_frames(200, 262))


def test_rows_in_any_order_and_any_share_give_the_same_clips():
    df, whole = segments(), by_name(make_clips(segments()))
    turned = df.sample(frac=1, random_state=0)
    assert by_name(make_clips(turned)) == whole
    shares = [make_clips(df.iloc[i::3]) for i in range(3)]  # three workers
    assert by_name(pd.concat(shares)) == whole


def test_seeds_and_clips_differ_views_do_not():
    clips = make_clips(segments(), n_train_clips=2)
    train = clips[(clips.split == 'train') & (clips.event == 'e0')]
    front, side = (train[train.view == v].frames.tolist() for v in ('front', 'side'))
    assert front[0] != front[1]
    assert [tuple(f // 2 for f in clip) for clip in front] == side
    assert make_clips(segments(), seed=1).frames[0] != clips.frames[0]
    e3 = clips[(clips.event == 'e3') & (clips.view == 'front')].frames.iloc[0]
    assert tuple(f - 300 for f in e3) != front[0]


def test_random_clips_cover_the_segment():
    "Every frame has its chance: over many clips each of the frames of a segment is drawn"
    df = segments(1)
    seen = {f for clip in make_clips(df, n_train_clips=60).frames[:60] for f in clip}
    assert seen == set(range(60))


@given(
    starts,
    st.integers(1, 5000),
    frames_of_clip,
    st.fractions(Fraction(1, 8), 40),
    st.integers(1, 5),
)
def test_a_stride_is_kept_inside_the_segment(start, length, n, step, n_clips):
    places = (np.arange(n_clips) + 0.5) / n_clips
    clips = strided_frames(start, start + length, n, step=float(step), places=places)
    assert clips.shape == (n_clips, n) and clips.dtype == np.int64
    assert clips.min() >= start and clips.max() < start + length
    if (n - 1) * step <= length - 1 and step >= 1:  # a clip that fits repeats nothing
        assert all(len({*clip}) == n for clip in clips.tolist())
    inside = clips < start + length - 1
    gaps = np.diff(clips, axis=1)[inside[:, :-1] & inside[:, 1:]]
    assert np.all(np.diff(clips, axis=1) >= 0)
    assert all(floor(step) <= gap <= floor(step) + 1 for gap in gaps)


def test_a_stride_in_seconds_is_the_same_moment_in_every_view():
    df = segments().assign(fps=lambda d: d.view.map({'front': 30.0, 'side': 15.0}), path='a.mp4')
    clips = make_clips(df, n_frames=5, stride=0.2)
    for event in clips.event.unique():
        of = clips[clips.event == event].groupby('view').frames.apply(list)
        for front, side in zip(of['front'], of['side']):
            assert max(abs(f / 2 - s) for f, s in zip(front, side)) <= 1.5
    with pytest.raises(InputError, match='frame rate'):
        make_clips(df.assign(fps=float('nan')), stride=0.2)


def test_strided_clips_of_a_chunk_repeat_no_edge_frames():
    "90 frames, 16 at a distance of 4: of clips around fixed middles 60 % repeated the edges"
    df = segments(3).assign(start=0, end=90, fps=30.0)
    clips = make_clips(df, stride=4 / 30)
    assert all(len(set(frames)) == 16 for frames in clips.frames)
    test = clips[clips.split == 'test'].frames.iloc[:3].tolist()
    assert [f[0] for f in test] == [4, 14, 24] and test[-1][-1] == 84


def test_a_rectangle_of_a_mosaic_travels_to_the_clips():
    df = segments().assign(crop=lambda d: d.view.map({'front': '0 0 320 240', 'side': ''}))
    crops = make_clips(df).groupby('view').crop.unique().map(list).to_dict()
    assert crops == {'front': ['0 0 320 240'], 'side': ['centre']}
    assert 'crop' not in make_clips(df.assign(crop=''))
    three = make_clips(df, n_crops=3)
    assert set(three.crop[three.view == 'front']) == {
        '0 0 320 240 centre', *(f'0 0 320 240 {c}' for c in CROPS)
    }  # fmt: skip


def test_a_stride_is_more_than_nothing():
    for stride in (0, -1):
        with pytest.raises(InputError, match='more than 0'):
            make_clips(segments().assign(fps=30.0), stride=stride)


def test_no_training_clips_are_none():
    assert set(make_clips(segments(), n_train_clips=0).split) == {'val', 'test'}


@pytest.mark.parametrize('stride', [None, 0.2])
def test_three_crops_repeat_the_test_clips(stride):
    df = segments().assign(fps=30.0)
    plain = make_clips(df, n_train_clips=2, stride=stride)
    three = make_clips(df, n_train_clips=2, stride=stride, n_crops=3)
    assert three.attrs == plain.attrs and list(three.columns) == [*plain.columns, 'crop']
    train, test = three[three.split == 'train'], three[three.split != 'train']
    assert set(train.crop) == {'centre'}
    assert list(test.crop) == list(CROPS) * (plain.split != 'train').sum()
    kept = three[three.crop.isin(['centre', 'first'])].drop(columns='crop')
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), plain)
    for _, same in test.groupby(['segment', 'clip']):
        assert same.frames.nunique() == 1 and list(same.crop) == list(CROPS)
