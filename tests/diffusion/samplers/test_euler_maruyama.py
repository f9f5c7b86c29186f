import numpy as np
import pytest

from diffusion_jax.diffusion.paths import DiscretePath, VPPath
from diffusion_jax.diffusion.samplers import EulerMaruyama


@pytest.mark.parametrize(
    ("steps", "mean", "std"), [(100, 0.50195, 0.25301), (250, 0.50077, 0.25118), (1000, 0.50017, 0.25043)]
)
def test_moments_on_gaussian_data(kit, steps, mean, std):
    sampler = EulerMaruyama(steps=steps, final="none", noise_in_last_step=True)
    np.testing.assert_allclose(kit.gaussian_moments(sampler, VPPath(), kit.gaussian()), [mean, std], atol=6e-6)


def test_last_step_returns_the_mean(kit):
    noisy, still = (EulerMaruyama(steps=20, noise_in_last_step=flag) for flag in (True, False))
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 1, 1, 1)), rng.normal(size=(20, 2, 1, 1, 1))
    path = VPPath()
    a, b = (kit.walk(sampler, path, kit.gaussian(), x, noise) for sampler in (noisy, still))
    np.testing.assert_array_equal(a[:-1], b[:-1])
    # The last step goes from t = 1e-3 to 0.
    spread = np.sqrt(path.point(np.float64(1e-3)).diffusion * 1e-3)
    np.testing.assert_allclose(a[-1], b[-1] + spread * noise[-1], atol=1e-12)


def test_grid_of_score_sde_codes():
    np.testing.assert_allclose(EulerMaruyama(steps=1000).times(VPPath()), np.append(np.linspace(1, 1e-3, 1000), 0))
    # On a chain of 1000 the nodes are its timesteps.
    path = DiscretePath()
    times = EulerMaruyama(steps=1000).times(path)
    np.testing.assert_allclose(path.point(times[:-1]).timestep, np.arange(999, -1, -1), atol=1e-9)


def test_models_of_discrete_time(kit):
    """A chain gives what the SDE gives that it discretises."""
    sampler = EulerMaruyama(steps=1000)
    discrete = kit.gaussian_moments(sampler, DiscretePath(), kit.gaussian())
    continuous = kit.gaussian_moments(sampler, VPPath(), kit.gaussian())
    np.testing.assert_allclose(discrete, continuous, atol=1.5e-3)
    np.testing.assert_allclose(discrete, [0.5, 0.25], atol=1.5e-3)


def test_step_of_the_reference_code():
    """Score-SDE's grid of N points from 1 to t_end with steps of 1/N."""
    path = VPPath()
    sampler = EulerMaruyama(steps=10, final="none", reference_step=True)
    plan, consistent = (s.plan(path, s.times(path)) for s in (sampler, EulerMaruyama(steps=10, final="none")))
    np.testing.assert_allclose(plan.x[:, 2], -0.1)
    np.testing.assert_allclose(consistent.x[:, 2], -0.0999)
    np.testing.assert_allclose(plan.x[:, 0], 1 - 0.1 * plan.point.drift)
