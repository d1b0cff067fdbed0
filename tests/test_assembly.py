"The assembly set: read by IKEA-ASM's reader, reversals to the last bit, nothing shared with the test"

import av
import numpy as np
import pytest

from fmhar.datasets.ikea_asm import ikea_asm_differences, load_ikea_asm
from fmhar.datasets.pairs import symmetric_pairs
from fmhar.errors import InputError
from fmhar.synthetic.actions import ACTIONS, CLASSES, act
from fmhar.synthetic.assembly import ASSEMBLY_CLASSES, RIG, assembly_config, write_assembly
from fmhar.synthetic.objects import OBJECTS
from fmhar.synthetic.people import make_subject


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('set') / 'assembly'
    return write_assembly(folder, assembly_config(tiny=True), workers=1, progress=False)


def test_the_other_set_keeps_its_classes():
    assert len(CLASSES) == 18 and not set(CLASSES) & set(ASSEMBLY_CLASSES)


@pytest.mark.parametrize('name', ASSEMBLY_CLASSES)
def test_all_parts_of_a_workpiece_are_there_in_each_of_its_actions(name):
    for number in (1, 3):  # right- and left-handed
        m = act(name, 30, make_subject(0, number), np.random.default_rng(0))
        assert set(m.parts) == set(OBJECTS[ACTIONS[name].item]((1, 0, 0), (0, 1, 0)))
        arrays = [m.main, m.other, *m.parts.values()]
        assert all(len(a) == 30 and np.isfinite(a).all() for a in arrays)
        turns = np.concatenate([v[..., :3] for v in m.parts.values()])
        same = np.tile(np.eye(3), (len(turns), 1, 1))
        np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), same, atol=1e-9)


@pytest.mark.parametrize('forwards, backwards', symmetric_pairs(list(ASSEMBLY_CLASSES)))
def test_reversals_are_the_same_frames(forwards, backwards):
    s = make_subject(0, 2)
    a, b = (act(n, 25, s, np.random.default_rng(7)) for n in (forwards, backwards))
    assert a.main[::-1].tobytes() == b.main.tobytes()
    assert all((a.parts[k][::-1] == b.parts[k]).all() for k in a.parts)


def test_the_reader_of_ikea_asm_reads_it(root):
    segments = load_ikea_asm(root)
    assert len(ikea_asm_differences(root)) == 0
    assert set(segments.label) == {'NA', *ASSEMBLY_CLASSES}
    assert sorted(segments.view.unique()) == list(RIG)
    assert segments.groupby('view').size().nunique() == 1
    assert segments.attrs['trained_view'] == 'dev2'
    test = segments.split == 'test'
    for column in ('subject', 'environment', 'scan'):
        assert not set(segments[column][test]) & set(segments[column][~test])
    for split in (test, ~test):
        assert {'NA', *ASSEMBLY_CLASSES} == set(segments.label[split])


def test_videos_hold_all_frames(root):
    segments = load_ikea_asm(root)
    for path, rows in segments.groupby('path'):
        with av.open(path) as file:
            stream = file.streams.video[0]
            assert (stream.codec_context.name, int(stream.average_rate)) == ('mpeg4', 25)
            assert sum(1 for _ in file.decode(stream)) == rows.end.max()


def test_a_lost_video_comes_back_with_the_same_bytes(root):
    path = sorted(root.rglob('scan_video.avi'))[0]
    before = path.read_bytes()
    path.unlink()
    write_assembly(root, assembly_config(tiny=True), workers=1, progress=False)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match='other settings'):
        write_assembly(root, assembly_config(tiny=True, seed=1), workers=1, progress=False)
