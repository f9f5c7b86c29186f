import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import Denoised
from diffusion_jax.diffusion.paths import DiscretePath, VEPath, VPPath
from diffusion_jax.diffusion.point import align
from diffusion_jax.diffusion.samplers import PredictorCorrector
from diffusion_jax.errors import UserError


class _EveryStepNoisy(PredictorCorrector):
    """Adds noise in the last step too, so that the variance at any step can be read."""

    def plan(self, path, times):
        plan = super().plan(path, np.append(times, 0.0))
        return jax.tree.map(lambda a: a[: -(self.corrector_steps + 1)], plan)


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral"])
def test_moments_converge(kit, predictor):
    """Predictors alone, on Gaussian data: weak order 1."""
    path = VPPath()
    errors = []
    for steps in (90, 180, 360):
        sampler = PredictorCorrector(steps=steps, predictor=predictor, corrector_steps=0, final="none")
        _, std = kit.gaussian_moments(sampler, path, kit.gaussian())
        errors.append(abs(std - 0.25021))
    assert errors[2] < 4e-3
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2, rtol=0.2)


@pytest.mark.parametrize("name", ["ddpm", "ve"])
def test_predictors_are_the_discretised_forward_steps_reversed(kit, name):
    """Of VP x ← √(1 − β) x + √β z, of VE x ← x + √(κ_n² − κ_{n−1}²) z; s is the score."""
    path, times = (DiscretePath(), np.array([0.5, 0.499])) if name == "ddpm" else (VEPath(), np.array([0.5, 0.4]))
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 3, 2, 2, 1))
    noisy, clean = path.point(times[0]), path.point(times[1])
    with jax.enable_x64(True):
        score = np.asarray(-kit.gaussian()(jnp.asarray(x), noisy).epsilon / noisy.sigma)
    if name == "ddpm":
        beta = path.betas[499]
        reverse = (2 - np.sqrt(1 - beta)) * x + beta * score + np.sqrt(beta) * z
        ancestral = (x + beta * score) / np.sqrt(1 - beta) + np.sqrt(beta) * z
    else:
        rise = noisy.kappa**2 - clean.kappa**2
        reverse = x + rise * score + np.sqrt(rise) * z
        ancestral = x + rise * score + np.sqrt(clean.kappa**2 * rise / noisy.kappa**2) * z
    for predictor, expected in (("reverse_diffusion", reverse), ("ancestral", ancestral)):
        sampler = _EveryStepNoisy(predictor=predictor, corrector_steps=0)
        found = kit.walk(sampler, path, kit.gaussian(), x, z[None], times)[-1]
        np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=predictor)


def test_ancestral_vp_keeps_unit_variance_on_unit_data(kit):
    path, sampler = VPPath(), _EveryStepNoisy(predictor="ancestral", corrector_steps=0)
    for times in (np.linspace(1, 0.5, 3), np.linspace(1, 1e-3, 20)):
        _, std = kit.gaussian_moments(sampler, path, kit.gaussian(0.0, 1.0), times=times)
        np.testing.assert_allclose(std, 1.0, rtol=1e-12)


def test_ancestral_ve_keeps_the_noise_level_on_a_point_mass(kit):
    path, sampler = VEPath(), _EveryStepNoisy(predictor="ancestral", corrector_steps=0)
    point_mass = kit.from_x0(lambda x, point: 0.3 + 0 * x)
    for times in (np.linspace(1, 0.5, 3), np.linspace(1, 1e-3, 20)):
        _, std = kit.gaussian_moments(sampler, path, point_mass, times=times)
        # It starts from κ_max ε, without the point.
        np.testing.assert_allclose(std, path.prior_std(times[-1]), rtol=1e-12)


def test_langevin_has_its_stationary_variance():
    """A fixed step ε on N(m, v) ends in variance v/(1 − ε/(2v)); its bias vanishes with ε."""
    v = 0.3

    def variance(step_size):
        value = 1.0
        for _ in range(20_000):
            value = (1 - step_size / v) ** 2 * value + 2 * step_size
        return value

    for step_size in (0.1, 0.01):
        np.testing.assert_allclose(variance(step_size), v / (1 - step_size / (2 * v)), rtol=1e-10)

    # The sampler's own corrector takes that step: x + ε s + √(2ε) z with ε = 2a (r‖z‖/‖s‖)².
    path, times = VPPath(), np.array([0.5, 0.4])
    sampler = PredictorCorrector(predictor="none", corrector_steps=1, snr=0.2)
    rng = np.random.default_rng(0)

    def denoise(x, point):
        at = align(point, x)
        return Denoised(x, at.sigma * (x - 0.5) / v)  # score −(x − 0.5)/v

    with jax.enable_x64(True):
        x, z = (jnp.asarray(rng.normal(size=(4, 2, 2, 1))) for _ in range(2))
        found = sampler.walk(path, denoise, x, lambda step, stage: z, times)[0]
        score = -(x - 0.5) / v
        a = (path.point(times[0]).alpha / path.point(times[1]).alpha) ** 2

        def norm(y):
            return jnp.sqrt(jnp.sum(y**2, axis=(1, 2, 3), keepdims=True))

        step_size = 2 * a * (0.2 * norm(z) / norm(score)) ** 2
        np.testing.assert_allclose(found, x + step_size * score + jnp.sqrt(2 * step_size) * z, rtol=1e-12)

        batch = PredictorCorrector(predictor="none", corrector_steps=1, snr=0.2, norm="batch")
        step_size = 2 * a * (0.2 * norm(z).mean() / norm(score).mean()) ** 2
        found = batch.walk(path, denoise, x, lambda step, stage: z, times)[0]
        np.testing.assert_allclose(found, x + step_size * score + jnp.sqrt(2 * step_size) * z, rtol=1e-12)


def test_corrector_runs_before_the_predictor(kit):
    """One level with one corrector step is the corrector, then the predictor without noise."""
    path, times = VPPath(), np.array([0.5, 0.4])
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(3, 2, 2, 1)), rng.normal(size=(2, 3, 2, 2, 1))
    both = kit.walk(PredictorCorrector(corrector_steps=1), path, kit.gaussian(), x, z, times)
    first = kit.walk(PredictorCorrector(predictor="none"), path, kit.gaussian(), x, z, times)[-1]
    second = kit.walk(PredictorCorrector(corrector_steps=0), path, kit.gaussian(), first, z, times)[-1]
    np.testing.assert_allclose(both, [first, second], rtol=1e-12)


def test_bad_options():
    with pytest.raises(UserError, match="did you mean 'ancestral'"):
        PredictorCorrector(predictor="ancestrall")
    with pytest.raises(UserError, match="needs a predictor or at least one"):
        PredictorCorrector(predictor="none", corrector_steps=0)
    with pytest.raises(UserError, match="unknown 'batches'"):
        PredictorCorrector(norm="batches")
