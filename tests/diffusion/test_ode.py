import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.ode import dopri5
from diffusion_jax.diffusion.paths import VPPath
from diffusion_jax.diffusion.samplers import RK45


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
