import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.optim.ema_profiles import (
    EMA_PROFILES,
    ConstantEMA,
    HalfLifeEMA,
    InverseGammaEMA,
    PowerEMA,
    WarmupEMA,
    ema_update,
    gamma_of_width,
    width_of_gamma,
)
from diffusion_jax.optim.posthoc import (
    Snapshot,
    check_fit,
    posthoc_average,
    posthoc_fit,
    posthoc_weights,
    profile_product,
)


def run(profile, values):
    """The average after each update, starting from values[0]."""

    @jax.jit
    def scan(values):
        def body(average, item):
            step, value = item
            average = ema_update(average, value, profile.decay(step))
            return average, (average, profile.decay(step))

        return jax.lax.scan(body, values[0], (jnp.arange(1, len(values)), values[1:]))[1]

    return [np.asarray(a) for a in scan(jnp.asarray(values, jnp.float32))]


def test_reference_averages(golden):
    data = golden("ema")
    values = data["in/values"]
    cases = {
        "lit/warmup_0.9999": WarmupEMA(),
        "lit/warmup_low": WarmupEMA(max_decay=0.6),
        "lit/no_warmup": ConstantEMA(max_decay=0.99),
        "update_ema/0.9999": ConstantEMA(),
        "update_ema/0.9": ConstantEMA(max_decay=0.9),
    }
    for name, profile in cases.items():
        shadow, decay = run(profile, values)
        np.testing.assert_allclose(shadow, data[f"out/{name}/shadow"], rtol=1e-6, atol=1e-6)
        if f"out/{name}/decay" in data:
            np.testing.assert_allclose(decay, data[f"out/{name}/decay"], rtol=1e-6)


def test_warm_ups():
    decay = InverseGammaEMA(power=0.75)
    np.testing.assert_allclose(decay.decay(jnp.int32(9999)), 1 - 10_000**-0.75, rtol=1e-6)
    assert InverseGammaEMA(max_decay=0.5).decay(jnp.int32(10**6)) == 0.5
    half = HalfLifeEMA(batch_size=512)
    np.testing.assert_allclose(half.decay(jnp.int32(10**7)), 0.5 ** (512 / 500_000), rtol=1e-6)
    np.testing.assert_allclose(half.decay(jnp.int32(101)), 0.5 ** (512 / (0.05 * 51_200)), rtol=1e-6)
    assert half.decay(jnp.int32(1)) == 0
    np.testing.assert_allclose(HalfLifeEMA(batch_size=8, ramp=None).decay(jnp.int32(1)), 0.5 ** (8 / 5e5), rtol=1e-6)


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.05, 16.9722), (0.10, 6.93720), (0.15, 3.55787), (0.20, 1.82621), (0.25, 0.71982)]
)
def test_widths(sigma_rel, gamma):
    np.testing.assert_allclose(gamma_of_width(sigma_rel), gamma, rtol=1e-5)
    np.testing.assert_allclose(width_of_gamma(gamma_of_width(sigma_rel)), sigma_rel, rtol=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.25])
def test_power_profile_of_a_ramp(sigma_rel):
    """θ(τ) = τ gives (γ + 1)/(γ + 2) · t for large t, and the spread of the weights is σ_rel · t."""
    steps = 4000
    profile = PowerEMA(sigma_rel=sigma_rel)
    average, _ = run(profile, np.arange(steps + 1) / steps)
    square, _ = run(profile, (np.arange(steps + 1) / steps) ** 2)
    gamma = profile.gamma
    np.testing.assert_allclose(average[-1], (gamma + 1) / (gamma + 2), rtol=1e-3)
    np.testing.assert_allclose(np.sqrt(square[-1] - average[-1] ** 2), sigma_rel, rtol=5e-3)


def test_profile_product_is_the_integral():
    for a, b in ((Snapshot(3.0, 0.05), Snapshot(8.0, 0.1)), (Snapshot(8.0, 0.1), Snapshot(8.0, 0.2))):
        end = min(a.time, b.time)
        tau = (np.arange(200_000) + 0.5) / 200_000 * end
        gammas = gamma_of_width(a.sigma_rel), gamma_of_width(b.sigma_rel)
        density = [(g + 1) * tau**g / s.time ** (g + 1) for g, s in zip(gammas, (a, b), strict=True)]
        np.testing.assert_allclose(profile_product(a, b), np.sum(density[0] * density[1]) * end / 200_000, rtol=1e-6)
        np.testing.assert_allclose(profile_product(a, b), profile_product(b, a), rtol=1e-12)


def snapshots(count=20):
    return [Snapshot(float(time), width) for time in range(1, count + 1) for width in (0.05, 0.10)]


def test_stored_profile_is_its_own_reconstruction():
    stored = snapshots()
    weights = posthoc_weights(stored, stored[25])
    np.testing.assert_allclose(weights, np.eye(len(stored))[25], atol=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15, 0.25])
def test_reconstruction_of_another_width(sigma_rel):
    """From two stored tracks of a run, the average that a third track would have given."""
    steps, every = 2000, 100
    curve = np.sin(3 * np.arange(steps + 1) / steps)
    tracks = {width: run(PowerEMA(sigma_rel=width), curve)[0] for width in (0.05, 0.10, sigma_rel)}
    stored = [Snapshot(float(t), width) for t in range(every, steps + 1, every) for width in (0.05, 0.10)]
    values = [tracks[s.sigma_rel][int(s.time) - 1] for s in stored]
    weights = posthoc_weights(stored, Snapshot(float(steps), sigma_rel))
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(np.dot(weights, values), tracks[sigma_rel][-1], atol=2e-3 if sigma_rel < 0.2 else 8e-3)


def density(snapshot, tau):
    gamma = gamma_of_width(snapshot.sigma_rel)
    return np.where(tau <= snapshot.time, (gamma + 1) * tau**gamma / snapshot.time ** (gamma + 1), 0)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.15, 0.25, 0.03])
def test_fit_is_that_of_the_densities(sigma_rel):
    stored, target = snapshots(8), Snapshot(8.0, sigma_rel)
    weights = posthoc_weights(stored, target)
    fit = posthoc_fit(stored, weights, target)
    step = 8 / 400_000
    tau = (np.arange(400_000) + 0.5) * step
    wanted, found = density(target, tau), sum(w * density(s, tau) for w, s in zip(weights, stored, strict=True))
    misfit = np.sqrt(np.sum((found - wanted) ** 2) / np.sum(wanted**2))
    np.testing.assert_allclose(fit.misfit, misfit, rtol=1e-3, atol=1e-5)
    mean = np.sum(tau * found) * step
    width = np.sqrt(np.sum((tau - mean) ** 2 * found) * step) / 8
    np.testing.assert_allclose(fit.sigma_rel, width, rtol=1e-3)
    check_fit(fit, target)


@pytest.mark.parametrize(
    ("stored", "sigma_rel", "obtained"),
    [
        ([Snapshot(20.0, 0.05)], 0.2, r"width 0\.05 and misses 184 %"),
        (snapshots(1), 0.15, r"width 0\.105 and misses 25 %"),
        (snapshots(8), 0.01, r"no width and misses 53 %"),
    ],
)
def test_a_width_that_the_snapshots_cannot_give_is_refused(stored, sigma_rel, obtained):
    target = Snapshot(stored[-1].time, sigma_rel)
    fit = posthoc_fit(stored, posthoc_weights(stored, target), target)
    with pytest.raises(UserError, match=rf"width {sigma_rel:g} at step .* has {obtained}[^\n]*snapshot_every\)[^\n]*$"):
        check_fit(fit, target)


def test_average_of_pytrees():
    trees = [{"a": jnp.full(2, float(i)), "b": jnp.full((), float(i), jnp.bfloat16)} for i in range(3)]
    found = posthoc_average(np.array([0.5, 0.25, 0.25]), lambda i: trees[i])
    np.testing.assert_allclose(found["a"], 0.75)
    assert found["a"].dtype == np.float32 and found["b"].dtype == jnp.bfloat16 and float(found["b"]) == 0.75


def test_registry():
    assert set(EMA_PROFILES) == {"constant", "warmup", "inverse_gamma", "half_life", "power"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConstantEMA(max_decay=1.5), "max_decay must lie in"),
        (lambda: WarmupEMA(max_decay=-1.0), "max_decay must lie in"),
        (lambda: InverseGammaEMA(gamma=0.0), "must be positive"),
        (lambda: HalfLifeEMA(batch_size=0), "must be positive"),
        (lambda: PowerEMA(sigma_rel=0.5), "sigma_rel must lie in"),
        (lambda: posthoc_weights([], Snapshot(1.0, 0.1)), "no stored averages"),
        (lambda: posthoc_weights(snapshots(3), Snapshot(4.0, 0.1)), "later than the last stored average, 3"),
    ],
)
def test_bad_requests(build, message):
    with pytest.raises(UserError, match=message):
        build()
