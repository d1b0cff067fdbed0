"IKEA-ASM from a database, a JSON and index files of the real schema"

import sqlite3
from contextlib import closing

import pytest
from numbered import WHOLE, number, picture, write_video
from PIL import Image

from fmhar.datasets.ikea_asm import ikea_asm_differences, load_ikea_asm
from fmhar.datasets.pairs import symmetric_pairs
from fmhar.datasets.video import sweep
from fmhar.errors import InputError
from fmhar.files import write_json

OFFICIAL = """align leg screw with table thread, align side panel holes with front panel dowels,
attach drawer back panel, attach drawer side panel, attach shelf to table, flip shelf, flip table,
flip table top, insert drawer pin, lay down back panel, lay down bottom panel, lay down front panel,
lay down leg, lay down shelf, lay down side panel, lay down table top, other, pick up back panel,
pick up bottom panel, pick up front panel, pick up leg, pick up pin, pick up shelf, pick up side panel,
pick up table top, position the drawer right side up, push table, push table top, rotate table,
slide bottom of drawer, spin leg, tighten leg""".replace('\n', ' ').split(', ')
SCANS = {  # calibration 1, 6, 9 train; 4, 5, 8 test
    'Lack_TV_Bench/0001_black_table_01_01_2019_08_20_13_48': 'train',
    'Lack_TV_Bench/0002_black_floor_06_02_2019_08_20_13_48': 'train',
    'Kallax_Shelf_Drawer/0003_white_table_09_02_2019_08_21_13_48': 'train',
    'Lack_TV_Bench/0001_oak_table_04_02_2019_08_20_13_48': 'test',
    'Lack_Side_Table/0025_black_table_05_02_2019_08_20_13_48_2': 'test',  # with a suffix
    'Lack_Coffee_Table/0007_white_floor_08_02_2019_08_22_13_48': 'test',
}
SPECIAL = 'Lack_TV_Bench/special_test'
N = 40
# name or None if it is not in the list, start, end as the database has it
ACTIONS = [('pick up leg', 5, 12), ('spin leg', 12, 20), (None, 22, 26), ('flip table', 30, N + 3)]
SCHEMA = """
CREATE TABLE videos (id INTEGER PRIMARY KEY, video_name TEXT, video_path TEXT, furniture TEXT,
  camera TEXT, annotated INTEGER, annotation_time INTEGER, nframes INTEGER);
CREATE TABLE annotations (id INTEGER PRIMARY KEY, video_id INTEGER, atomic_action_id INTEGER,
  action_counter INTEGER, action_description TEXT, object_id INTEGER, object_name TEXT,
  starting_frame INTEGER, ending_frame INTEGER);
CREATE TABLE atomic_actions (id INTEGER PRIMARY KEY, atomic_action TEXT);
CREATE TABLE objects (id INTEGER PRIMARY KEY, object TEXT);"""


def pair(name):
    "Action and object of a class: the one is its place in the list, the other arbitrary"
    return (99, 3) if name is None else (OFFICIAL.index(name) + 1, OFFICIAL.index(name) % 5 + 1)


def write_database(path, actions=ACTIONS):
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA)
        for scan in [*SCANS, SPECIAL]:
            for dev in ('dev1', 'dev2', 'dev3'):
                video = (scan.split('/')[1], f'{scan}/{dev}/images', 'Lack_TV_bnech', dev, 1, 0, N)
                columns = (
                    'video_name, video_path, furniture, camera, annotated, annotation_time, nframes'
                )
                of = db.execute(
                    f'INSERT INTO videos ({columns}) VALUES (?,?,?,?,?,?,?)', video
                ).lastrowid
                for name, start, end in actions:
                    columns = 'video_id, atomic_action_id, object_id, starting_frame, ending_frame'
                    row = (of, *pair(name), start, end)
                    db.execute(f'INSERT INTO annotations ({columns}) VALUES (?,?,?,?,?)', row)
        db.execute(
            "INSERT INTO videos (video_path, camera, annotated) VALUES ('x/y/dev1/images', 'dev1', 0)"
        )
        db.commit()


def write_segments(path):
    "Inclusive last frames; what is not listed is NA"
    segments = [
        ('NA', 0, 4),
        ('pick up leg', 5, 11),
        ('spin leg', 12, 19),
        ('NA', 20, 29),
        ('flip table', 30, 39),
    ]
    annotation = [dict(label=label, segment=[first, last]) for label, first, last in segments]
    subset = {'train': 'training', 'test': 'testing'}
    database = {s: dict(subset=subset[part], annotation=annotation) for s, part in SCANS.items()}
    write_json(path, dict(version='2.0.0', database=database))


def write_indices(folder):
    folder.mkdir(parents=True)
    shuffled = OFFICIAL[::2] + OFFICIAL[1::2]
    lines = dict(
        atomic_action_list=shuffled,
        action_object_relation_list=['{} {}'.format(*pair(name)) for name in shuffled],
        train_cross_env=[s for s, part in SCANS.items() if part == 'train'],
        test_cross_env=[s for s, part in SCANS.items() if part == 'test'] + [SPECIAL],
    )
    for name, of in lines.items():
        (folder / f'{name}.txt').write_text('\n'.join(of) + '\n')


@pytest.fixture
def root(tmp_path):
    write_database(tmp_path / 'ikea_annotation_db_full')
    write_segments(tmp_path / 'gt_segments.json')
    write_indices(tmp_path / 'indexing_files')
    for scan in SCANS:
        for dev in ('dev1', 'dev2', 'dev3'):
            (tmp_path / scan / dev / 'images').mkdir(parents=True)
            (tmp_path / scan / dev / 'images/scan_video.avi').touch()
    return tmp_path


FIRST = next(iter(SCANS))


def spans(df, view='dev2', scan=FIRST):
    rows = df[(df.view == view) & (df.scan == scan)].sort_values('start')
    return list(zip(rows.label, rows.start, rows.end))


EXPECTED = [
    ('NA', 0, 5),
    ('pick up leg', 5, 12),
    ('spin leg', 12, 20),
    ('NA', 20, 30),  # with a compound that is not in the list
    ('flip table', 30, N),  # the end is cut to the video
]


@pytest.mark.parametrize('source', ['database', 'json'])
def test_segments_and_classes(root, source):
    df = load_ikea_asm(root, source=source)
    assert df.attrs['classes'] == ['NA', *sorted(OFFICIAL)] and len(df.attrs['classes']) == 33
    assert df.attrs['view_names'] == {'dev1': 'side', 'dev2': 'front', 'dev3': 'top'}
    assert (df.attrs['trained_view'], df.attrs['cluster']) == ('dev2', 'subject')
    assert all(
        spans(df, view, scan) == EXPECTED for view in df.attrs['view_names'] for scan in SCANS
    )
    assert set(df.scan) == set(SCANS)  # without special_test
    assert (df.groupby('event').view.nunique() == 3).all() and not df.duplicated(
        ['view', 'event']
    ).any()
    without = load_ikea_asm(root, source=source, na=False)
    assert spans(without) == [s for s in EXPECTED if s[0] != 'NA']
    assert without.attrs['classes'] == sorted(OFFICIAL)


def test_last_frame_belongs_to_its_segment(root):
    "The owners' reader takes the inclusive last frame for an exclusive end, and loses it"
    scan = FIRST
    write_video(root / scan / 'dev2/images/scan_video.avi', N, 'mpeg4')
    df = load_ikea_asm(root, source='json', views=['front'], na=False)
    row = df[(df.label == 'flip table') & (df.scan == scan)].iloc[0]
    frames = dict(sweep(row.path, range(row.start, row.end), WHOLE))
    assert [number(f) for f in frames.values()] == list(range(30, N))
    assert row.fps == 30.0


def test_both_sources_agree_and_differences_are_listed(root):
    assert ikea_asm_differences(root).empty
    (root / 'ikea_annotation_db_full').unlink()
    write_database(root / 'ikea_annotation_db_full', [*ACTIONS[:-1], ('other', 18, 21)])  # overlaps
    table = ikea_asm_differences(root)
    one = table[table.scan == FIRST].set_index(['label', 'start', 'end']).only_in
    assert one.to_dict() == {
        ('NA', 20, 30): 'json',
        ('NA', 21, N): 'database',
        ('flip table', 30, N): 'json',
        ('other', 18, 21): 'database',
    }


def test_overlapping_actions_keep_their_own_frames(root):
    (root / 'ikea_annotation_db_full').unlink()
    write_database(root / 'ikea_annotation_db_full', [('spin leg', 0, 30), ('other', 20, N)])
    assert spans(load_ikea_asm(root)) == [('spin leg', 0, 30), ('other', 20, N)]


def test_split_by_environment_with_a_drawn_validation(root):
    df = load_ikea_asm(root, val=0.3, seed=1)
    of = df.drop_duplicates('scan').set_index('scan')
    assert {s for s in SCANS if SCANS[s] == 'test'} == set(of.index[of.split == 'test'])
    assert (of.split == 'val').sum() == 1
    assert of.environment.tolist() == [of.environment[s] for s in of.index]
    assert (
        dict(of.environment)['Kallax_Shelf_Drawer/0003_white_table_09_02_2019_08_21_13_48']
        == 'env5'
    )
    assert not set(of.environment[of.split == 'test']) & set(of.environment[of.split != 'test'])
    again = load_ikea_asm(root, val=0.3, seed=1).drop_duplicates('scan').set_index('scan')
    assert of.split.equals(again.split)
    drawn = {
        tuple(
            load_ikea_asm(root, seed=s, val_by='environment')
            .query("split == 'val'")
            .environment.unique()
        )
        for s in range(8)
    }
    assert len(drawn) > 1 and all(len(d) == 1 for d in drawn)
    assert set(load_ikea_asm(root, val=0).split) == {'train', 'test'}


def test_calibrations_restrict_the_test_only(root):
    df = load_ikea_asm(root, test_calibrations=(4, 5))
    test = set(df.scan[df.split == 'test'])
    assert {s.split('/')[1][:4] for s in test} == {'0001', '0025'} and len(test) == 2
    assert set(df.scan[df.split != 'test']) == {s for s, p in SCANS.items() if p == 'train'}


def test_frame_folders_and_annotations_apart(root, tmp_path):
    scan = FIRST
    images = root / scan / 'dev3/images'
    (images / 'scan_video.avi').unlink()
    for i in range(N):
        Image.fromarray(picture(i)).save(images / f'{i:06d}.jpg')
    apart = root / 'elsewhere/annotations'
    apart.mkdir(parents=True)
    for name in ('ikea_annotation_db_full', 'gt_segments.json', 'indexing_files'):
        (root / name).rename(apart / name)
    df = load_ikea_asm(root, annotations=apart, views=['top', 'dev1'])
    assert df.view.unique().tolist() == ['dev3', 'dev1']
    row = df[(df.scan == scan) & (df.view == 'dev3') & (df.label == 'flip table')].iloc[0]
    assert row.path == str(images)
    assert [number(f) for _, f in sweep(row.path, [row.start, row.end - 1], WHOLE)] == [30, 39]


WRONG = {
    'no index files': (
        lambda r: (r / 'indexing_files/train_cross_env.txt').unlink(),
        {},
        'annotations=',
    ),
    'no database': (
        lambda r: (r / 'ikea_annotation_db_full').unlink(),
        {},
        'ikea_annotation_db_full',
    ),
    'no json': (
        lambda r: (r / 'gt_segments.json').unlink(),
        dict(source='json'),
        'gt_segments.json',
    ),
    'not a database': (
        lambda r: (r / 'ikea_annotation_db_full').write_text('hello, this is text' * 99),
        {},
        'Not the database',
    ),
    'another json': (
        lambda r: write_json(r / 'gt_segments.json', [1]),
        dict(source='json'),
        'Not the segments',
    ),
    'unequal lists': (
        lambda r: (r / 'indexing_files/atomic_action_list.txt').write_text('spin leg\n'),
        {},
        'Not one pair for each class',
    ),
    'view': (lambda r: None, dict(views=['left']), 'front'),
    'source': (lambda r: None, dict(source='sql'), 'database, json'),
    'group': (lambda r: None, dict(val_by='day'), 'environment'),
}


@pytest.mark.parametrize('name', WRONG)
def test_what_is_wrong_is_said(root, name):
    spoil, options, message = WRONG[name]
    spoil(root)
    with pytest.raises(InputError, match=message):
        load_ikea_asm(root, **options)


def test_no_video_at_all(root):
    for scan in SCANS:
        (root / scan.split('/')[0]).rename(root / f'gone_{scan.split("/")[1]}') if (
            root / scan.split('/')[0]
        ).exists() else None
    with pytest.raises(InputError, match='(?s)No video found.*scan_video.avi'):
        load_ikea_asm(root)


def test_symmetric_pairs_of_ikea_asm():
    pairs = symmetric_pairs(['NA', *sorted(OFFICIAL)])
    assert ('lay down leg', 'pick up leg') in pairs and len(pairs) == 7
    assert all(a.replace('lay down', 'pick up') == b for a, b in pairs)
