import numpy as np
import pytest

from diffusion_jax.diffusion.paths import CosineVPPath, DiscretePath, GVPPath, LinearPath, SubVPPath, VEPath, VPPath
from diffusion_jax.diffusion.preconditioning import preconditioning
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.errors import UserError

TIME = np.array([0.05, 0.3, 0.5, 0.9])
BETA = 0.1 + 19.9 * TIME
ALPHA_VP = np.exp(-0.25 * TIME**2 * 19.9 - 0.5 * TIME * 0.1)

# path: f, g², α, σ at TIME
TABLE = {
    "vp": (VPPath(), -BETA / 2, BETA, ALPHA_VP, np.sqrt(1 - ALPHA_VP**2)),
    "sub_vp": (SubVPPath(), -BETA / 2, BETA * (1 - ALPHA_VP**4), ALPHA_VP, 1 - ALPHA_VP**2),
    "ve": (VEPath(), 0 * TIME, 2 * 0.01**2 * 5000 ** (2 * TIME) * np.log(5000), 1 + 0 * TIME, 0.01 * 5000**TIME),
    "linear": (LinearPath(), -1 / (1 - TIME), 2 * TIME / (1 - TIME), 1 - TIME, TIME),
    "gvp": (
        GVPPath(),
        -np.pi / 2 * np.tan(np.pi / 2 * TIME),
        np.pi * np.tan(np.pi / 2 * TIME),
        np.cos(np.pi / 2 * TIME),
        np.sin(np.pi / 2 * TIME),
    ),
}
_COSINE = np.cos((TIME + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
_COSINE_DRIFT = -np.pi / 2 / 1.008 * np.tan((TIME + 0.008) / 1.008 * np.pi / 2)
TABLE["vp_cosine"] = (CosineVPPath(), _COSINE_DRIFT, -2 * _COSINE_DRIFT, _COSINE, np.sqrt(1 - _COSINE**2))


@pytest.mark.parametrize("name", TABLE)
def test_sde_of_each_path(name):
    path, drift, diffusion, alpha, sigma = TABLE[name]
    point = path.point(TIME)
    np.testing.assert_allclose(point.drift, drift, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(point.diffusion, diffusion, rtol=1e-11)
    np.testing.assert_allclose(point.alpha, alpha, rtol=1e-12)
    np.testing.assert_allclose(point.sigma, sigma, rtol=1e-11)


def test_cosine_agrees_with_the_discrete_schedule_and_stops_before_the_end():
    path = CosineVPPath()
    found = path.point(np.array([250, 500, 750]) / 1000).alpha ** 2
    np.testing.assert_allclose(found, DiscretePath(schedule="cosine").alpha_bar[[249, 499, 749]], rtol=1e-10)
    last = path.point(np.float64(path.time_max))
    np.testing.assert_allclose(last.diffusion, 370, rtol=0.01)  # its β


def test_cosine_for_other_resolutions():
    """log-SNR moves by 2 ln(64/side)."""
    wide, plain = CosineVPPath(kappa_scale=256 / 64), CosineVPPath()
    change = np.log(wide.point(TIME).snr / plain.point(TIME).snr)
    np.testing.assert_allclose(change, 2 * np.log(64 / 256), rtol=1e-10)
    np.testing.assert_allclose(wide.point(TIME).alpha ** 2 + wide.point(TIME).sigma ** 2, 1, rtol=1e-14)
    h = 1e-6
    slope = (wide.point(TIME + h).alpha - wide.point(TIME - h).alpha) / (2 * h)
    np.testing.assert_allclose(wide.point(TIME).alpha_dot, slope, rtol=1e-6)
    np.testing.assert_allclose(wide.time_of_kappa(wide.point(TIME).kappa), TIME, rtol=1e-10)


def test_velocities():
    """Linear: δ = 1, u = ε − x_0. GVP: u is ½π times v."""
    rng = np.random.default_rng(0)
    x0, epsilon = rng.normal(size=(2, 4, 3))
    np.testing.assert_allclose(LinearPath().point(TIME).delta, 1, rtol=1e-15)
    linear = Prediction("velocity").target(x0, epsilon, LinearPath().point(TIME))
    np.testing.assert_allclose(linear, epsilon - x0, rtol=1e-15)
    point = GVPPath().point(TIME)
    velocity, v = (Prediction(kind).target(x0, epsilon, point) for kind in ("velocity", "v"))
    np.testing.assert_allclose(velocity, np.pi / 2 * v, rtol=1e-12)


def test_edm_with_unit_data_is_v_prediction():
    """F = −v at σ_data = 1 on a variance-preserving path."""
    rng = np.random.default_rng(0)
    x0, epsilon = rng.normal(size=(2, 4, 3))
    point = VPPath().point(TIME)
    edm = Prediction("edm", sigma_data=1.0).target(x0, epsilon, point)
    np.testing.assert_allclose(edm, -Prediction("v").target(x0, epsilon, point), rtol=1e-10)


KAPPA = np.array([0.02, 0.5, 3.0, 60.0])


def test_preconditioning_table():
    def check(path, prediction, c_skip, c_out, c_in, c_noise):
        found = preconditioning(path, prediction, KAPPA)
        for value, expected in zip(found, (c_skip, c_out, c_in, c_noise), strict=True):
            np.testing.assert_allclose(value, np.broadcast_to(expected, KAPPA.shape), rtol=1e-8)

    vp = 1 / np.sqrt(KAPPA**2 + 1)
    y = 2 * 19.9 * np.log1p(KAPPA**2)
    check(VPPath(), Prediction(), 1, -KAPPA, vp, 999 * y / ((np.sqrt(0.01 + y) + 0.1) * 19.9))
    # The VE network of the table predicts −ε.
    check(VEPath(), Prediction(), 1, -KAPPA, 1, np.log(KAPPA / 2))
    chain = DiscretePath()
    nodes = np.sqrt((1 - chain.alpha_bar) / chain.alpha_bar)
    index = preconditioning(chain, Prediction(), nodes[[5, 700]])
    np.testing.assert_allclose(index.c_noise, [5, 700], rtol=1e-9)
    np.testing.assert_allclose(index.c_out, -nodes[[5, 700]])
    total = KAPPA**2 + 0.25
    edm = (0.25 / total, KAPPA * 0.5 / np.sqrt(total), 1 / np.sqrt(total), np.log(KAPPA) / 4)
    check(VEPath(), Prediction("edm"), *edm)
    check(VPPath(), Prediction("edm"), *edm)
    t = KAPPA / (1 + KAPPA)
    check(LinearPath(), Prediction("velocity"), 1 - t, -t, 1 - t, t)


def test_edm_inputs_and_targets_have_unit_variance():
    for sigma_data in (0.5, 1.0):
        c = preconditioning(VEPath(), Prediction("edm", sigma_data=sigma_data), KAPPA)
        np.testing.assert_allclose(c.c_in**2 * (sigma_data**2 + KAPPA**2), 1, rtol=1e-12)
        target = ((1 - c.c_skip) ** 2 * sigma_data**2 + c.c_skip**2 * KAPPA**2) / c.c_out**2
        np.testing.assert_allclose(target, 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VEPath(kappa_min=1.0, kappa_max=0.5), "0 < kappa_min < kappa_max"),
        (lambda: CosineVPPath(kappa_scale=0.0), "must be positive"),
        (lambda: LinearPath(time_max=1.5), "time_max ≤ 1"),
        (lambda: Prediction("edm", sigma_data=0.0), "sigma_data must be positive"),
    ],
)
def test_bad_values(build, message):
    with pytest.raises(UserError, match=message):
        build()
