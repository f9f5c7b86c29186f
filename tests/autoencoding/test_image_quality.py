import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from diffusion_jax.autoencoding.image_quality import psnr, ssim


def pairs():
    rng = np.random.default_rng(0)
    a = gaussian_filter(rng.normal(size=(3, 24, 20, 3)), (0, 2, 2, 0)).astype(np.float32) * 2
    return a, np.clip(a + rng.normal(size=a.shape, scale=[[[[0.1]]], [[[0.3]]], [[[0.0]]]]).astype(np.float32), -2, 2)


def test_psnr_is_that_of_the_clipped_images():
    a, b = pairs()
    error = ((np.clip(a, -1, 1) - np.clip(b, -1, 1)) ** 2).mean((1, 2, 3))[:2]
    values = jax.jit(psnr)(a, b)
    np.testing.assert_allclose(values[:2], 10 * np.log10(4 / error), rtol=1e-5)
    assert values[2] == 100
    np.testing.assert_allclose(psnr(jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), 0.02)), [40], rtol=1e-5)


def test_ssim_is_that_of_an_independent_computation():
    a, b = pairs()

    def blur(x):
        # radius 5, inner windows only
        return gaussian_filter(x, (0, 1.5, 1.5, 0), radius=(0, 5, 5, 0))[:, 5:-5, 5:-5]

    x, y = (np.clip(images.astype(np.float64), -1, 1) * 127.5 + 127.5 for images in (a, b))
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean((1, 2, 3))
    values = jax.jit(ssim)(a, b)
    np.testing.assert_allclose(values, expected, atol=2e-5)
    assert 0 < values[1] < values[0] < 0.999
    np.testing.assert_allclose(values[2], 1, atol=1e-6)
