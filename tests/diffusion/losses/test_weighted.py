import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.losses import (
    LOSSES,
    EDMLoss,
    FlowMatchingLoss,
    LearnedUncertainty,
    MinSNRLoss,
    P2Loss,
    ScoreLoss,
    SimpleLoss,
)
from diffusion_jax.diffusion.losses.base import noised
from diffusion_jax.diffusion.paths import CosineVPPath, DiscretePath, GVPPath, LinearPath, VEPath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError

KINDS = ("epsilon", "x0", "v", "score", "velocity", "edm")


def point_with_snr(snr):
    path = VPPath()
    return path.point(path.time_of_kappa(np.array([snr**-0.5])))


def test_min_snr_at_snr_50():
    point = point_with_snr(50.0)
    for kind, expected in (("epsilon", 0.1), ("x0", 5.0), ("v", 0.09804)):
        np.testing.assert_allclose(MinSNRLoss().weight(point, Prediction(kind)), expected, rtol=1e-4)
    # Below γ nothing is cut.
    np.testing.assert_allclose(MinSNRLoss().weight(point_with_snr(0.3), Prediction("epsilon")), 1, rtol=1e-9)


def test_soft_min_snr():
    found = MinSNRLoss(gamma=4.0, soft=True).weight(point_with_snr(50.0), Prediction("x0"))
    np.testing.assert_allclose(found, 4 * 50 / 54, rtol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_min_snr_is_one_without_signal(soft):
    path = DiscretePath(schedule="scaled_linear", zero_terminal_snr=True)
    last = path.point(jnp.array([1.0]))
    for kind in ("epsilon", "x0", "v"):
        assert MinSNRLoss(soft=soft).weight(last, Prediction(kind)).tolist() == [1.0]


def test_p2():
    point = point_with_snr(3.0)
    np.testing.assert_allclose(P2Loss().weight(point, Prediction("epsilon")), 1 / 4, rtol=1e-9)
    np.testing.assert_allclose(P2Loss(gamma=0.5).weight(point, Prediction("epsilon")), 1 / 2, rtol=1e-9)


@pytest.mark.parametrize("path", [VPPath(), CosineVPPath(), LinearPath(), GVPPath(), VEPath()], ids=lambda p: p.name)
def test_errors_of_all_kinds_at_the_same_x(path):
    """|Δx_0|² = |Δε|²/SNR, and so on: a change of the network's output is a change of the data."""
    rng = np.random.default_rng(0)
    point = path.point(np.array([0.2, 0.7]))
    x, output, change = rng.normal(size=(3, 2, 5))
    for kind in KINDS:
        prediction = Prediction(kind)
        moved = prediction.to_x0(output + change, x, point) - prediction.to_x0(output, x, point)
        factor = prediction.x0_error_factor(point).reshape(-1, 1)
        np.testing.assert_allclose(moved**2, factor * change**2, rtol=1e-7)
        moved = prediction.to_epsilon(output + change, x, point) - prediction.to_epsilon(output, x, point)
        factor = prediction.epsilon_error_factor(point).reshape(-1, 1)
        np.testing.assert_allclose(moved**2, factor * change**2, rtol=1e-7)
    snr = point.snr
    np.testing.assert_allclose(Prediction("epsilon").x0_error_factor(point), 1 / snr)
    if isinstance(path, LinearPath):
        np.testing.assert_allclose(Prediction("velocity").x0_error_factor(point), point.time**2)
    if isinstance(path, VPPath | GVPPath):
        np.testing.assert_allclose(Prediction("v").x0_error_factor(point), 1 / (snr + 1))


WEIGHTED = {
    "min_snr": (MinSNRLoss(), lambda p: np.minimum(p.snr, 5)),
    "p2": (P2Loss(), lambda p: p.snr / (1 + p.snr)),
    "score": (ScoreLoss(), lambda p: p.snr),
    "score likelihood": (ScoreLoss(weighting="likelihood"), lambda p: p.diffusion * p.snr / p.sigma**2),
    "edm": (EDMLoss(), lambda p: (p.kappa**2 + 0.25) / (p.kappa * 0.5) ** 2),
    "flow": (FlowMatchingLoss(), lambda p: (p.delta / p.sigma) ** 2),
    "flow likelihood": (FlowMatchingLoss(weighting="likelihood"), lambda p: p.snr * p.delta / (p.alpha * p.sigma)),
    "flow noise": (FlowMatchingLoss(weighting="noise"), lambda p: p.snr),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weight_in_terms_of_the_data_error(name):
    """Every weighted loss is one weight on |Δx_0|², whatever the network predicts."""
    loss, data_weight = WEIGHTED[name]
    for path in (VPPath(), LinearPath()):
        point = path.point(np.array([0.1, 0.4, 0.9]))
        for kind in KINDS:
            prediction = Prediction(kind)
            found = loss.weight(point, prediction) / prediction.x0_error_factor(point)
            np.testing.assert_allclose(found, data_weight(point), rtol=1e-6)


def test_weights_that_are_infinite_at_an_end_are_refused():
    for loss, path, kind in (
        (FlowMatchingLoss(), LinearPath(), "epsilon"),
        (FlowMatchingLoss(weighting="likelihood"), LinearPath(), "velocity"),
        (ScoreLoss(weighting="likelihood"), GVPPath(), "epsilon"),
        (EDMLoss(), LinearPath(), "x0"),
        (P2Loss(gamma=0.5), LinearPath(), "x0"),
    ):
        with pytest.raises(UserError, match="infinitely at an end of path"):
            loss.check(path, Prediction(kind))
        loss.check(type(path)(train_time_min=1e-3, time_max=0.999), Prediction(kind))
    with pytest.raises(UserError, match="infinite without noise"):
        SimpleLoss().check(LinearPath(), Prediction("score"))
    # Finite where the limit is, though a factor is 0 · ∞ there.
    for loss in (P2Loss(), ScoreLoss(), FlowMatchingLoss(weighting="noise"), MinSNRLoss()):
        loss.check(LinearPath(), Prediction("epsilon"))
    FlowMatchingLoss().check(LinearPath(), Prediction("velocity"))


def test_edm_starts_at_one_per_dimension():
    path, prediction = VEPath(kappa_min=0.002, kappa_max=80), Prediction("edm")
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (256, 4, 4, 3))
    zero = lambda x, t, cond: jnp.zeros_like(x)  # noqa: E731
    loss, aux = jax.jit(lambda x0: EDMLoss()(zero, path, prediction, x0, None, jax.random.key(1), jnp.arange(256)))(x0)
    np.testing.assert_allclose(loss.mean(), 1, atol=0.02)
    assert set(aux) == {"time", "mse"}


def test_edm_network_sees_scaled_inputs():
    path, prediction, seen = VEPath(kappa_min=0.002, kappa_max=80), Prediction("edm"), {}

    def model(x, t, cond):
        seen.update(x=x, t=t)
        return x

    x0, epsilon = jnp.ones((2, 1, 1, 1)), jnp.full((2, 1, 1, 1), 2.0)
    kappa = jnp.array([0.1, 5.0])
    EDMLoss().at(model, path, prediction, x0, None, path.time_of_kappa(kappa), epsilon)
    np.testing.assert_allclose(seen["x"].ravel(), (1 + 2 * kappa) / jnp.sqrt(kappa**2 + 0.25), rtol=1e-5)
    np.testing.assert_allclose(seen["t"], jnp.log(kappa) / 4, rtol=1e-5)


def test_learned_uncertainty():
    path, prediction = VEPath(kappa_min=0.002, kappa_max=80), Prediction("edm")
    x0, key, index = jnp.ones((4, 2, 2, 1)), jax.random.key(0), jnp.arange(4)
    model = LearnedUncertainty(lambda x, t, cond: jnp.zeros_like(x), channels=16)
    loss = EDMLoss(learned_uncertainty=True)
    plain, _ = EDMLoss()(model, path, prediction, x0, None, key, index)
    found, aux = loss(model, path, prediction, x0, None, key, index)
    np.testing.assert_allclose(found, plain, rtol=1e-6)  # a = 0 at first
    np.testing.assert_allclose(aux["weighted_mse"], plain, rtol=1e-6)
    model.weight[...] = jnp.linspace(-1.0, 1.0, 16)
    found, aux = loss(model, path, prediction, x0, None, key, index)
    a = model.uncertainty(jnp.log(path.point(aux["time"]).kappa) / 4)
    np.testing.assert_allclose(found, plain * jnp.exp(-a) + a, rtol=1e-5)
    with pytest.raises(UserError, match="wrap it in LearnedUncertainty"):
        loss(lambda x, t, cond: x, path, prediction, x0, None, key, index)


def test_velocity_direction():
    path, prediction = LinearPath(), Prediction("velocity")
    x0, epsilon = jnp.zeros((2, 1, 1, 2)), jnp.array([[3.0, 4.0], [1.0, 0.0]]).reshape(2, 1, 1, 2)
    outputs = jnp.array([[6.0, 8.0], [0.0, 2.0]]).reshape(2, 1, 1, 2)
    model = lambda x, t, cond: outputs  # noqa: E731
    time = jnp.array([0.3, 0.6])
    found, aux = FlowMatchingLoss(direction_weight=0.5).at(model, path, prediction, x0, None, time, epsilon)
    np.testing.assert_allclose(aux["direction"], [0, 1], atol=1e-6)
    np.testing.assert_allclose(found, [12.5, 2.5 + 0.5], rtol=1e-6)
    # A new network answers zero; its gradient there is finite and points towards the target.
    loss = FlowMatchingLoss(direction_weight=0.5)
    gradient = jax.grad(
        lambda out: loss.at(lambda x, t, cond: out, path, prediction, x0, None, time, epsilon)[0].sum()
    )(jnp.zeros_like(x0))
    assert np.all(np.isfinite(gradient)) and float(jnp.sum(gradient * epsilon)) < 0
    with pytest.raises(UserError, match="use prediction kind 'velocity'"):
        FlowMatchingLoss(direction_weight=0.5).check(path, Prediction("epsilon"))


def log_kappa(path):
    return lambda time: np.log(path.point(time).kappa)


WIDE = VEPath(kappa_min=1e-5, kappa_max=1e4)
LAW_CASES = [
    (SimpleLoss(time_law="logit_normal"), LinearPath(), 0.0, 1.0),
    (SimpleLoss(time_law="edm"), LinearPath(), 0.0, 1.0),
    (EDMLoss(), WIDE, -1.2, 1.2),
    (SimpleLoss(time_law="edm", time_mean=0.5, time_std=0.3), VPPath(), 0.5, 0.3),
    (SimpleLoss(time_law="logit_normal", time_shift=3.0), LinearPath(), np.log(3.0), 1.0),
]


@pytest.mark.parametrize(("loss", "path", "mean", "std"), LAW_CASES)
def test_time_laws(loss, path, mean, std):
    count = 4000
    time = jax.jit(lambda: loss.draw_time(path, jax.random.key(0), jnp.arange(count)))()
    # On the linear path ln κ is the logit of t.
    values = log_kappa(path)(np.asarray(time, np.float64))
    assert abs(values.mean() - mean) < 5 * std / np.sqrt(count)
    assert abs(values.std() / std - 1) < 5 / np.sqrt(2 * count)
    part = loss.draw_time(path, jax.random.key(0), jnp.array([17, 3]))
    np.testing.assert_allclose(part, np.asarray(time)[[17, 3]], rtol=1e-6)


def test_time_laws_on_a_chain_fall_on_its_timesteps():
    path = DiscretePath(num_timesteps=50, schedule="cosine")
    for loss in (SimpleLoss(time_law="logit_normal"), SimpleLoss(time_law="edm"), SimpleLoss(time_shift=2.0)):
        n = np.asarray(loss.draw_time(path, jax.random.key(0), jnp.arange(500))) * 50
        np.testing.assert_allclose(n, np.round(n), atol=1e-4)
        assert n.min() >= 1 - 1e-4 and n.max() <= 50


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"hybrid", "vlb", "classification"}))
def test_perfect_network_has_no_loss(name):
    loss, path, prediction = LOSSES[name](), VPPath(), Prediction("epsilon")
    x0, epsilon = jnp.ones((3, 2, 2, 1)), jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    time = jnp.array([0.2, 0.5, 0.9])
    found, aux = loss.at(lambda x, t, cond: epsilon, path, prediction, x0, None, time, epsilon)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    np.testing.assert_array_equal(aux["time"], time)
    x = noised(x0, epsilon, path.point(time))
    assert x.shape == x0.shape


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SimpleLoss(time_law="uniformm"), "did you mean 'uniform'"),
        (lambda: SimpleLoss(time_std=0.0), "must be positive"),
        (lambda: ScoreLoss(weighting="likelyhood"), "did you mean 'likelihood'"),
        (lambda: FlowMatchingLoss(weighting="velocty"), "did you mean 'velocity'"),
        (lambda: MinSNRLoss().check(DiscretePath(), Prediction(variance="learned")), "loss 'min_snr' never trains"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(UserError, match=message):
        build()
