import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.paths import DiscretePath, VPPath
from diffusion_jax.diffusion.point import align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDPM
from diffusion_jax.errors import UserError


@functools.cache
def with_variance(denoise, variance):
    """Adds the reverse variance to a closed-form denoiser."""

    def call(x, point):
        step = align(point.transition, x)
        if variance == "optimal":  # for N(0.5, 0.25²): β̃ + c1² s²σ²/(α²s² + σ²)
            spread = point.alpha**2 * 0.25**2 + point.sigma**2
            posterior = jnp.exp(step.log_variance_min) * (1 - step.to_data)
            log_variance = jnp.log(posterior + step.x0_weight**2 * 0.25**2 * point.sigma**2 / spread)
        else:
            log_variance = Prediction(variance=variance).log_variance(None, step)
        return denoise(x, point)._replace(log_variance=log_variance)

    return call


SMALL = {1000: 0.24628, 250: 0.23733, 50: 0.20504, 10: 0.12454}
LARGE = {1000: 0.25094, 250: 0.25439, 50: 0.27410, 10: 0.40821}


@pytest.mark.parametrize(("variance", "table"), [("fixed_small", SMALL), ("fixed_large", LARGE)])
def test_moments_on_gaussian_data(kit, variance, table):
    for steps, expected in table.items():
        denoise = with_variance(kit.gaussian(), variance)
        mean, std = kit.gaussian_moments(DDPM(steps=steps), DiscretePath(), denoise)
        np.testing.assert_allclose([mean, std], [0.499999, expected], rtol=0, atol=6e-6)


@pytest.mark.parametrize("steps", [10, 50, 250])
def test_optimal_variance_is_right_at_any_number_of_steps(kit, steps):
    denoise = with_variance(kit.gaussian(), "optimal")
    _, std = kit.gaussian_moments(DDPM(steps=steps), DiscretePath(), denoise)
    np.testing.assert_allclose(std, 0.2498, atol=6e-5)


def test_optimal_variance_lies_between_the_fixed_ones():
    path = DiscretePath()
    step, point = path.transition(np.arange(1, 1001) / 1000), path.point(np.arange(1, 1001) / 1000)
    for std in (0.25, 1.0):
        spread = point.alpha**2 * std**2 + point.sigma**2
        posterior = np.exp(step.log_variance_min) * (1 - step.to_data)
        optimal = posterior + step.x0_weight**2 * std**2 * point.sigma**2 / spread
        assert np.all(optimal >= posterior) and np.all(optimal <= np.exp(step.log_variance_max) * (1 + 1e-12))


@pytest.mark.parametrize("steps", [1000, 250, 10])
def test_unit_data_and_large_variance_keep_unit_variance(kit, steps):
    path, sampler = DiscretePath(), DDPM(steps=steps)
    denoise = with_variance(kit.gaussian(0.0, 1.0), "fixed_large")
    # Of a linear walk without a mean: one run from x = 1, and one for the noise of each step.
    start = np.zeros((1 + steps, 1, 1, 1))
    start[0] = 1.0
    noise = np.zeros((steps, *start.shape))
    noise[np.arange(steps), 1 + np.arange(steps)] = 1.0
    states = kit.walk(sampler, path, denoise, start, noise)
    std = np.sqrt(np.sum(states.reshape(steps, -1) ** 2, axis=1))
    np.testing.assert_allclose(std[:-1], 1.0, rtol=1e-12)
    # The last step leaves its noise out.
    last_beta = 1 - path.alpha_bar[0]
    np.testing.assert_allclose(std[-1], np.sqrt(1 - last_beta), rtol=1e-12)
    np.testing.assert_allclose(std[-1], 0.99995, atol=1e-8)


def test_point_mass_is_returned_exactly(kit):
    denoise = with_variance(kit.from_x0(lambda x, point: 0.3 + 0 * x), "fixed_small")
    for steps in (1, 10, 1000):
        mean, std = kit.gaussian_moments(DDPM(steps=steps), DiscretePath(), denoise)
        np.testing.assert_allclose([mean, std], [0.3, 0], atol=1e-12)


def test_works_on_a_continuous_path(kit):
    denoise = with_variance(kit.gaussian(), "fixed_small")
    mean, std = kit.gaussian_moments(DDPM(steps=1000), VPPath(), denoise)
    np.testing.assert_allclose([mean, std], [0.5, 0.2463], atol=5e-4)


GD_CASES = ("learned_range_10", "learned_range_20", "fixed_large_ddim20")


@pytest.mark.parametrize("clipped", [0, 1])
@pytest.mark.parametrize("name", GD_CASES)
def test_reference_loops(golden, kit, name, clipped):
    data = golden("gd_loops")
    prediction = Prediction(variance="learned_range" if name.startswith("learned") else "fixed_large")
    grid, steps = ("ddim", 20) if "ddim" in name else ("adm", int(name[-2:]))
    sampler, path = DDPM(steps=steps, grid=grid), DiscretePath()
    timesteps = path.point(sampler.times(path)[:-1]).timestep
    np.testing.assert_array_equal(timesteps, data[f"out/{name}/timesteps"][::1])
    denoise = kit.golden_denoise(data["config"], prediction, clipped)
    x, noise = kit.to_nhwc(data["in/x"]), kit.to_nhwc(data["in/noise"])
    expected = kit.to_nhwc(data[f"out/{name}/clip{clipped}/p_sample_loop"])
    np.testing.assert_allclose(kit.walk(sampler, path, denoise, x, noise), expected[1:], rtol=0, atol=1e-8)
    expected = kit.to_nhwc(data[f"out/f32/{name}/clip{clipped}/p_sample_loop"])
    found = kit.walk(sampler, path, denoise, x, noise, dtype=np.float32)
    np.testing.assert_allclose(found, expected[1:], rtol=0, atol=1e-4 * max(1, expected.std()))


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    "name", ["ddpm_fixed_small", "ddpm_fixed_small_noclip", "ddpm_learned_range", "ddpm_fixed_large_trailing"]
)
def test_diffusers_scheduler(golden, kit, name, steps):
    data = golden("sched_ddpm_ddim")
    case = next(case["kwargs"] for case in data["config"]["cases"] if case["name"] == name)
    path = DiscretePath(schedule=case["beta_schedule"], beta_start=case["beta_start"], beta_end=case["beta_end"])
    prediction = Prediction(variance=case["variance_type"])
    sampler = DDPM(steps=steps, grid=case.get("timestep_spacing", "leading"))
    denoise = kit.golden_denoise(data["config"], prediction, case["clip_sample"])
    x, noise = kit.to_nhwc(data["in/x"]), kit.to_nhwc(data["in/noise"])
    times = sampler.times(path)
    np.testing.assert_array_equal(path.point(times[:-1]).timestep, data[f"out/{name}/n{steps}/timesteps"])
    for dtype, folder in ((np.float64, "out"), (np.float32, "out/f32")):
        expected = kit.to_nhwc(data[f"{folder}/{name}/n{steps}/x"])[1:]
        found = kit.walk(sampler, path, denoise, x, noise, dtype=dtype)
        if name.endswith("trailing"):
            # diffusers leaves the noise out at timestep 0 only, which a trailing grid never visits.
            beta = 1 - path.alpha_bar[np.round(times[-2] * 1000).astype(int) - 1]
            found = np.append(found[:-1], found[-1:] + np.sqrt(beta) * noise[steps - 1], axis=0)
        tolerance = 1e-8 if dtype == np.float64 else 1e-4 * max(1, expected.std())
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


STEP_CASES = ("learned_range", "learned_range_respaced", "fixed_large", "fixed_small_xstart_cosine")


@pytest.mark.parametrize(("dtype", "folder"), [(np.float64, "out"), (np.float32, "out/f32")])
@pytest.mark.parametrize("clipped", [0, 1])
@pytest.mark.parametrize("name", STEP_CASES)
def test_single_steps(golden, kit, name, clipped, dtype, folder):
    """p_mean_variance, the posterior and one ancestral step at t = 0, 1, 5 and the last."""
    data = golden("gd_steps")
    case = next(case for case in data["config"]["cases"] if case["name"] == name)
    schedule = {"linear": "linear", "squaredcos_cap_v2": "cosine"}[case["noise_schedule"]]
    path = DiscretePath(schedule=schedule, respacing=case["timestep_respacing"])
    fixed = "fixed_small" if case["sigma_small"] else "fixed_large"
    prediction = Prediction(
        "x0" if case["predict_xstart"] else "epsilon", "learned_range" if case["learn_sigma"] else fixed
    )
    denoise = kit.golden_denoise(data["config"], prediction, clipped)
    with jax.enable_x64(dtype == np.float64):
        x, noise, x0 = (jnp.asarray(kit.to_nhwc(data[f"in/{key}"]), dtype) for key in ("x", "noise", "x_start"))
        n = np.array(data["config"]["t"]) % path.chain_length
        time = jnp.asarray((n + 1) / path.chain_length, dtype)

        def evaluate(x):
            step = align(path.transition(time), x)
            point = align(path.point(time), x)
            found = denoise(x, path.point(time)._replace(transition=path.transition(time)))
            mean = step.x0_weight * found.x0 + step.x_weight * x
            spread = jnp.exp(0.5 * found.log_variance)
            # The stored log-variance is clipped at n = 0; the posterior variance itself, the small one, is 0 there.
            small = float(prediction.variance == "fixed_small")
            q_log_variance = jnp.broadcast_to(step.log_variance_min, x.shape)
            prefix = f"clip{clipped}/"
            return {
                prefix + "p_mean_variance/mean": mean,
                prefix + "p_mean_variance/log_variance": jnp.broadcast_to(found.log_variance, x.shape),
                prefix + "p_mean_variance/variance": jnp.broadcast_to(spread**2 * (1 - small * step.to_data), x.shape),
                prefix + "p_mean_variance/pred_xstart": found.x0,
                prefix + "p_sample": mean + (1 - step.to_data) * spread * noise,
                "q_posterior/mean": step.x0_weight * x0 + step.x_weight * x,
                "q_posterior/log_variance": q_log_variance,
                "q_posterior/variance": jnp.exp(q_log_variance) * (1 - step.to_data),
                "q_mean_variance/mean": point.alpha * x0,
                "q_mean_variance/variance": jnp.broadcast_to(point.sigma**2, x.shape),
                "q_mean_variance/log_variance": jnp.broadcast_to(2 * jnp.log(point.sigma), x.shape),
            }

        found = jax.jit(evaluate)(x)
    for key, value in found.items():
        expected = kit.to_nhwc(data[f"{folder}/{name}/{key}"])
        largest = np.abs(expected).max()
        tolerance = 1e-8 + 1e-11 * largest if dtype == np.float64 else 1e-4 * largest
        np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance, err_msg=key)


def test_bad_requests():
    with pytest.raises(UserError, match="1001 is outside 1…1000"):
        DDPM(steps=1001).times(DiscretePath())
    with pytest.raises(UserError, match="no integer stride visits 37"):
        DDPM(steps=37, grid="ddim").times(DiscretePath())
