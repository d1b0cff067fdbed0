"Each fault is planted once and must be seen, and nothing else"

from pathlib import Path

import pandas as pd
import pytest
from numbered import write_video

from fmhar.datasets.checks import check, summary
from fmhar.datasets.drive_act import load_drive_act
from fmhar.datasets.segments import as_segments, fill_in
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


def test_silent_on_a_sound_set(sound):
    assert check(sound, progress=False).empty and summary(check(sound, progress=False)).empty


def test_silent_on_the_synthetic_set(tmp_path):
    few = CLASSES[:4]
    config = SyntheticConfig.tiny(classes=few, chunks_per_subject=len(few), size=(64, 64))
    write_synthetic(tmp_path, config, workers=1, progress=False)
    findings = check(load_drive_act(tmp_path), progress=False)
    assert findings.empty, findings.to_string()
