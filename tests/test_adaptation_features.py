"Moved features lie where they should, are those of the fitted estimator, and leave unknown clips alone"

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from fmhar.adaptation.features import AcrossViews, Centre, Coral, EraseView, centred, move
from fmhar.adaptation.knowledge import known
from fmhar.errors import InputError

RNG = np.random.default_rng(0)
OLD = RNG.normal(size=(40, 6)) @ RNG.normal(size=(6, 6))
NEW = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)) + 3


def table(n=8, people='xy'):
    rows = [
        dict(segment=f'{v}{w}{i}', event=f'{w}{i}', view=v, subject=w, path=f'{v}/{w}')
        | dict(start=9 * i, end=9 * i + 9)
        for v in ('front', 'side')
        for w in people
        for i in range(n)
    ]
    out = pd.DataFrame(rows)
    out.attrs['trained_view'] = 'front'
    return out


@pytest.mark.parametrize('estimator', [Centre(), Centre(scale=True), Coral(0.2), Coral(1.0)])
def test_the_mean_becomes_the_old_cameras(estimator):
    moved = estimator.fit(OLD, NEW).transform(NEW)
    np.testing.assert_allclose(moved.mean(0), OLD.mean(0), atol=1e-8)


def test_scaling_gives_the_spread_and_coral_the_covariance():
    np.testing.assert_allclose(Centre(True).fit(OLD, NEW).transform(NEW).std(0), OLD.std(0))
    moved = Coral(1e-9).fit(OLD, NEW).transform(NEW)
    np.testing.assert_allclose(np.cov(moved.T, bias=True), np.cov(OLD.T, bias=True), rtol=1e-4)


def test_coral_with_fewer_clips_than_features_and_constant_ones_is_finite():
    few = np.concatenate([NEW[:3], np.ones((3, 4))], 1)
    assert np.isfinite(Coral(0.1).fit(few, few + 1).transform(few)).all()
    assert np.isfinite(Coral(0.1).fit(0 * few, 0 * few).transform(few)).all()
    assert np.isfinite(Centre(True).fit(few, few).transform(few)).all()


@pytest.mark.parametrize('shape', [(9, 5), (9, 4, 5), (9, 4, 3, 5)])
def test_centring_is_by_feature_and_patch_position(shape):
    x = RNG.normal(size=shape)
    background = RNG.normal(size=shape[2:] or shape[1:])
    moved = Centre().fit(x, x + background).transform(x + background)
    np.testing.assert_allclose(moved, x, atol=1e-8)


def test_no_linear_direction_tells_erased_cameras_apart():
    e = EraseView().fit(OLD, NEW)
    a, b = e.transform(OLD), e.transform(NEW)
    np.testing.assert_allclose(a.mean(0), b.mean(0), atol=1e-6)


def test_whitening_shrinks_what_twins_differ_in_and_nothing_else():
    step = RNG.normal(size=(40, 1)) * np.eye(6)[2]
    turn = AcrossViews(5.0).fit(OLD, OLD + step + 7).turn_
    np.testing.assert_allclose(np.delete(np.delete(turn, 2, 0), 2, 1), np.eye(5), atol=1e-8)
    assert turn[2, 2] < 0.3
    np.testing.assert_allclose(AcrossViews(0.0).fit(OLD, OLD + step).turn_, np.eye(6), atol=1e-8)


@pytest.mark.parametrize('rule', ['recording', 'causal', 'camera', 'footage'])
@pytest.mark.parametrize('estimator', [Centre(), Centre(scale=True), Coral(0.3)])
def test_moved_by_a_rule_is_fitted_on_what_may_be_known(rule, estimator):
    t = table()
    x = RNG.normal(size=(len(t), 5)).astype(np.float32)
    out, moved = move(estimator, OLD[:, :5], x, t, rule)
    for block in known(t, rule):
        for i, may in zip(block.asked, block.may):
            assert moved[i] == may.any()
            if may.any():
                one = clone(estimator).fit(OLD[:, :5], x[block.known[may]])
                np.testing.assert_allclose(out[i], one.transform(x[i : i + 1])[0], atol=1e-4)
            else:
                np.testing.assert_array_equal(out[i], x[i])


def test_centred_about_zero_and_unknown_clips_about_the_old_camera():
    t = table()
    x = RNG.normal(size=(len(t), 3, 5)).astype(np.float32) + 4
    z, home = centred(x, t, 'recording')
    np.testing.assert_allclose(home, x.mean((0, 1)), rtol=1e-5)
    assert abs(z.mean()) < 0.2
    z, _ = centred(x, t, 'causal', home)
    np.testing.assert_allclose(z[0], x[0] - home, rtol=1e-5, atol=1e-5)  # nothing came before


def test_half_precision_sums_keep_their_digits():
    x = (1000 + RNG.normal(size=(2000, 4))).astype(np.float16)
    assert abs(Centre().fit(None, x).transform(x).mean()) < 1e-2


def test_wrong_shapes_say_so():
    with pytest.raises(InputError, match='one vector a clip'):
        Coral().fit(OLD[:, None], NEW)
    with pytest.raises(InputError, match='Not a shrinkage'):
        Coral(0).fit(OLD, NEW)
