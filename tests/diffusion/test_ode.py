import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import Denoised
from diffusion_jax.diffusion.ode import dopri5
from diffusion_jax.diffusion.paths import VPPath
from diffusion_jax.diffusion.samplers import DDIM, RK45, AdaptiveDPMSolver, sample, walk


def oscillator(y, t):
    """Each sample turns at its own rate, with a time-dependent part."""
    rate = jnp.array([1.0, 5.0, 20.0])[: y["x"].shape[0]]
    return {"x": rate * y["v"], "v": -rate * y["x"], "s": jnp.cos(t)}


def solve(tolerance, start=0.0, end=2.0):
    y = {"x": jnp.zeros(3), "v": jnp.ones(3), "s": jnp.zeros(3)}
    return jax.jit(lambda y: dopri5(oscillator, y, start, end, tolerance, tolerance))(y)


def test_error_follows_the_tolerance():
    with jax.enable_x64(True):
        errors = []
        for tolerance in (1e-4, 1e-7, 1e-10):
            found = solve(tolerance)
            exact = np.sin(2.0 * np.array([1.0, 5.0, 20.0]))
            errors.append(np.abs(found.y["x"] - exact).max())
            assert np.all(found.time == 2.0)
            assert errors[-1] < 100 * tolerance
        np.testing.assert_allclose(found.y["s"], np.sin(2.0), atol=1e-9)


def test_fifth_order():
    """A tolerance 2^{-5 k} lower takes about 2^k the steps."""
    with jax.enable_x64(True):
        coarse, fine = int(solve(1e-5).steps), int(solve(1e-5 / 2**15).steps)
    assert 5.5 < fine / coarse < 9


def test_backwards():
    with jax.enable_x64(True):
        found = solve(1e-9, 2.0, 0.0)
        np.testing.assert_allclose(found.y["x"], -np.sin(2.0 * np.array([1.0, 5.0, 20.0])), atol=1e-6)


def test_stops_when_steps_run_out():
    found = dopri5(lambda y, t: 100 * y, jnp.ones(1), 0.0, 1.0, 1e-6, 1e-6, max_steps=3)
    assert int(found.steps) == 3 and float(found.time[0]) < 1
    assert not found.finished[0] and not found.stuck[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_rate_that_is_not_finite_ends_the_walk_of_its_sample_alone(bad):
    """The others go on, to the same bits as without it."""

    def velocity(y, t):
        broken = (y > 5) & (t > 0.5)
        return jnp.where(broken, bad, jnp.cos(20 * t) * jnp.minimum(y, 5.0))

    solve = jax.jit(lambda y: dopri5(velocity, y, 0.0, 1.0, 1e-6, 1e-6))
    start = jnp.asarray([1.0, 10.0, 2.0])
    found = solve(start)
    assert found.finished.tolist() == [True, False, True] and found.stuck.tolist() == [False, True, False]
    assert 0.4 < found.time[1] <= 0.5 and np.all(found.time[np.array([0, 2])] == 1)
    assert found.steps < 100
    np.testing.assert_array_equal(found.y, solve(start.at[1].set(3.0)).y.at[1].set(found.y[1]))
    alone = solve(start[1:2])
    assert alone.steps < 50 and alone.stuck[0] and np.isfinite(alone.y[0])


def test_a_jump_that_no_step_resolves_ends_the_walk():
    found = jax.jit(lambda y: dopri5(lambda y, t: jnp.where(t > 0.3, 1e30, 1.0) + 0 * y, y, 0.0, 1.0))(jnp.zeros(2))
    assert found.stuck.all() and not found.finished.any() and found.steps < 100
    np.testing.assert_allclose(found.time, 0.3, atol=1e-3)


@pytest.mark.parametrize("sampler", [RK45(max_steps=4, time_end=0.05), AdaptiveDPMSolver(max_steps=4, time_end=0.05)])
def test_samples_that_did_not_arrive_are_reported(kit, sampler):
    path, x, index = VPPath(), jnp.linspace(-2, 2, 3).reshape(3, 1, 1, 1), jnp.arange(3)
    found = jax.jit(lambda x: walk(sampler, path, kit.mixture, x, jax.random.key(0), index))(x)
    assert not found.progress.finished.any() and not found.progress.stuck.any()
    assert np.all((found.progress.time > 0.05) & (found.progress.time < 1)) and np.isfinite(found.x).all()
    assert np.isnan(sample(sampler, path, kit.mixture, x, jax.random.key(0), index)).all()

    enough = dataclasses.replace(sampler, max_steps=1000)
    found = jax.jit(lambda x: walk(enough, path, kit.mixture, x, jax.random.key(0), index))(x)
    assert found.progress.finished.all()
    np.testing.assert_allclose(found.progress.time, 0.05, rtol=1e-5)
    np.testing.assert_array_equal(
        found.x, jax.jit(lambda x: sample(enough, path, kit.mixture, x, jax.random.key(0), index))(x)
    )


@pytest.mark.parametrize("sampler", [RK45(), AdaptiveDPMSolver()])
def test_weights_that_are_not_finite_end_the_walk_at_once(sampler):
    calls = []

    def denoise(x, point):
        jax.debug.callback(lambda: calls.append(1))
        return Denoised(jnp.nan * x, jnp.nan * x)

    x = jnp.ones((2, 1, 1, 1))
    found = jax.jit(lambda x: walk(sampler, VPPath(), denoise, x, jax.random.key(0), jnp.arange(2)))(x)
    jax.effects_barrier()
    assert found.progress.stuck.all() and not found.progress.finished.any()
    assert len(calls) < 20


def test_a_fixed_number_of_steps_has_nothing_to_report(kit):
    x = jnp.ones((2, 1, 1, 1))
    assert walk(DDIM(steps=2), VPPath(), kit.mixture, x, jax.random.key(0), jnp.arange(2)).progress is None


def test_probability_flow(kit):
    """The exact ends of the mixture, and of Gaussian data in float32; each sample steps for itself."""
    path, start = VPPath(), np.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
    sampler = RK45(time_end=0.05)
    with jax.enable_x64(True):
        walk = jax.jit(lambda x: sampler.walk(path, kit.mixture, x, lambda step, stage: x)[0])
        found = np.asarray(walk(jnp.asarray(start)))
        np.testing.assert_allclose(found.ravel(), kit.MIXTURE_ENDS, atol=1e-4)
        np.testing.assert_allclose(walk(jnp.asarray(start[4:5])), found[4:5], rtol=1e-12)


def test_last_denoising_step(kit):
    path, x = VPPath(), jnp.asarray([[0.0], [1.0]], jnp.float32).reshape(2, 1, 1, 1)

    def end(sampler):
        return jax.jit(lambda x: sampler.walk(path, kit.gaussian(), x, lambda step, stage: x)[0])(x)

    plain, denoised = end(RK45()), end(RK45(denoise_last=True))
    expected = kit.gaussian()(plain, path.point(jnp.float32(1e-3))).x0
    np.testing.assert_allclose(denoised, expected, rtol=1e-6)
    np.testing.assert_allclose(plain[1] - plain[0], 0.2502, atol=2e-4)
