import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.paths import PATHS, DiscretePath, VPPath
from diffusion_jax.errors import UserError

FIELDS = ("alpha", "sigma", "alpha_dot", "sigma_dot", "timestep")
SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
CASES = [(schedule, respacing) for schedule in SCHEDULES for respacing in ("", "250", "ddim50", "10,15,20")]


@pytest.mark.parametrize(("schedule", "respacing"), CASES)
def test_tables_of_the_reference(golden, schedule, respacing):
    data = golden("gd_tables")
    expected = {
        key.rsplit("/", 1)[1]: value
        for key, value in data.items()
        if key.startswith(f"out/{schedule}_T1000_{respacing or 'full'}/")
    }
    path = DiscretePath(schedule=SCHEDULES[schedule], respacing=respacing)
    time = np.arange(1, path.chain_length + 1) / path.chain_length
    point, step = path.point(time), path.transition(time)
    beta = np.exp(step.log_variance_max)
    posterior_variance = np.exp(step.log_variance_min) * (1 - step.to_data)
    found = {
        "betas": beta,
        "alphas_cumprod": point.alpha**2,
        "sqrt_alphas_cumprod": point.alpha,
        "sqrt_one_minus_alphas_cumprod": point.sigma,
        "log_one_minus_alphas_cumprod": np.log(1 - point.alpha**2),
        "sqrt_recip_alphas_cumprod": 1 / point.alpha,
        "sqrt_recipm1_alphas_cumprod": point.kappa,
        "posterior_variance": posterior_variance,
        "posterior_log_variance_clipped": step.log_variance_min,
        "posterior_mean_coef1": step.x0_weight,
        "posterior_mean_coef2": step.x_weight,
        "alphas_cumprod_prev": np.append(1.0, point.alpha[:-1] ** 2),
        "alphas_cumprod_next": np.append(point.alpha[1:] ** 2, 0.0),
    }
    np.testing.assert_array_equal(path.timesteps, expected.pop("timestep_map"))
    np.testing.assert_array_equal(point.timestep, path.timesteps)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-300, err_msg=name)


def test_posterior_constants():
    step = DiscretePath().transition(np.arange(1, 1001) / 1000)
    variance = np.exp(step.log_variance_min)
    np.testing.assert_allclose(variance[[0, 1, 2, 999]], [5.453188e-5, 5.453188e-5, 8.548912e-5, 0.01999998], rtol=2e-7)
    np.testing.assert_allclose(step.log_variance_min[0], -9.816725, rtol=1e-7)
    np.testing.assert_allclose([step.x0_weight[0], step.x_weight[0]], [1, 0], atol=1e-12)


@pytest.mark.parametrize("respacing", ["250", "ddim50", "10,15,20"])
def test_respaced_betas_keep_alpha_bar(respacing):
    path, full = DiscretePath(respacing=respacing), DiscretePath()
    np.testing.assert_allclose(np.cumprod(1 - path.betas), full.alpha_bar[path.timesteps], rtol=1e-12)


def all_paths():
    return {name: build() for name, build in PATHS.items()}


@pytest.mark.parametrize("name", PATHS)
def test_derivatives(name):
    path = all_paths()[name]
    # Inside a cell of the discrete chain, where ln α is smooth.
    time = np.array([0.0123, 0.2504, 0.5005, 0.7506, 0.9907])
    h = 1e-6
    point, left, right = path.point(time), path.point(time - h), path.point(time + h)
    np.testing.assert_allclose(point.alpha_dot, (right.alpha - left.alpha) / (2 * h), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(point.sigma_dot, (right.sigma - left.sigma) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", PATHS)
def test_time_of_kappa_inverts(name):
    path = all_paths()[name]
    time = np.linspace(path.time_min, path.time_max, 50)[1:-1]
    np.testing.assert_allclose(path.time_of_kappa(path.point(time).kappa), time, rtol=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_traced_float32_agrees_with_host_float64(name):
    path = all_paths()[name]
    time = np.linspace(path.time_min, path.time_max, 1000)[1:-1]
    host, traced = path.point(time), jax.jit(path.point)(jnp.asarray(time, jnp.float32))
    for field in FIELDS:
        found, expected = np.asarray(getattr(traced, field)), getattr(host, field)
        assert found.dtype == np.float32
        # Derivatives jump at the nodes of the discrete chain, where float32 may fall to either side.
        tolerance = 5e-2 if name == "ddpm" and field.endswith("_dot") else 2e-5
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-6, err_msg=field)


def test_traced_tables_are_exact_at_the_nodes():
    path = DiscretePath()
    host = path.transition(np.arange(1, 1001) / 1000)
    traced = jax.jit(path.transition)(jnp.arange(1, 1001, dtype=jnp.float32) / 1000)
    for found, expected in zip(traced, host, strict=True):
        np.testing.assert_array_equal(np.asarray(found), expected.astype(np.float32))
    timestep = jax.jit(lambda t: path.point(t).timestep)(jnp.arange(1, 1001, dtype=jnp.float32) / 1000)
    np.testing.assert_array_equal(np.asarray(timestep), np.arange(1000))


def test_discrete_chain_in_continuous_time():
    path = DiscretePath()
    point = path.point(np.array([0.0, 0.0005, 0.001, 0.4995, 1.0]))
    np.testing.assert_allclose(point.timestep, [0, 0, 0, 498.5, 999])
    np.testing.assert_allclose(point.alpha[0], 1)
    middle = np.sqrt(np.sqrt(path.alpha_bar[498] * path.alpha_bar[499]))
    np.testing.assert_allclose(point.alpha[3], middle, rtol=1e-12)
    # At a node the slope is that of the step that led there: g² = −T ln(1 − β_n).
    np.testing.assert_allclose(path.point(np.float64(1.0)).diffusion, -1000 * np.log(1 - 0.02), rtol=1e-9)


def test_discrete_and_continuous_vp_agree():
    # β(t) = 0.1 + 19.9 t is the limit of the linear schedule.
    time = np.array([0.25, 0.5, 1.0])
    np.testing.assert_allclose(DiscretePath().point(time).alpha, VPPath().point(time).alpha, rtol=5e-3, atol=3e-4)


def test_vp_sde_coefficients():
    time = np.array([0.1, 0.5, 1.0])
    point = VPPath().point(time)
    np.testing.assert_allclose(point.diffusion, 0.1 + 19.9 * time, rtol=1e-12)
    np.testing.assert_allclose(point.drift, -(0.1 + 19.9 * time) / 2, rtol=1e-12)
    np.testing.assert_allclose(point.alpha**2 + point.sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(point.timestep, 999 * time)


def test_zero_terminal_snr_path_is_finite_everywhere():
    path = DiscretePath(schedule="scaled_linear", zero_terminal_snr=True)
    point = path.point(np.array([0.998, 0.999, 0.9995, 1.0]))
    for field in FIELDS:
        assert np.all(np.isfinite(getattr(point, field)))
    assert point.alpha[-1] == 0 and point.sigma[-1] == 1 and np.all(np.diff(point.alpha) < 0)


def test_rescaled_timesteps():
    path = DiscretePath(num_timesteps=100, rescale_timesteps=True)
    np.testing.assert_allclose(path.point(np.array([0.01, 0.5, 1.0])).timestep, [0, 490, 990])


def test_training_times():
    index = jnp.arange(4000)
    path = DiscretePath(num_timesteps=8, schedule="cosine")
    n = np.round(np.asarray(path.draw_time(jax.random.key(0), index)) * 8).astype(int)
    counts = np.bincount(n, minlength=9)
    assert counts[0] == 0 and np.all(np.abs(counts[1:] - 500) < 5 * np.sqrt(500))
    time = np.asarray(VPPath().draw_time(jax.random.key(0), index))
    assert time.min() >= 1e-5 and time.max() < 1 and abs(time.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 4000)


def test_training_times_depend_on_the_sample_alone():
    path, key = DiscretePath(), jax.random.key(3)
    whole, part = path.draw_time(key, jnp.arange(8)), path.draw_time(key, jnp.array([5, 2]))
    np.testing.assert_array_equal(np.asarray(whole)[[5, 2]], np.asarray(part))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DiscretePath(num_timesteps=0), "num_timesteps must be at least 1"),
        (lambda: DiscretePath(respacing="ddim37"), "use 36 or 38"),
        (lambda: VPPath(beta_min=3.0, beta_max=2.0), "0 < beta_min < beta_max"),
        (lambda: VPPath(time_min=1.0), "need 0 ≤ time_min < time_max ≤ 1"),
    ],
)
def test_bad_paths(build, message):
    with pytest.raises(UserError, match=message):
        build()
