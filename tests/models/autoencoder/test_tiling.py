"""Tiles against the whole: exact where the rules say so, blended by the published weights elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoder.tiling import Tiling, map_tiles
from diffusion_jax.models.layers.convolution import upsample_nearest


def latents(height: int, width: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32))


def double(x: jax.Array) -> jax.Array:
    return upsample_nearest(2 * x + 1)


@pytest.mark.parametrize("shape", [(8, 8), (13, 8), (9, 22), (3, 30)])
def test_a_function_of_single_cells_gives_what_it_gives_untiled(shape):
    x = latents(*shape)
    ours = jax.jit(lambda x: map_tiles(double, x, Tiling(8, 4), cell_out=2))(x)
    np.testing.assert_allclose(ours, double(x), rtol=1e-5, atol=1e-6)
    assert ours.dtype == jnp.float32


def test_encoding_cuts_images_at_multiples_of_a_cell():
    images = latents(24, 40)

    def encode(images: jax.Array) -> dict[str, jax.Array]:
        b, h, w, c = images.shape
        mean = images.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
        return {"mean": mean, "logvar": -mean[..., :1]}

    ours = map_tiles(encode, images, Tiling(8, 5), cell_in=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, encode(images))


def test_overlaps_are_blended_by_distance_to_the_border():
    """Each tile answers with a constant of its own, so the result shows the weights."""
    x = latents(6, 10)
    ours = map_tiles(lambda x: jnp.zeros_like(x) + x[:, :1, :1], x, Tiling(6, 4))
    place = np.arange(6) / 5
    near = np.minimum(place, 1 - place)
    weight = np.clip(np.minimum(near[:, None], near[None]), 0.01, 0.5)
    expected, total = np.zeros((2, 6, 10, 3)), np.zeros((6, 10))
    for start in (0, 4):
        expected[:, :, start : start + 6] += np.asarray(x)[:, :1, start : start + 1] * weight[..., None]
        total[:, start : start + 6] += weight
    np.testing.assert_allclose(ours, expected / total[..., None], rtol=1e-5)


def test_a_convolution_is_exact_away_from_the_seams():
    x, kernel = latents(8, 20), jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 3)).astype(np.float32))

    def conv(x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    ours, whole = map_tiles(conv, x, Tiling(10, 5)), conv(x)
    seams = [0, 4, 5, 9, 10, 14, 15, 19]  # the columns at which some tile begins or ends
    inner = [column for column in range(20) if column not in seams]
    np.testing.assert_allclose(ours[:, :, inner], whole[:, :, inner], rtol=1e-4, atol=1e-5)
    assert np.abs(ours - whole).max() < 0.2 * np.abs(whole).max()


def test_memory_of_temporaries_does_not_grow_with_the_image():
    def heavy(x: jax.Array) -> jax.Array:
        return jnp.sin(jnp.repeat(x, 64, axis=-1)[..., ::-1]).reshape(*x.shape, 64).sum(-1)

    def temporaries(width: int) -> int:
        compiled = jax.jit(lambda x: map_tiles(heavy, x, Tiling(16, 8))).lower(latents(16, width)).compile()
        return compiled.memory_analysis().temp_size_in_bytes - 4 * 2 * 16 * width * 3 * 4

    assert temporaries(512) < 2 * max(temporaries(64), 1)


def test_tiles_that_leave_gaps_are_refused():
    for size, stride in ((8, 9), (8, 0)):
        with pytest.raises(UserError, match=rf"^autoencoder\.tile={size}, tile_stride={stride}: need"):
            Tiling(size, stride)
