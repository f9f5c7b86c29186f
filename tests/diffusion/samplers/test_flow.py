"""Flow samplers: the probability-flow ODE on interpolants and the SDEs with the same marginals."""

import numpy as np
import pytest

from diffusion_jax.diffusion.grids import shift_for_resolution, shift_time
from diffusion_jax.diffusion.paths import GVPPath, LinearPath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDIM, RK45, InterpolantSDE, ProbabilityFlow, Renoise
from diffusion_jax.errors import UserError


def test_moments_on_gaussian_data(kit):
    for steps, std in {5: 0.156786, 10: 0.200561, 25: 0.229176, 50: 0.239381, 250: 0.247840}.items():
        found = kit.gaussian_moments(ProbabilityFlow(steps=steps), LinearPath(), kit.gaussian())
        np.testing.assert_allclose(found, [0.5, std], rtol=0, atol=6e-7)
    for steps, std in {5: 0.259836, 10: 0.253710, 25: 0.250717, 50: 0.250189}.items():
        found = kit.gaussian_moments(ProbabilityFlow(steps=steps, method="heun"), LinearPath(), kit.gaussian())
        np.testing.assert_allclose(found, [0.5, std], rtol=0, atol=6e-7)
    for steps, mean in {10: 0.519811, 50: 0.504123}.items():
        found = kit.gaussian_moments(ProbabilityFlow(steps=steps), GVPPath(), kit.gaussian())
        np.testing.assert_allclose(found[0], mean, rtol=0, atol=6e-7)


def test_one_euler_step_returns_the_data_mean(kit):
    found = kit.gaussian_moments(ProbabilityFlow(steps=1), LinearPath(), kit.gaussian())
    np.testing.assert_allclose(found, [0.5, 0], atol=1e-15)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_point_mass_is_exact_on_the_straight_path(kit, steps):
    found = kit.gaussian_moments(ProbabilityFlow(steps=steps), LinearPath(), kit.from_x0(lambda x, point: 0.3 + 0 * x))
    np.testing.assert_allclose(found, [0.3, 0], atol=1e-14)


def test_euler_on_the_straight_path_is_ddim(kit):
    start, path = np.linspace(-2, 2, 5).reshape(5, 1, 1, 1), LinearPath()
    euler, ddim = (kit.walk(s, path, kit.mixture, start) for s in (ProbabilityFlow(steps=9), DDIM(steps=9)))
    np.testing.assert_allclose(euler, ddim, rtol=0, atol=1e-13)


def test_probability_flow_euler_on_the_vp_path(kit):
    for steps, std in {100: 0.24497, 250: 0.24808, 1000: 0.24967}.items():
        sampler = ProbabilityFlow(steps=steps, final="none")
        np.testing.assert_allclose(kit.gaussian_moments(sampler, VPPath(), kit.gaussian())[1], std, rtol=0, atol=6e-6)


@pytest.mark.parametrize(("method", "calls"), [("heun", 2), ("rk4", 4)])
def test_last_step_to_the_data_of_a_vp_path_is_euler(kit, method, calls):
    sampler = ProbabilityFlow(steps=40, method=method)
    vp, linear = (sampler.checked_plan(path, sampler.times(path)) for path in (VPPath(), LinearPath()))
    assert (len(vp.x), len(linear.x)) == (39 * calls + 1, 40 * calls)
    # The step covers what is left of the noise at t = 1e-3.
    np.testing.assert_allclose(kit.gaussian_moments(sampler, VPPath(), kit.gaussian()), [0.4992, 0.25], atol=3e-3)


@pytest.mark.parametrize(("size", "steps", "std", "digit"), [(0.04, 250, 0.240055, 1e-6), (0.001, 250, 0.24969, 1e-5)])
def test_last_step_of_the_sde_leaves_a_bias(kit, size, steps, std, digit):
    sampler = InterpolantSDE(steps=steps, diffusion="linear", last_step_size=size)
    found = kit.gaussian_moments(sampler, LinearPath(), kit.gaussian())
    np.testing.assert_allclose(found, [0.5, std], rtol=0, atol=0.6 * digit)
    calls = len(sampler.plan(LinearPath(), sampler.times(LinearPath())).x)
    assert calls == steps


def test_that_bias_does_not_go_away_with_more_steps(kit):
    sampler = InterpolantSDE(steps=1400, diffusion="linear", last_step_size=0.04)
    np.testing.assert_allclose(kit.gaussian_moments(sampler, LinearPath(), kit.gaussian())[1], 0.240023, atol=6e-6)


@pytest.mark.parametrize("diffusion", ["sigma", "kl", "kl_regularized", "constant", "linear", "decreasing", "sine"])
def test_every_diffusion_keeps_the_marginals(kit, diffusion):
    """With many steps each w gives the data, up to its own bias."""
    path = LinearPath(time_max=0.999) if diffusion == "kl" else LinearPath()
    # A constant w grows beyond all bounds beside g² near the data, so a small one.
    norm = 0.1 if diffusion == "constant" else 1.0
    options = {"last_step_size": 0.01, "norm": norm, "losses": (0.5, 1.0), "eta": 0.5}
    sampler = InterpolantSDE(steps=380, diffusion=diffusion, **options)
    mean, std = kit.gaussian_moments(sampler, path, kit.gaussian())
    np.testing.assert_allclose([mean, std], [0.5, 0.25], atol=6e-3)


def test_regularized_diffusion_has_its_limit_in_pure_noise():
    sampler = InterpolantSDE(diffusion="kl_regularized", losses=(0.2, 0.8), eta=0.3)
    point = LinearPath().point(np.float64(1.0))
    np.testing.assert_allclose(sampler.intensity(point), np.sqrt(0.8 / (2 * 0.3)))
    point = LinearPath().point(np.float64(0.5))
    kl = 2 * 0.5 / 0.5
    np.testing.assert_allclose(sampler.intensity(point), kl * np.sqrt(0.5 / (0.5 + 2 * 0.3 * kl**2)))


def test_renoise_keeps_nothing_but_the_prediction(kit):
    moments = kit.gaussian_moments(Renoise(steps=3), LinearPath(), kit.from_x0(lambda x, point: 0.3 + 0 * x))
    np.testing.assert_allclose(moments, [0.3, 0], atol=1e-15)
    plan = Renoise(steps=3).plan(LinearPath(), Renoise(steps=3).times(LinearPath()))
    np.testing.assert_allclose(plan.noise, [2 / 3, 1 / 3, 0], atol=1e-15)
    np.testing.assert_allclose(plan.x0, [1 / 3, 2 / 3, 1], atol=1e-15)


def test_shift():
    time = np.linspace(0, 1, 11)
    shifted = shift_time(time, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and np.all(shifted[1:-1] > time[1:-1])
    inner = LinearPath().point(time[1:-1]), LinearPath().point(shifted[1:-1])
    np.testing.assert_allclose(np.log(inner[1].snr / inner[0].snr), -2 * np.log(3.0))
    # In the time of LightningDiT, from noise to data, 0.3 is our 3.33.
    np.testing.assert_allclose(1 - shift_time(1 - time, 0.3), shift_time(time, 1 / 0.3), atol=1e-12)
    np.testing.assert_allclose(shift_for_resolution(1024**2, 1024**2 / 9), 3.0)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("shift", [1, 3])
def test_diffusers_flow_matching_scheduler(golden, kit, shift, steps):
    data = golden("sched_sigma")
    prefix = f"out/flow_match_euler_shift{shift}/n{steps}/"
    path = LinearPath(time_scale=1000.0)
    sigmas = data[prefix + "sigmas"]
    # Their schedule starts at 1/1000 and shifts the ends before it spaces the steps, then shifts again.
    ends = shift_time(np.array([1.0, 1e-3]), shift)
    np.testing.assert_allclose(shift_time(np.linspace(*ends, steps), shift), sigmas[:-1], rtol=1e-10)
    np.testing.assert_allclose(path.point(sigmas[:-1]).timestep, data[prefix + "timesteps"], rtol=1e-10)
    denoise = kit.golden_denoise(data["config"], Prediction("velocity"))
    for dtype, folder in ((np.float64, "out/"), (np.float32, "out/f32/")):
        expected = kit.to_nhwc(data[prefix.replace("out/", folder) + "x"])[1:]
        found = kit.walk(ProbabilityFlow(), path, denoise, kit.to_nhwc(data["in/x"]), times=sigmas, dtype=dtype)
        tolerance = 1e-8 if dtype == np.float64 else 1e-4 * max(1, expected.std())
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InterpolantSDE(diffusion="sigm"), "did you mean 'sigma'"),
        (lambda: InterpolantSDE(last_step="men"), "did you mean 'mean'"),
        (lambda: InterpolantSDE(final="data"), "final must be 'none'"),
        (lambda: InterpolantSDE(diffusion="kl_regularized"), "needs losses"),
        (lambda: InterpolantSDE(diffusion="kl").check(LinearPath()), "time_start below 1"),
        (lambda: ProbabilityFlow(method="rk5"), "did you mean 'rk4'"),
        (lambda: ProbabilityFlow(shift=0.0), "shift must be positive"),
        (lambda: ProbabilityFlow(grid="log_snr", time_start=1.0).times(LinearPath()), "noise levels inf"),
        (lambda: RK45(rtol=-1.0), "must be positive"),
        (lambda: RK45(time_end=2.0).check(LinearPath()), "need 0 ≤ time_end < time_start ≤ 1"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(UserError, match=message):
        build()
