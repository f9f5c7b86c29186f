"""Every path, prediction and loss at the ends of training: finite and right, or refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.losses import (
    EDMLoss,
    FlowMatchingLoss,
    HybridLoss,
    MinSNRLoss,
    P2Loss,
    ScoreLoss,
    SimpleLoss,
    VLBLoss,
)
from diffusion_jax.diffusion.losses.base import training_ends
from diffusion_jax.diffusion.paths import CosineVPPath, DiscretePath, GVPPath, LinearPath, SubVPPath, VEPath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDIM, check_sampling
from diffusion_jax.errors import UserError

KINDS = ("epsilon", "x0", "v", "score", "velocity", "edm")
PATHS = {
    "ddpm": DiscretePath(),
    "ddpm to pure noise": DiscretePath(zero_terminal_snr=True),
    "vp": VPPath(),
    "vp from data": VPPath(train_time_min=0.0),
    "cosine": CosineVPPath(),
    "cosine from data": CosineVPPath(train_time_min=0.0),
    "sub_vp": SubVPPath(),
    "sub_vp from data": SubVPPath(train_time_min=0.0),
    "ve": VEPath(),
    "linear": LinearPath(),
    "linear above data": LinearPath(train_time_min=1e-2),
    "linear inside": LinearPath(train_time_min=1e-2, time_max=0.99),
    "gvp": GVPPath(),
    "gvp above data": GVPPath(train_time_min=1e-2),
}
WEIGHTED = {
    "min_snr": MinSNRLoss(),
    "min_snr soft": MinSNRLoss(soft=True),
    "p2": P2Loss(),
    "p2 half": P2Loss(gamma=0.5),
    "score": ScoreLoss(),
    "score likelihood": ScoreLoss(weighting="likelihood"),
    "edm": EDMLoss(),
    "flow": FlowMatchingLoss(),
    "flow likelihood": FlowMatchingLoss(weighting="likelihood"),
    "flow noise": FlowMatchingLoss(weighting="noise"),
}


def accepts(loss, path, kind, variance="fixed_small"):
    try:
        loss.check(path, Prediction(kind, variance))
    except UserError:
        return False
    return True


def says_nothing(path, kind):
    """Whether the target, or the time of the network, is infinite at an end."""
    with np.errstate(all="ignore"):
        ends = path.point(training_ends(path))
        target = Prediction(kind).target(np.zeros(2), np.ones(2), ends)
        return not np.all(np.isfinite(target)) or (kind == "edm" and not np.all(np.isfinite(ends.kappa)))


def limit(loss, path, kind, end):
    """The weight at an end, from float64 points inside that approach it; inf where it grows without bound."""
    # A chain's derivatives at a node are those of the cell towards the data.
    inwards = 1 if end == 0 and path.chain_length is None else -1
    last = training_ends(path)[end]
    values = []
    for distance in (1e-7, 1e-9):
        point = path.point(np.array([last + inwards * distance]))
        values.append(float(loss.weight(point, Prediction(kind))[0]))
    return np.inf if values[1] > 2 * values[0] > 0 else values[1]


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_at_the_ends_are_their_limits_or_refused(name):
    loss = WEIGHTED[name]
    accepted = 0
    for (where, path), kind in itertools.product(PATHS.items(), KINDS):
        case = f"{name}, {where}, {kind}"
        limits = [limit(loss, path, kind, end) for end in (0, 1)]
        # By convention MinSNR weighs 1 where no signal is left.
        silent = path.point(training_ends(path)).alpha[-1] == 0 and "min_snr" in name
        refused = says_nothing(path, kind) or not (np.isfinite(limits[0]) and (silent or np.isfinite(limits[1])))
        assert accepts(loss, path, kind) == (not refused), case
        if refused:
            continue
        accepted += 1
        ends = training_ends(path)
        for dtype, point in ((np.float64, path.point(ends)), (np.float32, path.point(jnp.asarray(ends, jnp.float32)))):
            with np.errstate(all="ignore"):
                found = np.asarray(loss.weights(path, point, Prediction(kind)))
            assert found.dtype == dtype, case
            expected = [limits[0], 1.0 if silent else limits[1]]
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3, err_msg=case)
    assert accepted > 30


def test_x0_prediction_with_a_velocity_loss_is_flow_matching_on_the_linear_path():
    """(x̂_0 − x_0)/t is the error of the velocity, at t = 1 too (JiT, arXiv 2511.13720)."""
    path, prediction, loss = LinearPath(train_time_min=0.01), Prediction("x0"), FlowMatchingLoss()
    loss.check(path, prediction)
    rng = np.random.default_rng(0)
    x0, epsilon, guess = rng.normal(size=(3, 4, 2, 2, 1))
    time = np.array([0.01, 0.3, 1 - 2.0**-20, 1.0])
    t = time.reshape(-1, 1, 1, 1)
    x = (1 - t) * x0 + t * epsilon
    velocity = (x - guess) / t  # the velocity that goes with the guess of the data
    expected = np.mean((velocity - (epsilon - x0)) ** 2, axis=(1, 2, 3))

    def model(x, timestep, cond):
        return jnp.asarray(guess, x.dtype)

    found, _ = jax.jit(lambda *a: loss.at(model, path, prediction, a[0], None, a[1], a[2]))(
        *(jnp.asarray(a, jnp.float32) for a in (x0, time, epsilon))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_floor_of_sigma_bounds_the_weight_near_the_data():
    path, prediction = LinearPath(), Prediction("x0")
    with pytest.raises(UserError, match="infinitely at an end"):
        FlowMatchingLoss().check(path, prediction)
    loss = FlowMatchingLoss(sigma_floor=0.05)
    loss.check(path, prediction)
    weights = loss.weights(path, path.point(np.array([0.0, 0.01, 0.05, 0.5, 1.0])), prediction)
    np.testing.assert_allclose(weights, [400, 400, 400, 4, 1])
    with pytest.raises(UserError, match="sigma_floor bounds the weight of x0"):
        loss.check(path, Prediction("v"))
    for options in ({"sigma_floor": -0.1}, {"sigma_floor": 0.1, "weighting": "noise"}):
        with pytest.raises(UserError, match="must be at least 0, and is of weighting 'velocity' alone"):
            FlowMatchingLoss(**options)


@pytest.mark.parametrize(
    ("loss", "variance"), [(SimpleLoss(), "fixed_small"), (HybridLoss(), "learned_range"), (VLBLoss(), "fixed_small")]
)
def test_objectives_without_weights_are_finite_at_the_ends_or_refused(loss, variance):
    """With a gradient: one step at pure noise that gives NaN ends a run."""
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(rng.integers(0, 256, (2, 2, 2, 1)) / 127.5 - 1, jnp.float32)
    epsilon = jnp.asarray(rng.normal(size=x0.shape), jnp.float32)
    paths = ("ddpm", "ddpm to pure noise") if not isinstance(loss, SimpleLoss) else ("ddpm to pure noise", "linear")
    accepted = []
    for where, kind in itertools.product(paths, KINDS):
        path, prediction = PATHS[where], Prediction(kind, variance)
        if not accepts(loss, path, kind, variance):
            continue
        accepted.append((where, kind))
        time = jnp.asarray(training_ends(path), jnp.float32)

        def total(scale, path=path, prediction=prediction, time=time):
            def model(x, timestep, cond):
                return scale * jnp.tanh(jnp.concatenate([x, x], -1) if prediction.learns_variance else x)

            return jnp.sum(loss.at(model, path, prediction, x0, None, time, epsilon)[0])

        value, gradient = jax.value_and_grad(total)(jnp.float32(0.3))
        assert np.isfinite(value) and np.isfinite(gradient), (where, kind)
    silent = {kind for where, kind in accepted if where == "ddpm to pure noise"}
    says_something = {"x0", "v", "velocity"}
    assert silent == (says_something | {"epsilon", "score"} if isinstance(loss, SimpleLoss) else says_something)


def test_refusals_name_the_remedy():
    silent = DiscretePath(zero_terminal_snr=True)
    with pytest.raises(UserError, match=r"¼ ln\(σ/α\) of prediction kind 'edm' is infinite.*zero_terminal_snr False$"):
        SimpleLoss().check(silent, Prediction("edm"))
    with pytest.raises(UserError, match=r"kind 'epsilon' says nothing at the last one.*use prediction kind 'v' or"):
        HybridLoss().check(silent, Prediction("epsilon", "learned_range"))
    with pytest.raises(UserError, match=r"'velocity' is infinite without noise, .* set its train_time_min above 0$"):
        SimpleLoss().check(VPPath(train_time_min=0.0), Prediction("velocity"))
    with pytest.raises(UserError, match="a prediction of kind 'edm' says nothing about the data"):
        check_sampling(DDIM(), LinearPath(), Prediction("edm"))
