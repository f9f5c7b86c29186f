import functools

import jax
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import denoiser
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.paths import DiscretePath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDIM, DDPM, DDIMInversion
from diffusion_jax.diffusion.transforms import clip
from diffusion_jax.errors import UserError


def test_moments_on_gaussian_data(kit):
    for steps, expected in {1000: 0.24853, 250: 0.24475, 50: 0.22513}.items():
        _, std = kit.gaussian_moments(DDIM(steps=steps, grid="adm"), DiscretePath(), kit.gaussian())
        np.testing.assert_allclose(std, expected, atol=6e-6)


def test_eta_one_is_ancestral_sampling_with_the_small_variance(kit):
    path, rng = DiscretePath(), np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 2, 2, 1)), rng.normal(size=(20, 2, 2, 2, 1))
    denoise = kit.golden_denoise({"model": {"a": 0.7, "b": 0.5}}, Prediction(variance="fixed_small"))
    ddim = kit.walk(DDIM(steps=20, eta=1.0, grid="adm"), path, denoise, x, noise)
    ddpm = kit.walk(DDPM(steps=20), path, denoise, x, noise)
    np.testing.assert_allclose(ddim, ddpm, rtol=0, atol=1e-12)


def test_one_step_returns_the_denoised_start(kit):
    x = np.linspace(-2, 2, 6).reshape(1, 2, 3, 1)
    path = DiscretePath()
    end = kit.walk(DDIM(steps=1), path, kit.gaussian(), x)[-1]
    np.testing.assert_allclose(end, kit.gaussian()(x, path.point(np.float64(1.0))).x0, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_point_mass_is_returned_exactly(kit, eta):
    for steps in (1, 3, 50):
        moments = kit.gaussian_moments(
            DDIM(steps=steps, eta=eta), DiscretePath(), kit.from_x0(lambda x, p: 0.3 + 0 * x)
        )
        np.testing.assert_allclose(moments, [0.3, 0], atol=1e-12)


def test_works_on_a_continuous_path(kit):
    mean, std = kit.gaussian_moments(DDIM(steps=1000), VPPath(), kit.gaussian())
    np.testing.assert_allclose([mean, std], [0.4993, 0.2486], atol=5e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clipped", [0, 1])
@pytest.mark.parametrize("name", ["learned_range_10", "learned_range_20", "fixed_large_ddim20"])
def test_reference_loops(golden, kit, name, clipped, eta):
    data = golden("gd_loops")
    prediction = Prediction(variance="learned_range" if name.startswith("learned") else "fixed_large")
    denoise = kit.golden_denoise(data["config"], prediction, clipped)
    grid, steps = ("ddim", 20) if "ddim" in name else ("adm", int(name[-2:]))
    sampler, path = DDIM(steps=steps, grid=grid, eta=eta), DiscretePath()
    x, noise = kit.to_nhwc(data["in/x"]), kit.to_nhwc(data["in/noise"])
    expected = kit.to_nhwc(data[f"out/{name}/clip{clipped}/ddim_eta{eta}"])
    np.testing.assert_allclose(kit.walk(sampler, path, denoise, x, noise), expected[1:], rtol=0, atol=1e-8)
    expected = kit.to_nhwc(data[f"out/f32/{name}/clip{clipped}/ddim_eta{eta}"])
    found = kit.walk(sampler, path, denoise, x, noise, dtype=np.float32)
    np.testing.assert_allclose(found, expected[1:], rtol=0, atol=1e-4 * max(1, expected.std()))


@functools.cache
def clipped_data_only(denoise):
    """What diffusers does by default: it clips the data and keeps the noise as it was predicted."""

    def call(x, point):
        found = denoise(x, point)
        return found._replace(x0=clip(found.x0, point))

    return call


DIFFUSERS = ("ddim_eta0", "ddim_eta0.5", "ddim_eta1", "ddim_clip", "ddim_sd", "ddim_trailing", "ddim_v_prediction")


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_scheduler(golden, kit, name, steps):
    data = golden("sched_ddpm_ddim")
    case = next(case for case in data["config"]["cases"] if case["name"] == name)
    kwargs = case["kwargs"]
    path = DiscretePath(schedule=kwargs["beta_schedule"], beta_start=kwargs["beta_start"], beta_end=kwargs["beta_end"])
    sampler = DDIM(
        steps=steps,
        eta=case["step"]["eta"],
        grid="ldm" if "steps_offset" in kwargs else kwargs.get("timestep_spacing", "leading"),
        final="data" if kwargs.get("set_alpha_to_one", True) else "first",
    )
    prediction = Prediction("v" if "prediction_type" in kwargs else "epsilon")
    np.testing.assert_array_equal(path.point(sampler.times(path)[:-1]).timestep, data[f"out/{name}/n{steps}/timesteps"])
    denoise = kit.golden_denoise(data["config"], prediction)
    if kwargs["clip_sample"]:
        denoise = clipped_data_only(denoise)
    x, noise = kit.to_nhwc(data["in/x"]), kit.to_nhwc(data["in/noise"])
    expected = kit.to_nhwc(data[f"out/{name}/n{steps}/x"])[1:]
    np.testing.assert_allclose(kit.walk(sampler, path, denoise, x, noise), expected, rtol=0, atol=1e-8)
    expected = kit.to_nhwc(data.get(f"out/f32/{name}/n{steps}/x"))[1:]
    found = kit.walk(sampler, path, denoise, x, noise, dtype=np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, expected.std()))


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", ["ddim_eta0", "ddim_eta1", "ddim_eta0.5_guided"])
def test_latent_diffusion_sampler(golden, kit, name, steps):
    data = golden("ldm_samplers")
    case = next(case for case in data["config"]["cases"] if case["name"] == name)
    path = DiscretePath(schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    sampler = DDIM(steps=steps, eta=case["eta"], grid="ldm", final="first")
    times, prefix = sampler.times(path), f"out/{name}/n{steps}/"
    # The LDM code lists timesteps, alphas and sigmas upwards.
    np.testing.assert_array_equal(path.point(times[:-1]).timestep, np.sort(data[prefix + "timesteps"])[::-1])
    alpha_bar = path.point(times).alpha ** 2
    np.testing.assert_allclose(alpha_bar[:-1], data[prefix + "ddim_alphas"][::-1], rtol=1e-10)
    np.testing.assert_allclose(alpha_bar[1:], data[prefix + "ddim_alphas_prev"][::-1], rtol=1e-10)
    fresh = sampler.plan(path, times).noise
    np.testing.assert_allclose(
        np.zeros(steps) if fresh is None else fresh, data[prefix + "ddim_sigmas"][::-1], rtol=1e-10, atol=1e-12
    )
    x, noise = kit.to_nhwc(data["in/x"]), kit.to_nhwc(data["in/noise"])
    for dtype, folder in ((np.float64, "out/"), (np.float32, "out/f32/")):
        with jax.enable_x64(dtype == np.float64):
            cond, null = (jax.numpy.asarray(data[f"in/{key}"], dtype) for key in ("cond", "uncond"))
            model = kit.reference_model(data["config"]["model"])
            denoise = denoiser(ClassifierFreeGuidance(case.get("guidance", 1.0))(model, cond, null), Prediction())
        expected = kit.to_nhwc(data[f"{folder}{name}/n{steps}/x"])[1:]
        tolerance = 1e-8 if dtype == np.float64 else 1e-4 * max(1, expected.std())
        found = kit.walk(sampler, path, denoise, x, noise, dtype=dtype)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_temperature_scales_the_fresh_noise(kit):
    path, rng = DiscretePath(), np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 2, 2, 1)), rng.normal(size=(5, 2, 2, 2, 1))
    cold, plain = DDIM(steps=5, eta=0.8, temperature=0.5), DDIM(steps=5, eta=0.8)
    found = kit.walk(cold, path, kit.gaussian(), x, noise)
    np.testing.assert_allclose(found, kit.walk(plain, path, kit.gaussian(), x, 0.5 * noise), rtol=1e-12)


def test_inversion_encodes_what_ddim_decodes(kit):
    """Data to noise and back; each step uses the ᾱ of the next timestep."""
    path, rng = DiscretePath(), np.random.default_rng(0)
    data = 0.5 + 0.25 * rng.normal(size=(4, 2, 2, 1))
    encoder, decoder = DDIMInversion(steps=500), DDIM(steps=500, grid="linspace", final="none")
    np.testing.assert_allclose(encoder.times(path), decoder.times(path)[::-1])
    noise = kit.walk(encoder, path, kit.gaussian(), data)[-1]
    np.testing.assert_allclose(kit.walk(decoder, path, kit.gaussian(), noise)[-1], data, atol=2e-2)
    assert abs(noise.std() - 1) < 0.3


@pytest.mark.parametrize(("dtype", "folder"), [(np.float64, "out"), (np.float32, "out/f32")])
@pytest.mark.parametrize("clipped", [0, 1])
@pytest.mark.parametrize(
    "name", ["learned_range", "learned_range_respaced", "fixed_large", "fixed_small_xstart_cosine"]
)
def test_single_steps_of_the_reference(golden, kit, name, clipped, dtype, folder):
    """One step down with η = 0 and 1, and one step up, at t = 0, 1, 5 and the last."""
    data = golden("gd_steps")
    case = next(case for case in data["config"]["cases"] if case["name"] == name)
    schedule = {"linear": "linear", "squaredcos_cap_v2": "cosine"}[case["noise_schedule"]]
    path = DiscretePath(schedule=schedule, respacing=case["timestep_respacing"])
    prediction = Prediction(
        "x0" if case["predict_xstart"] else "epsilon", "learned_range" if case["learn_sigma"] else "fixed_small"
    )
    denoise = kit.golden_denoise(data["config"], prediction, clipped)
    x, noise = kit.to_nhwc(data["in/x"]), kit.to_nhwc(data["in/noise"])

    def compare(found, key, b):
        expected = kit.to_nhwc(data[f"{folder}/{name}/clip{clipped}/{key}"])[b : b + 1]
        largest = np.abs(expected).max()
        tolerance = 1e-8 + 1e-11 * largest if dtype == np.float64 else 1e-4 * largest
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=key)

    for b, t in enumerate(np.array(data["config"]["t"]) % path.chain_length):
        down = np.array([t + 1, t]) / path.chain_length
        start, fresh = x[b : b + 1], noise[None, b : b + 1]
        for eta in (0.0, 1.0):
            found = kit.walk(DDIM(eta=eta), path, denoise, start, fresh, down, dtype)[0]
            compare(found, f"ddim_sample/eta{eta}", b)
        if t < path.chain_length - 1:
            up = np.array([t + 1, t + 2]) / path.chain_length
            found = kit.walk(DDIMInversion(), path, denoise, start, times=up, dtype=dtype)[0]
        else:  # beyond the last timestep the reference takes ᾱ = 0, where ε̂ is all that is left
            with jax.enable_x64(dtype == np.float64):
                found = denoise(jax.numpy.asarray(start, dtype), path.point(jax.numpy.asarray(down[0], dtype))).epsilon
        compare(found, "ddim_reverse_sample", b)


def test_bad_requests():
    with pytest.raises(UserError, match="final must be 'none'"):
        DDIMInversion(final="data").times(DiscretePath())
    with pytest.raises(UserError, match="eta must lie in"):
        DDIM(eta=1.5)
    with pytest.raises(UserError, match="path 'vp' is continuous"):
        DDIM(grid="trailing").times(VPPath())
    with pytest.raises(UserError, match="final 'first' visits trained timesteps"):
        DDIM(final="first").times(VPPath())
    with pytest.raises(UserError, match="unknown 'fist'"):
        DDIM(final="fist")
