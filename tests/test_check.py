"Each fault is planted once and must be seen, and nothing else"

import time
from pathlib import Path

import av
import pandas as pd
import pytest
from numbered import write_video

from fmhar.datasets import checks
from fmhar.datasets.checks import check, check_dataset, summary, verdict
from fmhar.datasets.drive_act import load_drive_act
from fmhar.datasets.segments import as_segments, fill_in
from fmhar.errors import InputError
from fmhar.synthetic.actions import CLASSES
from fmhar.synthetic.film import write_synthetic
from fmhar.synthetic.scripts import SyntheticConfig


@pytest.fixture
def sound(tmp_path):
    "Three recordings with two actions in two views, the second at half the rate"
    rows = []
    for i, split in enumerate(('train', 'val', 'test')):
        for view, rate in (('front', 30), ('side', 15)):
            path = write_video(tmp_path / view / f'{i}.mp4', 2 * rate, rate=rate)
            for k, label in enumerate(('open', 'close')):
                span = dict(start=k * rate, end=(k + 1) * rate, event=f'{i}/{k}')
                more = dict(subject=f'p{i}', environment=f'room{i}', label=label, split=split)
                rows.append(dict(path=path, view=view) | span | more)
    return as_segments(
        fill_in(pd.DataFrame(rows)), dataset='x', classes=['close', 'open'], trained_view='front'
    )


def of_side(df, i=0):
    return (df.view == 'side') & df.path.str.endswith(f'{i}.mp4')


def missing(df):
    Path(df.path[0]).unlink()


def unreadable(df):
    Path(df.path[0]).write_bytes(b'')


def cut(df):
    write_video(Path(df.path[0]), 45)


def cut_off(df):
    "An MP4 with its index in front, of which the last packets did not arrive"
    path = Path(df.path[0])
    data = write_video(path, 60, to={'movflags': 'faststart'}).read_bytes()
    path.write_bytes(data[: len(data) * 8 // 10])


def cut_off_after_the_segments(df):
    path = Path(df.path[0])
    data = write_video(path, 62, to={'movflags': 'faststart'}, g=1, bf=0).read_bytes()
    path.write_bytes(data[:-10])


def other_numbers(df):
    df.loc[of_side(df), ['start', 'end']] *= 2


def longer(df):
    write_video(Path(df.path[of_side(df)].iloc[0]), 60, rate=15)


def other_label(df):
    df.loc[0, 'label'] = 'opne'


def event_gone(df):
    return df.drop(index=df.index[of_side(df)][0])


def event_twice(df):
    df.loc[len(df)] = df.loc[0]


def shared_subject(df):
    df.loc[df.subject == 'p0', 'subject'] = 'p2'


def shared_room(df):
    df.loc[df.environment == 'room1', 'environment'] = 'room2'


def class_gone(df):
    df.loc[df.split == 'test', 'label'] = 'open'


def label_of_a_view(df):
    df.loc[df.index[of_side(df)][0], 'label'] = 'close'


def no_training(df):
    df.loc[df.view == 'front', 'split'] = 'test'


def no_test(df):
    df.loc[df.split == 'test', 'split'] = 'val'


def no_trained_view(df):
    df.attrs['trained_view'] = 'top'


def one_file_twice(df):
    path = Path(df.path[of_side(df)].iloc[0])
    path.unlink()
    path.symlink_to(write_video(path.with_name('else.mp4'), 30, rate=15))
    twin = df.path[of_side(df, 1)].iloc[0]
    Path(twin).unlink()
    Path(twin).symlink_to(path.with_name('else.mp4'))


FAULTS = {  # fault -> findings (kind, segments lost)
    missing: [('missing file', 2)],
    unreadable: [('unreadable file', 2)],
    cut: [('frames past the end', 1)],
    cut_off: [('cut file', 1)],
    cut_off_after_the_segments: [('cut file', 0)],
    other_numbers: [('frames past the end', 1), ('frame numbers of another rate', 0)],
    longer: [('unequal lengths', 0)],
    other_label: [('label that is no class', 1)],
    event_gone: [('event missing in a view', 0)],
    event_twice: [('event twice in a view', 0)],
    shared_subject: [('subject in training and test', 0)],
    shared_room: [('environment in training and test', 0)],
    class_gone: [('class absent from a split', 0)],
    label_of_a_view: [('labels differ between views', 0)],
    one_file_twice: [('one file under two paths', 0)],
    no_trained_view: [('trained view absent', 0)],
    no_test: [('nothing to test on', 0)],
}


@pytest.mark.parametrize('fault', FAULTS, ids=lambda f: f.__name__)
def test_each_fault_is_named(sound, fault):
    spoiled = fault(sound)  # most change the table or the files in place
    findings = check(sound if spoiled is None else spoiled, progress=False)
    if fault in (cut, cut_off):  # a file that ends early is shorter than its twin, too
        findings = findings[findings.kind != 'unequal lengths']
    assert list(zip(findings.kind, findings.lost)) == FAULTS[fault]
    assert summary(findings).lost.sum() == sum(n for _, n in FAULTS[fault])


def test_several_faults_in_one_table(sound, tmp_path):
    for fault in (missing, shared_subject, class_gone):
        fault(sound)
    findings = check(sound, progress=False, workers=1)
    assert len(findings) == 3
    findings.to_csv(tmp_path / 'findings.csv', index=False)
    assert pd.read_csv(tmp_path / 'findings.csv').kind.tolist() == findings.kind.tolist()


def test_what_a_run_would_refuse_is_marked(sound):
    no_training(sound)
    findings = check(sound, progress=False)
    assert findings.kind[findings.stops].tolist() == ['nothing to train on']
    assert verdict(sound, findings).startswith('A run would refuse: nothing to train on')
    no_test(sound)
    assert check(sound, progress=False).stops.sum() == 2


def test_strict_lets_an_overlap_stop_a_run(sound):
    shared_subject(sound)
    assert not check(sound, progress=False).stops.any()
    assert check(sound, progress=False, strict=True).stops.tolist() == [True]


def test_deep_finds_what_packets_do_not_show(sound):
    path = Path(sound.path[of_side(sound)].iloc[0])
    write_video(path, 30, rate=15, g=5, sc_threshold=0)
    with av.open(path) as c:
        hurt = [p for p in c.demux(video=0) if p.size][20]
    data = bytearray(path.read_bytes())
    data[hurt.pos : hurt.pos + hurt.size] = bytes(hurt.size)
    path.write_bytes(data)
    assert check(sound, progress=False).empty
    findings = check(sound, progress=False, deep=True)
    assert list(zip(findings.kind, findings.lost)) == [('damaged frames', 1)]  # the second action


def test_a_camera_that_is_late_has_an_offset(sound):
    longer(sound)
    late = sound.assign(offset=of_side(sound).map({True: 30, False: 0}))
    assert check(late, progress=False).empty


def test_every_row_that_is_no_segment_is_listed_with_the_rest(tmp_path):
    write_video(tmp_path / 'a.mp4', 30)
    lines = ['path,label,view,start,end']
    lines += [f'a.mp4,open,front,{a},{b}' for a, b in [(0, 9), (9, 3), (5, 5), (9, 40)]]
    (tmp_path / 'a.csv').write_text('\n'.join([*lines, 'a.mp4,,front,0,5', 'a.mp4,open, ,0,5']))
    segments, findings = check_dataset('table', tmp_path / 'a.csv', {}, progress=False)
    rows = findings[findings.kind == 'row that is no segment']
    assert len(segments) == 2 and len(rows) == 4 and rows.stops.all()
    assert set(findings.kind) >= {'frames past the end', 'nothing to train on'}
    (tmp_path / 'a.csv').write_text('\n'.join(lines[:1]))
    with pytest.raises(InputError, match='No'):
        check_dataset('table', tmp_path / 'a.csv', {}, progress=False)


def test_a_check_of_many_classes_is_quick():
    "It took classes times rows: 40 s for a tenth of this"
    n, classes = 200_000, [f'c{i}' for i in range(1400)]
    df = pd.DataFrame(
        dict(
            path='a.mp4', view='front', subject='p', event=[f'e{i}' for i in range(n)], start=0, end=9,
            label=[classes[i % 1000] for i in range(n)], split=['train', 'val'][0], fps=30.0,
        )
    )  # fmt: skip
    df.attrs = dict(classes=classes, trained_view='front')
    began = time.process_time()
    assert [f['found'][:16] for f in checks._split(df, {})] == ['train lacks 400:']
    assert time.process_time() - began < 10


def test_silent_on_a_sound_set(sound):
    assert check(sound, progress=False).empty and summary(check(sound, progress=False)).empty


def test_silent_on_the_synthetic_set(tmp_path):
    few = CLASSES[:4]
    config = SyntheticConfig.tiny(classes=few, chunks_per_subject=len(few), size=(64, 64))
    write_synthetic(tmp_path, config, workers=1, progress=False)
    findings = check(load_drive_act(tmp_path), progress=False)
    assert findings.empty, findings.to_string()
