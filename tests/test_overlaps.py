"What training and test share is counted, camera by camera"

import pandas as pd

from fmhar.datasets.formats import load_ntu
from fmhar.datasets.overlaps import overlap
from fmhar.datasets.segments import as_segments


def table(rows):
    "subject, session, view, split -> segments with two events a session"
    rows = [
        dict(path=f'{v}/{s}.mp4', view=v, subject=p, session=s, event=f'{s}/{i}', split=split)
        for p, s, v, split in rows
        for i in (0, 1)
    ]
    rows = pd.DataFrame(rows).assign(start=0, end=9, label='open', fps=30)
    return as_segments(rows, dataset='x', classes=['open'], trained_view='front')


def counted(segments):
    return overlap(segments).set_index(['what', 'view'])


def test_sessions_through_another_camera():
    found = counted(
        table(
            [
                ('ann', 's1', 'front', 'train'),
                ('ann', 's2', 'side', 'train'),
                ('bob', 's3', 'front', 'val'),
                ('ann', 's1', 'side', 'test'),  # seen from the front
                ('ann', 's2', 'side', 'test'),  # seen in the same camera
                ('bob', 's3', 'top', 'test'),  # models are chosen by validation
                ('cem', 's4', 'top', 'test'),
            ]
        )
    )
    assert found.loc[('session', 'all'), ['test', 'shared', 'another_camera', 'validation']].tolist() == [
        4, 2, 1, 1,
    ]  # fmt: skip
    assert found.trained_view['session', 'all'] == 1
    assert found.shared['session', 'side'] == 2 and found.validation['session', 'top'] == 1
    assert found.another_camera['event', 'all'] == 2
    assert found.loc[('person', 'all'), ['test', 'shared', 'validation']].tolist() == [3, 1, 1]
    assert found.examples['person', 'all'] == 'ann'
    assert found.loc[('view', 'all'), ['test', 'shared']].tolist() == [2, 1]
    assert 'room' not in found.index.get_level_values('what')


def test_whether_cross_view_is_tested_is_said():
    rows = [('ann', 's1', 'front', 'train'), ('bob', 's2', 'side', 'test')]
    assert 'Cross-view is tested: no camera of side' in overlap(table(rows)).attrs['cross_view']
    rows += [('ann', 's1', 'side', 'train')]
    assert 'by the protocol, not by the split' in overlap(table(rows)).attrs['cross_view']
    same = [('ann', 's1', 'front', 'train'), ('bob', 's2', 'front', 'test')]
    assert 'is not tested' in overlap(table(same)).attrs['cross_view']


def test_ntu_by_subject_has_every_camera_on_both_sides(tmp_path):
    for c in (1, 2, 3):
        for p in (1, 2, 3):
            (tmp_path / f'S001C{c:03d}P{p:03d}R001A001_rgb.avi').touch()
    by_subject, by_view = (
        counted(load_ntu(tmp_path, val=0, protocol=p)) for p in ('subject', 'view')
    )
    assert by_subject.loc[('view', 'all'), ['test', 'shared']].tolist() == [3, 3]
    assert by_subject.shared['person', 'all'] == by_subject.shared['session', 'all'] == 0
    assert by_view.shared['view', 'all'] == 0
    assert by_view.loc[('session', 'all'), ['test', 'another_camera']].tolist() == [3, 3]


def test_nothing_to_test_shares_nothing():
    found = counted(table([('ann', 's1', 'front', 'train')]))
    assert found.test.sum() == found.shared.sum() == 0
