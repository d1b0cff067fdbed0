"Readers of the cross-view sets: what names say, what ties views, splits that share nobody"

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fmhar.datasets
from fmhar.datasets.impact import common_order, tie_views
from fmhar.datasets.ms_tcn import runs_of
from fmhar.datasets.names import name_pattern
from fmhar.datasets.splits import official_split, seconds_to_frames, split_persons
from fmhar.errors import InputError

words = st.lists(st.sampled_from('abc'), max_size=7)


@given(words, words)
def test_a_common_order_is_a_longest_common_subsequence(a, b):
    found = common_order(a, b)
    assert all(a[i] == b[j] for j, i in found.items())
    pairs = sorted(found.items())
    assert all(i < k for (_, i), (_, k) in zip(pairs, pairs[1:]))
    length = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            here = length[i, j] + 1 if x == y else max(length[i, j + 1], length[i + 1, j])
            length[i + 1, j + 1] = here
    assert len(found) == length[-1, -1]


@given(words)
def test_runs_give_the_labels_back(labels):
    runs = runs_of(labels)
    again = [r.label for r in runs.itertuples() for _ in range(r.start, r.end)]
    assert again == labels
    assert not any(x == y for x, y in zip(runs.label, runs.label[1:]))


@given(st.floats(0, 1e4), st.floats(0, 100), st.sampled_from([25.0, 29.97, 30.0, float('nan')]))
def test_seconds_hold_at_least_one_frame_and_cover_the_stretch(start, length, fps):
    first, last = seconds_to_frames([start], [start + length], np.array([fps]))
    rate = 30 if np.isnan(fps) else fps
    assert last[0] > first[0] >= 0
    assert first[0] / rate <= start + 1e-6
    assert last[0] / rate >= start + length - 1e-6


@given(st.integers(3, 30), st.floats(0, 0.3), st.floats(0.05, 0.6), st.integers(0, 5))
def test_no_person_is_on_two_sides(n, val, test, seed):
    rows = pd.DataFrame({'subject': [f's{i % n}' for i in range(3 * n)]})
    try:
        split = split_persons(rows, val=val, test=test, seed=seed)
    except InputError:
        return
    assert (split.groupby(rows.subject).nunique() == 1).all()
    assert {'train', 'test'} <= set(split)


def test_a_name_in_two_lists_of_a_split_is_refused():
    with pytest.raises(InputError, match='two lists'):
        official_split(pd.Series(['a']), dict(train=['a'], test=['a']))


@pytest.mark.parametrize(
    'pattern, name, field, value',
    [
        ('{label}_p{subject}_c{view}.mp4', 'Make_coffee_p02_c7.mp4', 'label', 'Make_coffee'),
        ('{view}/{label}/{event}.avi', 'cam1/open box/003.avi', 'label', 'open box'),
        ('S{setup}C{view}P{subject}R{}A{label}.avi', 'S001C002P003R001A050.avi', 'subject', '003'),
    ],
)
def test_patterns_read_names(pattern, name, field, value):
    assert name_pattern(pattern).fullmatch(name)[field] == value


def test_views_without_a_partner_keep_an_event_of_their_own():
    rows = pd.DataFrame(
        dict(session='s', view=['front', 'front', 'ego'], label=['a', 'b', 'c'], start=[0, 5, 0])
    )
    assert tie_views(rows).nunique() == 3


NEW = """ms_tcn activitynet pattern lerobot impact ego_exo4d smarthome tsu n_ucla pku_mmd inhard taco h2o
breakfast"""


@pytest.mark.parametrize('name', [*NEW.split(), 'drive_act', 'ikea_asm', 'ntu', 'assembly101'])
def test_a_dataset_is_known_by_name(name):
    assert callable(fmhar.datasets.READERS[name])
