"Bodies keep their lengths, hands hold what they move, reversals are exact"

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmhar.synthetic.actions import ACTIONS, CLASSES, PAIRS, act
from fmhar.synthetic.objects import OBJECTS, object_meshes
from fmhar.synthetic.people import (
    FOREARM,
    PERSON,
    TINTS,
    UPPER,
    elbow,
    make_subject,
    person_meshes,
    pose_person,
)
from fmhar.synthetic.poses import track

coordinate = st.floats(-0.6, 0.6)


@settings(max_examples=60, deadline=None)
@given(st.tuples(coordinate, coordinate, coordinate), st.floats(0.2, 0.4), st.floats(0.2, 0.4))
def test_elbow_keeps_the_bones(point, upper, forearm):
    wrist = np.array([point])
    if np.linalg.norm(wrist) < 1e-3:
        return
    joint, end = elbow(np.zeros((1, 3)), wrist, upper, forearm, np.array([0.5, -0.3, -1]))
    assert np.linalg.norm(joint) == pytest.approx(upper, abs=1e-6)
    assert np.linalg.norm(end - joint) == pytest.approx(forearm, abs=1e-6)
    if abs(upper - forearm) + 0.01 < np.linalg.norm(wrist) < upper + forearm - 0.01:
        np.testing.assert_allclose(end, wrist, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_track_is_symmetric_in_time(phases):
    t = np.array(phases)
    forwards = track(t, (0, 1), (0.25, 3), (1, -2))
    backwards = track(1 - t, (0, -2), (0.75, 3), (1, 1))
    np.testing.assert_allclose(forwards, backwards, atol=1e-9)


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize('subject', [1, 4])
def test_actions_are_proper_motions(name, subject):
    s = make_subject(0, subject)
    m = act(name, 30, s, np.random.default_rng(subject))
    poses = m.parts | pose_person(s, m.main, m.other)
    assert set(m.parts) == set(OBJECTS[ACTIONS[name].item]((1, 0, 0), (0, 1, 0)))
    assert set(person_meshes(s)) == set(PERSON) == set(poses) - set(m.parts)
    for k, pose in poses.items():
        assert pose.shape == (30, 3, 4) and np.isfinite(pose).all(), k
        turned = pose[..., :3] @ pose[..., :3].transpose(0, 2, 1)
        np.testing.assert_allclose(turned, np.tile(np.eye(3), (30, 1, 1)), atol=1e-6, err_msg=k)
        assert np.linalg.det(pose[..., :3]).min() > 0, f'{k} is mirrored'
    assert max(np.ptp(v[..., 3], axis=0).max() for v in poses.values()) > 0.005  # something moves
    for side in ('right', 'left'):  # arms are never torn
        upper, fore = poses[f'upper_{side}'], poses[f'forearm_{side}']
        np.testing.assert_allclose(
            np.linalg.norm(fore[..., 3] - upper[..., 3], axis=1), UPPER * s.size, atol=1e-6
        )
        wrist = poses[f'palm_{side}'][..., 3]
        np.testing.assert_allclose(
            np.linalg.norm(wrist - fore[..., 3], axis=1), FOREARM * s.size, atol=1e-6
        )


@pytest.mark.parametrize('pair', PAIRS, ids=lambda p: p[0])
def test_partners_are_each_others_reversal(pair):
    s = make_subject(3, 2)
    one, two = (act(name, 37, s, np.random.default_rng(1)) for name in pair)
    assert one.main[::-1].tobytes() == two.main.tobytes()
    assert one.other[::-1].tobytes() == two.other.tobytes()
    for k in one.parts:
        assert one.parts[k][::-1].tobytes() == two.parts[k].tobytes()
    moved = [np.abs(one.parts[k][0] - one.parts[k][-1]).max() for k in one.parts]
    assert max(moved) > 0.02  # it ends otherwise than it begins, so order can be seen


@pytest.mark.parametrize('left_handed', [False, True])
@pytest.mark.parametrize('name', CLASSES)
def test_the_busy_hand_is_at_the_object(name, left_handed):
    s = replace(make_subject(0, 1), left_handed=left_handed)
    m = act(name, 41, s, np.random.default_rng(0))
    meshes = object_meshes(ACTIONS[name].item, TINTS[0], TINTS[1], s)
    for frame in (17, 20, 23):
        things = [
            meshes[k].vertices @ p[frame, :, :3].T + p[frame, :, 3] for k, p in m.parts.items()
        ]
        gap = np.linalg.norm(np.concatenate(things) - m.main[frame, :3], axis=1).min()
        assert gap < (0.15 if name == 'pressing_button' else 0.09)  # a button is left and pressed


def test_left_handed_is_the_mirror_image():
    s = make_subject(0, 1)
    right = act('hammering', 20, replace(s, left_handed=False), np.random.default_rng(0))
    left = act('hammering', 20, replace(s, left_handed=True), np.random.default_rng(0))
    flip = np.array([-1, 1, 1])
    for k in right.parts:
        np.testing.assert_allclose(left.parts[k][..., 3], right.parts[k][..., 3] * flip)
    np.testing.assert_allclose(left.main[:, :3], right.main[:, :3] * flip)


def test_subjects_differ():
    people = [make_subject(0, k) for k in range(1, 16)]
    assert len({s.left_handed for s in people}) == 2
    assert len({s.skin for s in people}) >= 3 and len({s.shirt for s in people}) >= 5
    assert len({s.sleeve for s in people}) >= 3
    assert np.std([s.size for s in people]) > 0.02
    assert make_subject(0, 3) == make_subject(0, 3) != make_subject(1, 3)
