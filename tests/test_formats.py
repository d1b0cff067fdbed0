"Tables and lists that people bring"

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import write_video

from fmhar.datasets.clips import make_clips
from fmhar.datasets.formats import (
    _at_rate,
    load_assembly101,
    load_lists,
    load_ntu,
    load_videofolder,
)
from fmhar.datasets.segments import READERS, load_table, read_dataset, reader
from fmhar.errors import InputError
from fmhar.trainer.labels import class_indices


@pytest.fixture
def videos(tmp_path):
    for view in ('front', 'side view'):
        for name, n in (('one', 12), ('two', 20)):
            write_video(tmp_path / view / f'{name}.mp4', n)
    return tmp_path


TABLE = """path,label,view,subject,start,end,clip_id,split,mood
front/one.mp4,"turn, left (e.g. here)",front,ann,0,5,7,train,good
side view/one.mp4,"turn, left (e.g. here)",side,ann,0,5,7,train,good
front/two.mp4,none,front,bob,3,20,8,test,bad
"""


@pytest.mark.parametrize('suffix', ['.csv', '.parquet'])
def test_table(videos, suffix):
    path = videos / f'mine{suffix}'
    (videos / 'mine.csv').write_text(TABLE)
    if suffix == '.parquet':
        pd.read_csv(videos / 'mine.csv', keep_default_na=False).to_parquet(path)
    df = load_table(path)
    assert df.label.tolist() == ['turn, left (e.g. here)'] * 2 + ['none']
    assert (df.attrs['dataset'], df.attrs['cluster'], df.attrs['trained_view']) == (
        'mine',
        'subject',
        'front',
    )
    assert df.event.tolist() == ['7', '7', '8'] and df.mood.tolist() == ['good', 'good', 'bad']
    assert df.path.tolist()[1] == str(videos / 'side view/one.mp4')
    assert df.end.tolist() == [5, 5, 20] and set(df.fps) == {30.0}
    df.to_parquet(videos / 'again.parquet')  # what was read can be written and read
    again = load_table(videos / 'again.parquet', root='/')
    pd.testing.assert_frame_equal(again, df)


def test_table_with_only_what_is_needed(videos):
    (videos / 'a.csv').write_text('path,label,view\nfront/one.mp4,a,front\nfront/two.mp4,b,front\n')
    df = load_table(videos / 'a.csv', classes=['b', 'a', 'c'], dataset='mine')
    assert list(zip(df.start, df.end, df.event, df.split)) == [
        (0, 12, '#0', 'test'),
        (0, 20, '#1', 'test'),
    ]
    assert df.attrs['classes'] == ['b', 'a', 'c'] and df.attrs['cluster'] == 'event'


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: s.replace(',view', ',camera'), 'Column view is missing'),
        (lambda s: s.replace(',0,5,7', ',0,five,7'), 'line 2, column end'),
        (lambda s: s.replace('test', 'later'), 'found:    later'),
        (lambda s: s.replace('3,20', '3,3'), 'hold no frame'),
        (lambda s: s.replace('.mp4', '.mov'), 'No video found'),
        (lambda s: '', 'Not a readable table'),
    ],
)
def test_faults_of_a_table(videos, change, message):
    (videos / 'a.csv').write_text(change(TABLE))
    with pytest.raises(InputError, match=message):
        load_table(videos / 'a.csv')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: s.replace('none', ''), '1 segments have no label'),
        (lambda s: s.replace('none', '   '), '1 segments have no label'),
        (lambda s: s.replace(',side,', ',,'), '1 segments have no view'),
        (lambda s: s.replace(',front,', ', ,', 1), '1 segments have no view'),
        (lambda s: s.replace('3,20', '3,99999999999999999999'), 'up to 2'),
        (lambda s: s.replace('3,20', '3,1e300'), 'up to 2'),
        (lambda s: s.replace('mood', 'crop'), 'x y width height'),
        (lambda s: s.replace('mood', 'offset'), 'no number of frames'),
    ],
)
def test_what_was_taken_in_silence(videos, change, message):
    (videos / 'a.csv').write_text(change(TABLE))
    with pytest.raises(InputError, match=message):
        load_table(videos / 'a.csv')


def test_an_empty_cell_is_left_out(videos):
    (videos / 'a.csv').write_text(TABLE.replace('3,20,8', ',,').replace('test', ''))
    last = load_table(videos / 'a.csv').iloc[-1]
    assert (last.start, last.end, last.event, last.split) == (0, 20, '#2', 'test')


def test_nulls_of_a_parquet_file_are_empty_cells(videos):
    rows = pd.DataFrame(dict(path=['front/one.mp4'] * 2, label=['a', None], view='front'))
    rows.to_parquet(videos / 'a.parquet')
    with pytest.raises(InputError, match='1 segments have no label'):
        load_table(videos / 'a.parquet')
    rows.assign(label=[1, 2], end=[5, None]).to_parquet(videos / 'a.parquet')
    df = load_table(videos / 'a.parquet')
    assert df.label.tolist() == ['1', '2'] and df.end.tolist() == [5, 12]
    assert df.attrs['classes'] == ['1', '2']


def test_names_of_clips_make_room(videos):
    (videos / 'a.csv').write_text(TABLE.replace('mood', 'frames'))
    with pytest.warns(UserWarning, match='frames -> own_frames'):
        df = load_table(videos / 'a.csv')
    assert make_clips(df).own_frames[0] == 'good' and len(make_clips(df).frames[0]) == 16


def test_a_camera_of_a_mosaic_and_one_that_is_late(videos):
    cells = {'good': '0 0 32 64', 'bad': ''}
    text = TABLE.replace('mood', 'crop').replace('good', cells['good']).replace('bad', '')
    (videos / 'a.csv').write_text(text)
    assert make_clips(load_table(videos / 'a.csv')).crop.tolist()[:2] == ['0 0 32 64'] * 2
    (videos / 'a.csv').write_text(
        TABLE.replace('mood', 'offset').replace('good', '7').replace('bad', '0')
    )
    df = load_table(videos / 'a.csv')
    assert df.offset.tolist() == [7, 7, 0] and df.start.tolist() == [0, 0, 3]


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(classe='a'), 'did you mean classes'),
        (dict(label_sets='moods'), 'did you mean mood'),
    ],
)
def test_options_by_name(videos, options, message):
    (videos / 'a.csv').write_text(TABLE)
    assert len(read_dataset('table', videos / 'a.csv', label_sets='mood')) == 3
    with pytest.raises(InputError, match=message):
        read_dataset('table', videos / 'a.csv', **options)


def test_options_as_text(tmp_path):
    for p in (1, 2, 3, 4):
        (tmp_path / f'S018C002P{p:03d}R002A120_rgb.avi').touch()
    df = read_dataset('ntu', tmp_path, val='0.34', seed='3')
    assert set(df.split) == {'train', 'val', 'test'}
    for name, value in dict(val='x', seed='1.5', protocol='setup').items():
        with pytest.raises(InputError):
            read_dataset('ntu', tmp_path, **{name: value})


def test_a_reader_of_ones_own():
    @reader('mine')
    def load_mine(root, *, side='left'):
        return side

    assert read_dataset('mine', '.', side='right') == 'right' and READERS.pop('mine') is load_mine


def test_further_label_sets_reach_the_clips(videos):
    (videos / 'a.csv').write_text(TABLE)
    df = load_table(videos / 'a.csv', label_sets=['mood'])
    assert df.attrs['label_sets'] == {'mood': ['bad', 'good']}
    clips = make_clips(df, n_clips=2)
    assert class_indices(clips, 'mood').tolist() == [1, 1, 0, 0]  # one of training, two of testing
    with pytest.raises(InputError, match='did you mean mood'):
        load_table(videos / 'a.csv', label_sets=['moods'])
    (videos / 'a.csv').write_text(TABLE.replace(',bad', ','))
    with pytest.raises(InputError, match='1 segments have no label'):
        load_table(videos / 'a.csv', label_sets=['mood'])


def test_lists_of_each_community(videos):
    lists = videos / 'l.txt'
    for columns, line, span in (
        ('path label', 'side view/one.mp4 3', (0, 12)),
        ('path n_frames label', 'side view/one.mp4 9 3', (0, 9)),
        ('path start n_frames label', 'side view/one.mp4 4 5 3', (4, 9)),
        ('path start end label', 'side view/one.mp4 4 5 3', (4, 5)),
    ):
        lists.write_text(line + '\n\n')
        df = load_lists({('side', 'test'): lists}, columns=columns)
        assert (df.start[0], df.end[0], df.label[0]) == (*span, '3')
        assert df.path[0] == str(videos / 'side view/one.mp4')


def test_lists_tie_views_and_name_labels(videos):
    for view in ('front', 'side view'):
        (videos / f'{view}.txt').write_text(f'{view}/one.mp4 10\n{view}/two.mp4 2\n')
    df = load_lists(
        {('front', 'train'): videos / 'front.txt', ('side', 'val'): videos / 'side view.txt'},
        event=lambda path: path.rsplit('/', 1)[1],
    )
    assert (df.groupby('event').view.nunique() == 2).all()
    assert df.attrs['classes'] == ['2', '10']
    named = load_lists(
        {('front', 'test'): videos / 'front.txt'}, classes=[f'c{i}' for i in range(11)]
    )
    assert named.label.tolist() == ['c10', 'c2']
    with pytest.raises(InputError, match='found:    10'):
        load_lists({('front', 'test'): videos / 'front.txt'}, classes=['a', 'b', 'c'])


@pytest.mark.parametrize(
    'text, columns, message',
    [
        ('one.mp4', 'path label', 'line 1'),
        ('a 1 1\nb x 5', 'path n_frames label', 'line 2'),
        ('a 1', 'path label n_frames', 'path start end label'),
        (None, 'path label', 'not found'),
    ],
)
def test_faults_of_lists(tmp_path, text, columns, message):
    if text:
        (tmp_path / 'l.txt').write_text(text)
    with pytest.raises(InputError, match=message):
        load_lists({('v', 'test'): tmp_path / 'l.txt'}, columns=columns)


def test_videofolder(tmp_path):
    for name in ('train/sit/a.mp4', 'train/stand/b.mp4', 'test/c.mp4', 'test/d.mp4'):
        write_video(tmp_path / name, 4)
    (tmp_path / 'test/metadata.csv').write_text(
        'file_name,label,view,event,subject,end\nc.mp4,sit,front,1,ann,3\nd.mp4,sit,side,1,ann,4\n'
    )
    df = load_videofolder(tmp_path, view='front')
    assert df.groupby('split').label.apply(list).to_dict() == {
        'test': ['sit', 'sit'],
        'train': ['sit', 'stand'],
    }
    assert df.view.tolist() == ['front', 'front', 'front', 'side'] and df.end.tolist() == [
        4,
        4,
        3,
        4,
    ]
    with pytest.raises(InputError, match='No videofolder'):
        load_videofolder(tmp_path / 'train')


def test_a_videofolder_s_events_never_meet_by_chance(tmp_path):
    "Rows without an event get one of their own, also beside rows that have one"
    for name in ('train/sit/a.mp4', 'test/c.mp4'):
        write_video(tmp_path / name, 4)
    (tmp_path / 'test/metadata.csv').write_text('file_name,label,event\nc.mp4,sit,0\n')
    assert load_videofolder(tmp_path).event.nunique() == 2


def test_assembly101_turns_frame_numbers_to_each_files_rate(tmp_path):
    session = 'nusar-2021_action_both_9011-a01_9011_user_id_2021-02-01_153724'
    for camera, rate in (('C10095_rgb', 60), ('HMC_21176875_mono10bit', 30)):
        write_video(tmp_path / session / f'{camera}.mp4', 80, rate=rate)
    header = 'id,video,start_frame,end_frame,action_cls,verb_cls,noun_cls\n'
    row = '1,{}/{}.mp4,000000004,000000030,pick up wheel,pick up,wheel\n'
    text = header + ''.join(
        row.format(session, c) for c in ('C10095_rgb', 'HMC_21176875_mono10bit')
    )
    for name in ('train', 'validation'):
        (tmp_path / f'{name}.csv').write_text(text)
    df = load_assembly101(tmp_path, annotations=tmp_path)
    test = df[df.split == 'test'].set_index('view')
    assert test.start.to_dict() == {'v1': 8, 'e1': 4} and test.end.to_dict() == {'v1': 60, 'e1': 30}
    assert df.event.nunique() == 1 and set(df.subject) == {'9011'}
    assert df.attrs['label_sets'] == {'verb': ['pick up'], 'noun': ['wheel']}
    verbs = load_assembly101(tmp_path, annotations=tmp_path, label='verb', views=['e1'])
    assert verbs.attrs['classes'] == ['pick up'] and set(verbs.view) == {'e1'}
    assert set(verbs.attrs['label_sets']) == {'action', 'noun'}


@given(st.integers(0, 10**6), st.sampled_from([(60, 1), (30, 1), (60000, 1001), (25, 1), (15, 1)]))
def test_rates_are_exact_fractions(frame, rate):
    num, den = rate
    assert _at_rate(frame, num / den) == frame * num // (30 * den)


def test_ntu(tmp_path):
    for c in (1, 2, 3):
        for p in (1, 2, 3, 103):
            write_video(tmp_path / f'nturgb+d_rgb/S018C{c:03d}P{p:03d}R002A120_rgb.avi', 3, 'mpeg4')
    df = load_ntu(tmp_path, val=0.34)
    assert df.groupby('split').subject.nunique().to_dict() == {'test': 1, 'train': 2, 'val': 1}
    assert set(df.subject[df.split == 'test']) == {'P003'}
    assert (df.groupby('event').view.nunique() == 3).all() and set(df.label) == {'A120'}
    view = load_ntu(tmp_path, protocol='view', val=0, names=[f'action {i}' for i in range(1, 121)])
    assert view.groupby('split').view.unique().map(sorted).to_dict() == {
        'test': ['C001'],
        'train': ['C002', 'C003'],
    }
    assert set(view.label) == {'action 120'} and len(view.attrs['classes']) == 120
    with pytest.raises(InputError, match='subject, view'):
        load_ntu(tmp_path, protocol='setup')
    with pytest.raises(InputError, match='No segments'):
        load_ntu(tmp_path / 'empty')


def test_frame_rate_of_a_missing_file_is_unknown(videos):
    (videos / 'a.csv').write_text(
        'path,label,view\nfront/one.mp4,a,front\nfront/gone.mp4,b,front\n'
    )
    df = load_table(videos / 'a.csv')
    assert np.isnan(df.fps[1]) and df.end[1] == 1
