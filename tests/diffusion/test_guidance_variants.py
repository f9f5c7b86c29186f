"""Interval, rescale, autoguidance, classifier and similarity guidance, and their compositions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.classifier_guidance import classifier_guidance, prediction_guidance, similarity
from diffusion_jax.diffusion.denoiser import apply_gradient, conditional, denoiser
from diffusion_jax.diffusion.grids import karras_kappa
from diffusion_jax.diffusion.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    rescale,
    within_interval,
)
from diffusion_jax.diffusion.paths import DiscretePath, VEPath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDPM, EDM, RK45, sample
from diffusion_jax.diffusion.transforms import clip
from diffusion_jax.errors import UserError


def test_rescale():
    rng = np.random.default_rng(0)
    guided, plain = (jnp.asarray(rng.normal(size=(3, 4, 4, 6)) * s, jnp.float32) for s in (3.0, 1.0))
    found = rescale(guided, plain, 1.0, 4)
    np.testing.assert_allclose(
        jnp.std(found[..., :4], axis=(1, 2, 3)), jnp.std(plain[..., :4], axis=(1, 2, 3)), rtol=1e-5
    )
    np.testing.assert_array_equal(np.asarray(found[..., 4:]), np.asarray(guided[..., 4:]))
    part = rescale(guided, plain, 0.7, 4)
    np.testing.assert_allclose(part, 0.7 * found + 0.3 * guided, rtol=2e-5, atol=1e-6)
    model = lambda x, t, cond: x * cond.reshape(-1, 1, 1, 1)  # noqa: E731
    point, cond = VPPath().point(jnp.float32(0.5)), jnp.array([1.0, 2.0, 3.0])
    out = ClassifierFreeGuidance(4.0, rescale=1.0)(model, cond, 0 * cond)(plain, point)
    np.testing.assert_allclose(jnp.std(out, axis=(1, 2, 3)), jnp.std(plain, axis=(1, 2, 3)) * cond, rtol=1e-5)


def counted_model(counts):
    """Counts, at run time, the samples that the network is called with."""

    def model(x, timestep, cond):
        jax.debug.callback(lambda: counts.append(x.shape[0]))
        return x * cond.reshape(-1, 1, 1, 1).astype(x.dtype)

    return model


@pytest.mark.parametrize("method", ["heun", "euler"])
def test_interval_skips_the_null_call_and_decides_once_per_step(method):
    path, counts = VEPath(kappa_min=0.002, kappa_max=80), []
    sampler = EDM(steps=8, method=method, kappa_min=0.002)
    kappa = karras_kappa(80, 0.002, 8)
    guidance = ClassifierFreeGuidance(2.0, interval=(float(kappa[4]), float(kappa[2])), batching="joint")
    cond = jnp.array([0.1, 0.2])
    denoise = denoiser(guidance(counted_model(counts), cond, 0 * cond), Prediction())
    x = jnp.ones((2, 1, 1, 1))
    jax.block_until_ready(jax.jit(lambda x: sample(sampler, path, denoise, x, jax.random.key(0), jnp.arange(2)))(x))
    jax.effects_barrier()
    stages = 2 if method == "heun" else 1
    expected = [4 if k in (2, 3, 4) else 2 for k in range(8) for _ in range(stages)]
    assert counts == (expected[:-1] if method == "heun" else expected)


def test_interval_with_a_time_per_sample():
    point = VPPath().point(jnp.array([0.1, 0.5]))
    inside, outside = (lambda x, p: 0 * x + 1), (lambda x, p: 0 * x)
    guided = within_interval(inside, outside, (float(point.kappa[1]), math.inf))
    assert guided(jnp.ones((2, 1)), point).ravel().tolist() == [0, 1]


def test_published_intervals():
    """EDM2 on 32 steps: indices 17…22 are κ 1.61 → 0.28 (linear t 0.617 → 0.221), 13…19 are κ 5.0 → 0.85."""
    kappa = karras_kappa(80, 0.002, 32)
    np.testing.assert_allclose(kappa[[17, 22]], [1.61, 0.28], atol=5e-3)
    np.testing.assert_allclose(kappa[[13, 19]], [5.0, 0.85], atol=3e-2)
    np.testing.assert_allclose(kappa[[17, 22]] / (1 + kappa[[17, 22]]), [0.617, 0.221], atol=5e-4)


def test_autoguidance_narrows_and_keeps_the_mean(kit):
    """The weak model is the ideal denoiser of a wider Gaussian."""
    path, prediction = VPPath(), Prediction("x0")
    strong, weak = (lambda x, point, std=std: kit.gaussian(0.5, std)(x, point).x0 for std in (0.25, 0.4))
    with jax.enable_x64(True):
        denoise = denoiser(Autoguidance(2.0)(strong, weak), prediction)
        sampler = RK45(time_end=1e-3)
        end = path.point(np.float64(1.0))
        x = jnp.asarray(end.alpha * 0.5 + np.array([-1.0, 0.0, 1.0])).reshape(3, 1, 1, 1)
        found = np.asarray(jax.jit(lambda x: sampler.walk(path, denoise, x, lambda step, stage: x)[0])(x)).ravel()
    np.testing.assert_allclose(found[1], 0.5, atol=1e-3)
    assert 0.02 < (found[2] - found[0]) / 2 < 0.23


def test_autoguidance_composes_with_classifier_free_guidance():
    def model(gain):
        return lambda x, t, cond: gain * x * cond.reshape(-1, 1, 1, 1)

    x, point = jnp.ones((2, 1, 1, 5)), VPPath().point(jnp.float32(0.5))
    cond = jnp.array([1.0, 2.0])
    cfg = ClassifierFreeGuidance(3.0)
    out = Autoguidance(2.0, "first3")(cfg(model(1.0), cond, 0 * cond), conditional(model(0.5), cond))(x, point)
    strong, weak = 3 * cond, 0.5 * cond
    np.testing.assert_allclose(out[:, 0, 0, 0], weak + 2 * (strong - weak), rtol=1e-6)
    np.testing.assert_allclose(out[:, 0, 0, 4], strong, rtol=1e-6)
    assert Autoguidance(1.0)(cfg, None) is cfg


def exponential_classifier(kit, path, a):
    """ln p(y|x_t) for p(y|x_0) ∝ e^{a x_0} on the Gaussian data: a E[x_0|x_t] + const, of gradient a k."""
    return lambda x, point: jnp.sum(a * kit.gaussian()(x, point).x0.reshape(x.shape[0], -1), axis=1)


def test_classifier_guidance_on_gaussian_data(kit):
    """g = a k, and the ODE form is exactly the denoiser of N(μ + a s², s²)."""
    path, a = VPPath(), 1.7
    with jax.enable_x64(True):
        x = jnp.linspace(-2, 2, 4).reshape(4, 1, 1, 1)
        for time in (0.1, 0.5, 0.99):
            point = path.point(jnp.float64(time))
            guided = classifier_guidance(kit.gaussian(), exponential_classifier(kit, path, 1.0), a)
            found = guided(x, point)
            k = point.alpha * 0.25**2 / (point.alpha**2 * 0.25**2 + point.sigma**2)
            np.testing.assert_allclose(found.gradient, np.full(x.shape, a * k), rtol=1e-10)
            shifted, expected = apply_gradient(guided)(x, point), kit.gaussian(0.5 + a * 0.25**2, 0.25)(x, point)
            np.testing.assert_allclose(shifted.x0, expected.x0, rtol=1e-10)
            np.testing.assert_allclose(shifted.epsilon, expected.epsilon, rtol=1e-9, atol=1e-12)
            assert shifted.gradient is None


def test_ancestral_sampling_shifts_its_mean(kit):
    """mean += V g."""
    path, times = DiscretePath(), np.array([0.5, 0.4])
    prediction = Prediction(variance="fixed_large")
    model = lambda x, t, cond: jnp.tanh(x)  # noqa: E731
    plain = denoiser(conditional(model), prediction)
    guided = classifier_guidance(plain, lambda x, point: 3.0 * jnp.sum(x.reshape(x.shape[0], -1), axis=1), 2.0)
    x = jnp.ones((2, 1, 1, 1))
    no_noise = lambda step, stage: jnp.zeros_like(x)  # noqa: E731
    a, b = (DDPM().walk(path, denoise, x, no_noise, times)[0] for denoise in (plain, guided))
    variance = 1 - (path.point(times[0]).alpha / path.point(times[1]).alpha) ** 2
    np.testing.assert_allclose(b - a, 6.0 * variance, rtol=1e-5)


def test_guidance_through_the_prediction(kit):
    """A likelihood of clean data: on Gaussian data x̂_0 is linear in x, of slope k."""
    path = VPPath()
    with jax.enable_x64(True):
        point, x = path.point(jnp.float64(0.6)), jnp.linspace(-1, 1, 3).reshape(3, 1, 1, 1)
        slope = lambda x0, point: jnp.sum(5.0 * x0.reshape(x0.shape[0], -1), axis=1)  # noqa: E731
        k = point.alpha * 0.25**2 / (point.alpha**2 * 0.25**2 + point.sigma**2)
        found = prediction_guidance(kit.gaussian(), slope, 2.0)(x, point)
        np.testing.assert_allclose(found.gradient, np.full(x.shape, 10 * k), rtol=1e-10)
        np.testing.assert_array_equal(found.x0, kit.gaussian()(x, point).x0)
        blended = prediction_guidance(kit.gaussian(), slope, 2.0, blend=True)(x, point)
        np.testing.assert_allclose(
            blended.gradient, np.full(x.shape, 10 * (point.sigma * k + 1 - point.sigma)), rtol=1e-10
        )
        # Guidances add up.
        both = classifier_guidance(prediction_guidance(kit.gaussian(), slope, 2.0), slope, 1.0)(x, point)
        np.testing.assert_allclose(both.gradient, found.gradient + 5.0, rtol=1e-12)


def test_guided_data_keep_to_the_transforms(kit):
    """Near α = 0 the gradient would throw the data out of their range; at α = 0 it says nothing."""
    prediction, slope = Prediction("x0"), lambda x, point: 5.0 * jnp.sum(x.reshape(x.shape[0], -1), axis=1)
    plain = denoiser(conditional(lambda x, t, cond: 0.5 * jnp.ones_like(x)), prediction, (clip,))
    x, point = jnp.ones((2, 1, 1, 1)), VPPath().point(jnp.float32(1.0))
    assert point.sigma**2 / point.alpha * 5 > 100
    wild = apply_gradient(classifier_guidance(plain, slope, 1.0))(x, point)
    assert np.all(wild.x0 > 100)
    tame = apply_gradient(classifier_guidance(plain, slope, 1.0, (clip,)))(x, point)
    np.testing.assert_array_equal(tame.x0, 1.0)
    np.testing.assert_allclose(point.alpha * tame.x0 + point.sigma * tame.epsilon, x, rtol=1e-6)
    last = point._replace(alpha=jnp.zeros(()), sigma=jnp.ones(()))
    np.testing.assert_array_equal(apply_gradient(classifier_guidance(plain, slope, 1.0, (clip,)))(x, last).x0, 0.5)
    # The gradients of several guidances add up before the transform.
    down = classifier_guidance(classifier_guidance(plain, slope, 1.0, (clip,)), slope, -1.0, (clip,))
    np.testing.assert_allclose(apply_gradient(down)(x, point).x0, 0.5, rtol=1e-6)


def test_similarity_raises_itself():
    """A step along the gradient brings features closer to the caption."""
    rng = np.random.default_rng(0)
    weights, embedding = (
        jnp.asarray(rng.normal(size=(12, 5)), jnp.float32),
        jnp.asarray(rng.normal(size=(2, 5)), jnp.float32),
    )
    encoder = lambda x, t: x.reshape(x.shape[0], -1) @ weights  # noqa: E731
    value = similarity(encoder, embedding, log_temperature=1.0)
    point, x = VPPath().point(jnp.float32(0.5)), jnp.asarray(rng.normal(size=(2, 2, 2, 3)), jnp.float32)
    cosine = value(x, point) / jnp.exp(1.0)
    features = np.asarray(encoder(x, None))
    expected = (
        np.sum(features * embedding, axis=1) / np.linalg.norm(features, axis=1) / np.linalg.norm(embedding, axis=1)
    )
    np.testing.assert_allclose(cosine, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(value(x, point)))(x)
    assert np.all(value(x + 0.1 * gradient, point) > value(x, point))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClassifierFreeGuidance(2.0, rescale=1.5), "rescale must lie in"),
        (lambda: ClassifierFreeGuidance(2.0, interval=(3.0, 1.0)), "0 ≤ low < high"),
        (lambda: Autoguidance(-1.0), "scale must be at least 0"),
        (lambda: Autoguidance(2.0, "first"), "did you mean 'first3'"),
        (lambda: Autoguidance(2.0, interval=(-1.0, 1.0)), "0 ≤ low < high"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(UserError, match=message):
        build()
