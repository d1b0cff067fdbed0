"Drive&Act as users have it on disk; every fault is named with its place"

import subprocess
import sys
import warnings

import pandas as pd
import pytest
from numbered import write_video

from fmhar.datasets.drive_act import DRIVE_ACT_VIEWS, load_drive_act
from fmhar.datasets.pairs import symmetric_pairs
from fmhar.errors import InputError

OFFICIAL = """closing_bottle, closing_door_inside, closing_door_outside, closing_laptop, drinking, eating,
entering_car, exiting_car, fastening_seat_belt, fetching_an_object, interacting_with_phone,
looking_or_moving_around (e.g. searching), opening_backpack, opening_bottle, opening_door_inside,
opening_door_outside, opening_laptop, placing_an_object, preparing_food, pressing_automation_button,
putting_laptop_into_backpack, putting_on_jacket, putting_on_sunglasses, reading_magazine,
reading_newspaper, sitting_still, taking_laptop_from_backpack, taking_off_jacket,
taking_off_sunglasses, talking_on_phone, unfastening_seat_belt, using_multimedia_display,
working_on_laptop, writing""".replace('\n', ' ').split(', ')
EXTRA = ['closing_backpack', 'looking_back_left_shoulder', 'standing_by_the_door']
SUBJECTS = {'train': (1, 2, 3), 'val': (14,), 'test': (5, 11)}
HEADER = 'participant_id,file_id,annotation_id,frame_start,frame_end,activity,chunk_id'


def chunks(view, subjects, labels, extra=(), more=''):
    "Lines of a CSV: every action is cut into a chunk of three seconds and a short one"
    slow = 2 if view == 'kinect_color' else 1
    for subject in subjects:
        for i, label in enumerate([*labels, *extra]):
            for chunk, (start, end) in enumerate([(0, 90), (90, 102)]):
                span = (200 * i + start) // slow, (200 * i + end) // slow
                file_id = f'vp{subject}/run1b_2018-05-29-14-02-47.{DRIVE_ACT_VIEWS[view][1]}'
                yield f'{subject},{file_id},{i},{span[0]},{span[1]},{label}{more},{chunk}'


def drive_act(
    root,
    views=('inner_mirror', 'kinect_color'),
    *,
    place='iccv_activities_3s/activities_3s/{view}',
    videos='{view}',
    labels=OFFICIAL,
    level='midlevel',
    split=0,
):
    "Write annotations for all of `labels`, and videos that are empty files"
    header, more = HEADER, ''
    if level == 'objectlevel':
        header, more = HEADER.replace('chunk_id', 'object,location,chunk_id'), ',bottle,lap'
    for view in views:
        folder = root / place.format(view=view)
        folder.mkdir(parents=True, exist_ok=True)
        for part, subjects in SUBJECTS.items():
            lines = [header, *chunks(view, subjects, labels, more=more)]
            (folder / f'{level}.chunks_90.split_{split}.{part}.csv').write_text('\n'.join(lines))
        everyone = sum(SUBJECTS.values(), ())
        lines = [header, *chunks(view, everyone, labels, EXTRA, more)]
        (folder / f'{level}.chunks_90.csv').write_text('\n'.join(lines))
        for subject in everyone:
            name = f'vp{subject}/run1b_2018-05-29-14-02-47.{DRIVE_ACT_VIEWS[view][1]}.mp4'
            path = root / videos.format(view=view) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def test_official_classes_in_order(tmp_path):
    df = load_drive_act(drive_act(tmp_path))
    assert df.attrs['classes'] == OFFICIAL == sorted(OFFICIAL) and len(OFFICIAL) == 34
    assert len(df) == 34 * 2 * 6 * 2
    assert list(df.columns) == 'path view subject event start end label split fps'.split()
    assert df.attrs['trained_view'] == 'inner_mirror' and df.attrs['cluster'] == 'subject'
    assert df.attrs['view_names'] == {'inner_mirror': 'front-top', 'kinect_color': 'kinect-color'}
    for part, subjects in SUBJECTS.items():
        assert set(df.subject[df.split == part]) == {f'vp{s}' for s in subjects}


def test_events_tie_the_views_together(tmp_path):
    df = load_drive_act(drive_act(tmp_path, DRIVE_ACT_VIEWS))
    assert not df.duplicated(['view', 'event']).any()
    groups = df.groupby('event')
    assert (groups.view.nunique() == 8).all() and (groups.label.nunique() == 1).all()
    moment = df[df.event == 'vp5/run1b_2018-05-29-14-02-47/3/1'].set_index('view')
    assert moment.loc['inner_mirror', ['start', 'end']].tolist() == [690, 702]
    assert moment.loc['kinect_color', ['start', 'end']].tolist() == [345, 351]


def test_extra_classes_only_when_asked(tmp_path):
    df = load_drive_act(drive_act(tmp_path), extra_classes=True)
    assert df.attrs['classes'] == sorted(OFFICIAL + EXTRA)
    assert set(df.split[df.label == EXTRA[0]]) == {'train', 'val', 'test'}
    assert df.groupby('subject').split.nunique().max() == 1


@pytest.mark.parametrize('level', ['midlevel', 'tasklevel', 'objectlevel'])
@pytest.mark.parametrize('split', [0, 1, 2])
def test_levels_and_splits(tmp_path, level, split):
    df = load_drive_act(drive_act(tmp_path, level=level, split=split), level=level, split=split)
    assert (df.attrs['level'], df.attrs['split'], len(df)) == (level, split, 34 * 2 * 6 * 2)
    if level == 'objectlevel':
        assert set(df.object + df.location) == {'bottlelap'}


PLACES = 'iccv_activities_3s/activities_3s/{view}', 'activities_3s/{view}', '{view}'
PLACES += 'iccv_activities_3s/{view}', 'iccv_activities_3s', '.'  # the last two are flat


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('videos', ['{view}', 'data/{view}', 'videos/{view}', '{view}/{view}', '.'])
def test_usual_places(tmp_path, place, videos):
    views = ['inner_mirror'] if '{view}' not in place else ['inner_mirror', 'ceiling']
    df = load_drive_act(drive_act(tmp_path, views, place=place, videos=videos))
    assert df.view.unique().tolist() == views
    assert all(pd.io.common.file_exists(p) for p in df.path.unique())


def test_annotations_apart_from_videos(tmp_path):
    drive_act(tmp_path / 'videos')
    apart = (tmp_path / 'videos/iccv_activities_3s').rename(tmp_path / 'annotations')
    with pytest.raises(InputError, match='annotations='):
        load_drive_act(tmp_path / 'videos')
    assert len(load_drive_act(tmp_path / 'videos', annotations=apart)) == 34 * 2 * 6 * 2


def test_views_by_either_name_in_the_order_asked(tmp_path):
    drive_act(tmp_path, DRIVE_ACT_VIEWS)
    names = ['kinect-color', 'face-view', 'inner_mirror']
    df = load_drive_act(tmp_path, views=names, trained_view='right-top')
    assert df.view.unique().tolist() == ['kinect_color', 'steering_wheel', 'inner_mirror']
    assert df.attrs['trained_view'] == 'a_column_co_driver'
    assert load_drive_act(tmp_path).view.unique().tolist() == list(DRIVE_ACT_VIEWS)


def test_min_frames_counts_in_the_trained_view(tmp_path):
    drive_act(tmp_path)
    for views in (None, ['kinect_color']):  # whose chunks of 45 frames stay
        df = load_drive_act(tmp_path, views=views, min_frames=60)
        assert set(df.end - df.start) == ({45} if views else {90, 45})
    assert len(load_drive_act(tmp_path, min_frames=12)) == 34 * 2 * 6 * 2


def test_frame_rates_come_from_the_files(tmp_path):
    root = drive_act(tmp_path, labels=OFFICIAL[:2])
    for view, rate in (('inner_mirror', 30), ('kinect_color', 15)):
        for path in (root / view).rglob('*.mp4'):
            write_video(path, 3, rate=rate)
    (root / 'inner_mirror/vp14/run1b_2018-05-29-14-02-47.ids_1.mp4').write_text('broken')
    df = load_drive_act(root)
    assert df.groupby('view').fps.unique().map(list).to_dict()['kinect_color'] == [15.0]
    assert df[df.fps.isna()].subject.unique().tolist() == ['vp14']


def test_one_missing_video_stays_in_the_table(tmp_path):
    root = drive_act(tmp_path, videos='data/{view}')
    gone = root / 'data/kinect_color/vp5/run1b_2018-05-29-14-02-47.kinect_color.mp4'
    gone.unlink()
    df = load_drive_act(root)
    assert str(gone) in set(df.path) and len(df) == 34 * 2 * 6 * 2


def test_no_video_of_a_view_is_a_warning_none_at_all_an_error(tmp_path):
    root = drive_act(tmp_path)
    (root / 'kinect_color').rename(root / 'elsewhere')
    with pytest.warns(UserWarning, match='no video of kinect_color'):
        load_drive_act(root)
    (root / 'inner_mirror').rename(root / 'elsewhere2')
    with pytest.raises(InputError) as e:
        load_drive_act(root)
    assert 'No video' in str(e.value) and str(root / 'data/<view>') in str(e.value)


def test_another_cameras_suffix_is_a_warning(tmp_path):
    root = drive_act(tmp_path, ['inner_mirror'])
    csvs = root / 'iccv_activities_3s/activities_3s'
    (csvs / 'inner_mirror').rename(csvs / 'ceiling')
    drive_act(root, ['inner_mirror'])
    with pytest.warns(UserWarning, match='no video of ceiling'), pytest.warns(match='not .ids_3'):
        df = load_drive_act(root)
    assert set(df.view) == {'inner_mirror', 'ceiling'}


def edit(root, change, file='inner_mirror/midlevel.chunks_90.split_0.test.csv'):
    path = root / 'iccv_activities_3s/activities_3s' / file
    path.write_text(change(path.read_text()))
    return path


FAULTS = {
    'a column is left out': (
        lambda s: s.replace('frame_end', 'end'),
        ['Column frame_end is missing', 'participant_id, file_id', 'end'],
    ),
    'a number is none': (lambda s: s.replace(',90,', ',ninety,', 1), ["'ninety'", 'line 2']),
    'a fraction of a frame': (lambda s: s.replace(',90,', ',90.5,', 1), ["'90.5'", 'frame_end']),
    'it ends before it starts': (
        lambda s: s.replace(',90,', ',-1,', 1),
        ['without frames', 'line 2'],
    ),
    'it is empty': (lambda s: '', ['Not a readable table']),
}


@pytest.mark.parametrize('name', FAULTS)
def test_faults_in_a_csv(tmp_path, name):
    change, words = FAULTS[name]
    path = edit(drive_act(tmp_path), change)
    with pytest.raises(InputError) as e:
        load_drive_act(tmp_path)
    assert all(w in str(e.value) for w in words), str(e.value)
    assert path.name in str(e.value)


def test_a_part_is_missing(tmp_path):
    drive_act(tmp_path)
    edit(tmp_path, lambda s: s).unlink()
    with pytest.raises(InputError, match='(?s)not found.*split_0.test.csv'):
        load_drive_act(tmp_path)


def test_every_bad_line_is_named_at_once(tmp_path):
    edit(drive_act(tmp_path), lambda s: s.replace(',90,', ',-1,'))
    with pytest.raises(InputError, match='(?s)2 segments.*split_0.test.csv.*line 2.*line 70'):
        load_drive_act(tmp_path)


def test_an_empty_label_is_no_class(tmp_path):
    edit(drive_act(tmp_path), lambda s: s.replace(',drinking,', ', ,').replace(',eating,', ',,'))
    with pytest.raises(InputError, match='8 segments have no label'):
        load_drive_act(tmp_path)


def test_a_person_is_a_number(tmp_path):
    root = drive_act(tmp_path, ['inner_mirror'])
    edit(root, lambda s: s.replace('\n5,', '\n05,', 3))
    assert set(load_drive_act(root).query("split == 'test'").subject) == {'vp5', 'vp11'}
    edit(root, lambda s: s.replace('\n05,', '\n,', 1))
    with pytest.raises(InputError, match='no participant_id'):
        load_drive_act(root)


def test_what_is_not_needed_may_be_missing(tmp_path):
    root = drive_act(tmp_path, ['inner_mirror', 'ceiling', 'kinect_color'])
    for part in ('train', 'val'):
        edit(root, str, f'ceiling/midlevel.chunks_90.split_0.{part}.csv').unlink()
    with pytest.warns(UserWarning, match='ceiling has no .*val.csv'):
        df = load_drive_act(root)
    assert set(df.split[df.view == 'ceiling']) == {'test'}
    edit(root, str, 'ceiling/midlevel.chunks_90.split_0.test.csv').unlink()
    assert set(load_drive_act(root, views=['kinect_color']).view) == {'kinect_color'}


def test_a_set_without_the_usual_camera_trains_on_its_first(tmp_path):
    root = drive_act(tmp_path, ['a_column_co_driver', 'kinect_color'])
    with pytest.warns(UserWarning, match='a_column_co_driver is the trained view'):
        assert load_drive_act(root).attrs['trained_view'] == 'a_column_co_driver'
    with pytest.raises(InputError, match="Unknown trained view 'inner_mirror'"):
        load_drive_act(root, trained_view='inner_mirror')


def test_the_odd_file_is_the_one_that_is_named(tmp_path):
    edit(drive_act(tmp_path), lambda s: s.replace('.ids_1,20', '.ids_3,20', 1))
    with pytest.warns(UserWarning, match=r'files end in .ids_3, not .ids_1'):
        load_drive_act(tmp_path)


def test_a_path_that_no_system_takes_is_a_missing_video(tmp_path):
    edit(drive_act(tmp_path), lambda s: s.replace('vp5/run1b', 'vp5/' + 'x' * 5000, 1))
    assert load_drive_act(tmp_path).path.str.len().max() > 5000


def test_readers_are_known_without_a_decoder_and_without_torch():
    code = 'import sys, fmhar.datasets as d; assert set(d.READERS) >= {"drive_act", "ikea_asm", "table", '
    code += '"videofolder", "assembly101", "ntu"}; d.overlap, d.make_clips, d.as_segments; '
    code += 'assert not {"av", "torch", "transformers"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_byte_order_mark_and_quotes(tmp_path):
    drive_act(tmp_path)
    edit(tmp_path, lambda s: '\ufeff' + s.replace('drinking', '"drinking"'))
    assert load_drive_act(tmp_path).attrs['classes'] == OFFICIAL


WRONG = {
    'view': (dict(views=['front-left']), 'front-top'),
    'trained view': (dict(trained_view='ceiling'), 'inner_mirror'),  # it has no annotations here
    'level': (dict(level='midlvel'), 'did you mean midlevel'),
    'split': (dict(split=3), '0, 1, 2'),
    'root': (dict(root='nowhere'), 'no such folder'),
    'length': (dict(min_frames=91), 'No segments'),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_options(tmp_path, name):
    options, words = WRONG[name]
    drive_act(tmp_path)
    with pytest.raises(InputError, match=words):
        load_drive_act(**{'root': tmp_path} | options)


def test_nothing_is_said_when_nothing_is_wrong(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_drive_act(drive_act(tmp_path, DRIVE_ACT_VIEWS))


def test_symmetric_pairs_of_drive_act():
    assert symmetric_pairs(OFFICIAL) == [
        ('closing_bottle', 'opening_bottle'),
        ('closing_door_inside', 'opening_door_inside'),
        ('closing_door_outside', 'opening_door_outside'),
        ('closing_laptop', 'opening_laptop'),
        ('entering_car', 'exiting_car'),
        ('fastening_seat_belt', 'unfastening_seat_belt'),
        ('fetching_an_object', 'placing_an_object'),
        ('putting_laptop_into_backpack', 'taking_laptop_from_backpack'),
        ('putting_on_jacket', 'taking_off_jacket'),
        ('putting_on_sunglasses', 'taking_off_sunglasses'),
    ]


@pytest.mark.parametrize(
    'a, b',
    [
        ('attaching_part', 'detaching_part'),
        ('picking_up_box', 'putting_down_box'),
        ('screwing_lid', 'unscrewing_lid'),
        ('pick up  leg', 'lay down leg'),  # IKEA-ASM writes stray blanks
        ('sit down', 'stand up'),
        ('putting_pen_into_case', 'taking_pen_out_of_case'),
    ],
)
def test_symmetric_pairs_by_their_verbs(a, b):
    assert symmetric_pairs(['x', b, a]) == [(b, a)]
    assert symmetric_pairs([a, b + '_cap', 'sitting_still', 'opening']) == []
