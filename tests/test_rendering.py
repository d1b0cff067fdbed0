"The z-buffer agrees with brute force; shadows and hidden parts stay where they belong"

import numpy as np
import pytest

from fmhar.synthetic.cameras import TRAINED_VIEW, VIEWS, project_points
from fmhar.synthetic.light import Light
from fmhar.synthetic.meshes import box, capsule, join, lathe, mirrored, move, sheet
from fmhar.synthetic.rendering import Renderer, rasterise

LIGHT = Light(np.float32([0.3, 0.2, 0.93]), *np.float32([0.5, 0.6, 0.1]))
SURFACES = np.full((4, 4), 0.6)


def brute_force(screen, faces, height, width):
    "Winner of each sample by trying all faces, and how clear the decision is"
    y, x = np.mgrid[:height, :width] + 0.5
    best, margin = np.zeros((height, width)), np.full((height, width), np.inf)
    winner = np.full((height, width), -1)
    for n, (i, k, j) in enumerate(faces):
        a, b, c = screen[[i, j, k]].astype(float)
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if area <= 0:
            continue
        u = ((b[0] - x) * (c[1] - y) - (c[0] - x) * (b[1] - y)) / area
        v = ((c[0] - x) * (a[1] - y) - (a[0] - x) * (c[1] - y)) / area
        w = 1 - u - v
        margin = np.minimum(margin, np.abs(np.min([u, v, w], axis=0)))
        z = u * a[2] + v * b[2] + w * c[2]
        inside = np.min([u, v, w], axis=0) > 0
        margin = np.where(inside, np.minimum(margin, np.abs(z - best)), margin)
        nearer = inside & (z > best)
        best, winner = np.where(nearer, z, best), np.where(nearer, n, winner)
    return winner, margin


@pytest.mark.parametrize('seed', range(12))
def test_zbuffer_is_brute_force(seed):
    r = np.random.default_rng(seed)
    n, height, width = 15, 31, 43
    screen = r.uniform([-10, -10, 0.2], [53, 41, 2], (3 * n, 3)).astype(np.float32)
    faces = np.arange(3 * n, dtype=np.int32).reshape(n, 3)
    depth, winner = np.zeros((height, width), np.float32), np.full((height, width), -1, np.int16)
    part, shown = np.zeros(3 * n, np.int32), np.ones(1, bool)
    shade, planes = np.ones((3 * n, 1), np.float32), np.zeros((n, 1, 3), np.float32)
    rasterise(faces, part, shown, screen, shade, depth, winner, planes)
    expected, margin = brute_force(screen, faces, height, width)
    clear = margin > 1e-3  # not on an edge, not a tie
    assert clear.mean() > 0.8 and (expected >= 0).any()
    assert (winner == expected)[clear].all()


@pytest.mark.parametrize(
    'solid',
    [
        box(0.3, 0.2, 0.1),
        capsule(0.05, 0.03, 0.2),
        lathe([(0, 0), (0.1, 0), (0, 0.1)], smooth=False),
    ],
)
def test_solids_are_closed_and_wound_outwards(solid):
    a, b, c = solid.vertices[solid.faces].astype(float).transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    np.testing.assert_allclose(normal.sum(0), 0, atol=1e-7)  # closed: areas cancel
    assert np.sum(a * normal) > 0  # outwards: the enclosed volume is positive
    flipped = mirrored(solid)
    a, b, c = flipped.vertices[flipped.faces].astype(float).transpose(1, 0, 2)
    assert np.sum(a * np.cross(b - a, c - a)) > 0


def test_sheet_shows_its_picture_upright():
    picture = np.zeros((2, 3, 4))
    picture[0] = 1  # upper row
    m = sheet(0.3, 0.2, picture)
    assert m.vertices[m.albedo[:, 0] == 1, 2].min() >= 0
    assert (m.normals[:, 1] < 0).all()  # seen from -y


def crew(solid, view=TRAINED_VIEW, size=(64, 48)):
    nothing = move(box(0.01, 0.01, 0.01), (0, 0, -0.6))
    return Renderer(solid, nothing, VIEWS[view], LIGHT, SURFACES, size)


@pytest.mark.parametrize('view', VIEWS)
def test_things_appear_where_they_are_projected(view):
    at = np.array([0.05, 0.05, 0.15])
    pose = np.eye(3, 4, dtype=np.float32)[None].copy()
    pose[0, :, 3] = at
    renderer = crew(capsule(0.03, 0.03, 0, 16), view)
    empty = renderer.frame(pose, np.zeros(1, bool)).copy()
    assert (renderer.work.winner < 0).all()
    assert (renderer.frame(pose, np.ones(1, bool)) != empty).any()
    y, x = np.nonzero(renderer.work.winner >= 0)
    x_want, y_want, inverse_depth = project_points(at, renderer.camera)
    assert np.hypot(x.mean() + 0.5 - x_want, y.mean() + 0.5 - y_want) < 0.7  # samples
    radius = 0.03 * inverse_depth * renderer.camera.focal
    assert len(x) == pytest.approx(np.pi * radius**2, rel=0.25)


def test_the_nearer_part_hides_the_other():
    wall, cube = box(0.6, 0.02, 0.6), box(0.1, 0.1, 0.1)
    both = crew(join([wall, cube], parts=True))
    pose = np.tile(np.eye(3, 4, dtype=np.float32), (2, 1, 1))
    pose[:, :, 3] = [0, 0.3, 0.31], [0, 0, 0.16]  # a wall between the camera and a cube
    both.frame(pose, np.ones(2, bool))
    assert set(np.unique(both.work.winner)) <= {-1, *range(12)}  # faces of the wall
    pose[1, 1, 3] = 0.5  # now the cube stands in front
    both.frame(pose, np.ones(2, bool))
    assert both.work.winner.max() >= 12


def test_cameras_are_really_apart():
    toward = {k: np.subtract(v.eye, (0, 0.08, 0.1)) for k, v in VIEWS.items()}
    toward = {k: v / np.linalg.norm(v) for k, v in toward.items()}
    angles = [np.degrees(np.arccos(toward[a] @ toward[b])) for a in VIEWS for b in VIEWS if a < b]
    assert min(angles) > 15 and np.median(angles) > 50
    own = [v for k, v in VIEWS.items() if k != 'kinect_color']
    assert all((not v.colour and v.rate == 1) for v in own)
    assert VIEWS['kinect_color'].colour and VIEWS['kinect_color'].rate == 0.5
