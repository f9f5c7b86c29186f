import numpy as np
import pytest

from diffusion_jax.diffusion.grids import karras_kappa
from diffusion_jax.diffusion.paths import DiscretePath, LinearPath, VEPath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDIM, EDM
from diffusion_jax.errors import UserError

PATH = VEPath(kappa_min=0.002, kappa_max=80)


def test_grid():
    kappa = karras_kappa(80, 0.002, 18)
    np.testing.assert_allclose(kappa[:3], [80, 57.5860, 40.7856], rtol=2e-6)
    sampler = EDM(steps=18, kappa_min=0.002)
    plan = sampler.plan(PATH, sampler.times(PATH))
    np.testing.assert_allclose(plan.point.sigma[::2], kappa, rtol=1e-9)
    assert len(plan.x) == 2 * 18 - 1


def test_moments_on_gaussian_data(kit):
    for steps, std in {18: 0.267054, 36: 0.253739, 72: 0.250871, 144: 0.250204}.items():
        mean, found = kit.gaussian_moments(EDM(steps=steps, kappa_min=0.002), PATH, kit.gaussian())
        np.testing.assert_allclose(found, std, rtol=0, atol=6e-7)
        np.testing.assert_allclose(mean, 0.498438, atol=2e-4)
    for steps, std in {18: 0.207869, 36: 0.228558, 72: 0.239185}.items():
        sampler = EDM(steps=steps, kappa_min=0.002, method="euler")
        np.testing.assert_allclose(kit.gaussian_moments(sampler, PATH, kit.gaussian())[1], std, rtol=0, atol=6e-7)


def test_exact_moments(kit):
    """The ODE carries N(0, 80²) to a law whose mean lags behind that of the data."""
    share = 0.25 / np.sqrt(0.25**2 + 80**2)
    np.testing.assert_allclose([0.5 - 0.5 * share, 80 * share], [0.498438, 0.249999], rtol=0, atol=6e-7)
    mean, std = kit.gaussian_moments(EDM(steps=512, kappa_min=0.002), PATH, kit.gaussian())
    np.testing.assert_allclose([mean, std], [0.498438, 0.249999], rtol=0, atol=3e-5)


def test_heun_has_second_order(kit):
    exact = 0.249999
    errors = [
        abs(kit.gaussian_moments(EDM(steps=n, kappa_min=0.002), PATH, kit.gaussian())[1] - exact) for n in (36, 72, 144)
    ]
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 2, atol=0.15)


@pytest.mark.parametrize(("s_noise", "std", "digit"), [(1.003, 0.25133, 1e-5), (1.0, 0.250578, 1e-6)])
def test_churn(kit, s_noise, std, digit):
    sampler = EDM(steps=256, kappa_min=0.002, s_churn=40, s_min=0.05, s_max=50, s_noise=s_noise)
    found = kit.gaussian_moments(sampler, PATH, kit.gaussian())
    np.testing.assert_allclose(found, [0.5, std], rtol=0, atol=0.6 * digit)


@pytest.mark.parametrize("s_churn", [4.0, 1000.0])
def test_how_far_churn_goes(s_churn):
    """Levels between s_min and s_max rise by 1 + γ, γ = min(s_churn/N, √2 − 1), the others not at all."""
    sampler = EDM(steps=20, kappa_min=0.002, s_churn=s_churn, s_min=0.05, s_max=50, s_noise=1.003)
    plan, kappa = sampler.plan(PATH, sampler.times(PATH)), karras_kappa(80, 0.002, 20)
    inside = (kappa >= 0.05) & (kappa <= 50)
    assert 0 < inside.sum() < 20
    raised = kappa * (1 + min(s_churn / 20, np.sqrt(2) - 1) * inside)
    np.testing.assert_allclose(plan.point.sigma[::2], raised, rtol=1e-9)
    np.testing.assert_allclose(plan.noise_before[::2], 1.003 * np.sqrt(raised**2 - kappa**2), rtol=1e-6, atol=1e-9)
    assert np.all(plan.noise_before[1::2] == 0)


@pytest.mark.parametrize("path", [VPPath(), DiscretePath(), LinearPath()])
def test_every_path_is_the_same_in_its_scaled_coordinates(kit, path):
    """x/α obeys one ODE, so a run on any path equals the run on the VE path."""
    options = {"steps": 12, "kappa_max": 12.0, "kappa_min": 0.05, "s_churn": 5.0, "s_max": 11.0}
    rng = np.random.default_rng(0)
    start, noise = rng.normal(size=(3, 1, 1, 1)), rng.normal(size=(23, 2, 3, 1, 1, 1))
    sampler = EDM(**options)
    alpha = float(path.point(np.float64(sampler.times(path)[0])).alpha)
    found = kit.walk(sampler, path, kit.gaussian(), 12 * alpha * start, noise)[-1]
    expected = kit.walk(sampler, PATH, kit.gaussian(), 12 * start, noise)[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_chain_has_no_noise_to_churn_to_beyond_its_last_timestep():
    sampler, path = EDM(steps=5, s_churn=2.0), DiscretePath(schedule="scaled_linear")
    plan = sampler.plan(path, sampler.times(path))
    assert plan.noise_before[0] == 0 and np.all(plan.noise_before[2:-1:2] > 0)
    np.testing.assert_allclose(plan.point.timestep[0], 999)


def test_euler_is_ddim(kit):
    path, start = VPPath(), np.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
    edm = kit.walk(EDM(steps=10, method="euler"), path, kit.mixture, start)
    ddim = DDIM(steps=10)
    np.testing.assert_allclose(
        kit.walk(ddim, path, kit.mixture, start, times=EDM(steps=10).times(path)), edm, rtol=0, atol=1e-12
    )


# diffusers interpolates noise levels between timesteps in its own ways, so both come from the file.
DIFFUSERS = {
    "euler": EDM(method="euler"),
    "euler_karras": EDM(method="euler"),
    "euler_leading": EDM(method="euler"),
    "euler_ancestral": DDIM(eta=1.0),
    "heun": EDM(),
    "heun_karras": EDM(),
}


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_scheduler(golden, kit, name, steps):
    data = golden("sched_sigma")
    prefix = f"out/{name}/n{steps}/"
    sigmas, timesteps = data[prefix + "sigmas"], data[prefix + "timesteps"]
    if name.startswith("heun"):  # lists both stages
        sigmas, timesteps = np.append(sigmas[:-1:2], 0.0), timesteps[::2]
    chain = DiscretePath(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    if "karras" in name:
        ends = chain.point(np.array([1.0, 1 / 1000])).kappa
        np.testing.assert_allclose(sigmas[:-1], karras_kappa(ends[0], ends[1], steps), rtol=1e-10)
    elif steps == 10:
        # At 20 steps linspace falls between timesteps, where κ is interpolated linearly.
        np.testing.assert_allclose(chain.point((timesteps + 1) / 1000).kappa, sigmas[:-1], rtol=1e-10)
    path = kit.ScheduledPath(sigmas, timesteps)
    denoise = kit.golden_denoise(data["config"], Prediction())
    noise = kit.to_nhwc(data["in/noise"]) if "ancestral" in name else None
    for dtype, folder in ((np.float64, "out/"), (np.float32, "out/f32/")):
        # Their state is x/α throughout.
        expected = kit.to_nhwc(data[prefix.replace("out/", folder) + "x"])
        start = expected[0] / np.sqrt(1 + sigmas[0] ** 2)
        found = kit.walk(DIFFUSERS[name], path, denoise, start, noise, times=path.times, dtype=dtype)
        after = sigmas[1:] if not name.startswith("heun") else np.repeat(sigmas[1:], 2)[: len(found)]
        found = found * np.sqrt(1 + after**2).reshape(-1, 1, 1, 1, 1)
        tolerance = 1e-8 if dtype == np.float64 else 1e-4 * max(1, expected.std())
        np.testing.assert_allclose(found, expected[1:], rtol=0, atol=tolerance)


def test_bad_options():
    with pytest.raises(UserError, match="did you mean 'heun'"):
        EDM(method="heunn")
    with pytest.raises(UserError, match="the largest noise level of path 'ddpm'"):
        EDM(kappa_max=200.0).times(DiscretePath())
