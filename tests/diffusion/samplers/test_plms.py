import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import Denoised, denoiser
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.paths import DiscretePath, VPPath
from diffusion_jax.diffusion.point import align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import PLMS
from diffusion_jax.errors import UserError


def constant_noise(x, point):
    noise = jnp.full_like(x, 0.3)
    at = align(point, x)
    return Denoised((x - at.sigma * noise) / at.alpha, noise)


@pytest.mark.parametrize("warmup", ["euler", "runge_kutta"])
@pytest.mark.parametrize("steps", [4, 9])
def test_constant_noise_is_integrated_exactly(kit, steps, warmup):
    path, start = VPPath(), np.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
    sampler = PLMS(steps=steps, warmup=warmup, final="none")
    times = sampler.times(path)
    s, t = path.point(np.float64(times[0])), path.point(np.float64(times[-1]))
    expected = t.alpha / s.alpha * start + (t.sigma - t.alpha * s.kappa) * 0.3
    np.testing.assert_allclose(kit.walk(sampler, path, constant_noise, start)[-1], expected, rtol=1e-11)


def test_calls():
    path = VPPath()
    for warmup, extra in (("euler", 1), ("runge_kutta", 9)):
        sampler = PLMS(steps=10, warmup=warmup)
        assert len(sampler.plan(path, sampler.times(path)).x) == 10 + extra


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    ("name", "warmup", "grid"), [("pndm_plms", "euler", "ldm"), ("pndm_prk", "runge_kutta", "leading")]
)
def test_diffusers_scheduler(golden, kit, name, warmup, grid, steps):
    data = golden("sched_multistep")
    kwargs = next(case["kwargs"] for case in data["config"]["cases"] if case["name"] == name)
    path = DiscretePath(schedule=kwargs["beta_schedule"], beta_start=kwargs["beta_start"], beta_end=kwargs["beta_end"])
    sampler = PLMS(steps=steps, warmup=warmup, grid=grid, final="first")
    prefix = f"out/{name}/n{steps}/"
    plan = sampler.plan(path, sampler.times(path))
    np.testing.assert_allclose(plan.point.timestep, data[prefix + "timesteps"])
    denoise = kit.golden_denoise(data["config"], Prediction())
    x = kit.to_nhwc(data["in/x"])
    found, expected = kit.walk(sampler, path, denoise, x), kit.to_nhwc(data[prefix + "x"])[1:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    expected = kit.to_nhwc(data[prefix.replace("out/", "out/f32/") + "x"])[1:]
    found = kit.walk(sampler, path, denoise, x, dtype=np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, expected.std()))


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", ["plms", "plms_guided"])
def test_latent_diffusion_sampler(golden, kit, name, steps):
    data = golden("ldm_samplers")
    case = next(case for case in data["config"]["cases"] if case["name"] == name)
    path = DiscretePath(schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    sampler = PLMS(steps=steps, grid="ldm", final="first")
    times, prefix = sampler.times(path), f"out/{name}/n{steps}/"
    alpha_bar = path.point(times).alpha ** 2
    np.testing.assert_array_equal(path.point(times[:-1]).timestep, np.sort(data[prefix + "timesteps"])[::-1])
    np.testing.assert_allclose(alpha_bar[:-1], data[prefix + "ddim_alphas"][::-1], rtol=1e-10)
    np.testing.assert_allclose(alpha_bar[1:], data[prefix + "ddim_alphas_prev"][::-1], rtol=1e-10)
    assert np.all(data[prefix + "ddim_sigmas"] == 0) and sampler.plan(path, times).noise is None
    for dtype, folder in ((np.float64, "out/"), (np.float32, "out/f32/")):
        with jax.enable_x64(dtype == np.float64):
            cond, null = (jnp.asarray(data[f"in/{key}"], dtype) for key in ("cond", "uncond"))
            model = kit.reference_model(data["config"]["model"])
            denoise = denoiser(ClassifierFreeGuidance(case.get("guidance", 1.0))(model, cond, null), Prediction())
        found = kit.walk(sampler, path, denoise, kit.to_nhwc(data["in/x"]), dtype=dtype)
        # The first of our rows is the trial step, which the LDM code does not record.
        expected = kit.to_nhwc(data[f"{folder}{name}/n{steps}/x"])[1:]
        tolerance = 1e-8 if dtype == np.float64 else 1e-4 * max(1, expected.std())
        np.testing.assert_allclose(found[1:], expected, rtol=0, atol=tolerance)


def test_bad_options():
    with pytest.raises(UserError, match="did you mean 'runge_kutta'"):
        PLMS(warmup="rungekutta")
    with pytest.raises(UserError, match="steps 3 < 4"):
        PLMS(warmup="runge_kutta", steps=3)
