"""Window attention against attention over a whole masked image, the roll seam, resampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.models.ascend.swin import (
    PatchExpanding,
    PatchMerging,
    SwinBlock,
    Window,
    WindowAttention,
    make_windows,
    relative_positions,
)
from diffusion_jax.models.conditioning.text_features import Text
from diffusion_jax.models.layers.attention import attention

FLOAT32 = jnp.dtype("float32")


def nudge(module):
    """Moves every parameter, so that none has its special initial value."""
    leaves, structure = jax.tree.flatten(module)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def image(height, width, channels, batch=2):
    return jnp.float32(np.random.default_rng(1).standard_normal((batch, height, width, channels)))


def test_offsets_share_one_bias_whatever_the_pixels():
    index = relative_positions(3, 4)
    assert index.shape == (12, 12) and index.min() == 0 and index.max() == 5 * 7 - 1
    for a in range(12):
        for b in range(12):
            offset = (a // 4 - b // 4, a % 4 - b % 4)
            assert index[a, b] == (offset[0] + 2) * 7 + offset[1] + 3


@pytest.mark.parametrize(
    ("grid", "window"),
    [
        ((8, 8), Window(4, 4)),
        ((8, 8), Window(4, 4, 2, 2)),
        ((4, 8), Window(4, 4, 0, 2)),
        ((6, 4), Window(3, 2, 1, 1)),
    ],
)
def test_windows_are_full_attention_with_a_mask(grid, window):
    """Two pixels meet if the shifted tiling of the plane, without wrap-around, puts them in one window."""
    layer = nudge(WindowAttention(4, 2, window, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    x = image(*grid, 4)
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    tile = np.stack(
        [
            (rows - window.shift_rows + window.height) // window.height,
            (columns - window.shift_columns + window.width) // window.width,
        ]
    )
    together = (tile[:, :, None] == tile[:, None]).all(0)  # [N, N]
    down = np.clip(rows[:, None] - rows[None], 1 - window.height, window.height - 1) + window.height - 1
    right = np.clip(columns[:, None] - columns[None], 1 - window.width, window.width - 1) + window.width - 1
    table = np.asarray(layer.relative_bias[...])[down * (2 * window.width - 1) + right]  # [N, N, heads]
    bias = np.where(together[None], table.transpose(2, 0, 1), -1e9)[None].astype(np.float32)

    qkv = layer.attn.qkv(x.reshape(2, -1, 4))
    whole = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias=jnp.asarray(bias))
    expected = layer.attn.proj(whole.reshape(2, -1, 4)).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(layer)(x), expected, atol=2e-5)


def test_an_impulse_does_not_leak_across_the_seam():
    layer = nudge(WindowAttention(4, 2, Window(4, 4, 2, 2), dtype=FLOAT32, rngs=nnx.Rngs(0)))
    apply = jax.jit(layer)
    x = image(8, 8, 4, batch=1)
    for corner, reach in (((0, 0), (slice(0, 2), slice(0, 2))), ((7, 3), (slice(6, 8), slice(2, 6)))):
        changed = np.any(apply(x.at[0, *corner].add(1.0)) != apply(x), axis=-1)[0]
        expected = np.zeros((8, 8), bool)
        expected[reach] = True
        assert np.array_equal(changed, expected)


def test_a_side_that_is_one_window_is_not_shifted():
    assert make_windows((16, 32), 8) == (Window(8, 8), Window(8, 8, 4, 4))
    assert make_windows((8, 8), 8) == (Window(8, 8), Window(8, 8))
    assert make_windows((4, 16), 8) == (Window(4, 8), Window(4, 8, 0, 4))


@pytest.fixture(scope="module")
def block():
    return nudge(
        SwinBlock(8, 2, 6, (8, 8), window_size=4, context_width=5, mlp_ratio=2.0, dtype=FLOAT32, rngs=nnx.Rngs(0))
    )


def test_two_layers_carry_information_between_windows_and_one_does_not(block):
    x, embedding = image(8, 8, 8, batch=1), jnp.ones((1, 6))
    text = Text(jnp.ones((1, 3, 5)), None)

    def touched(layer):
        apply = jax.jit(layer)
        return np.any(apply(x.at[0, 3, 3, 0].add(5.0), embedding, text) != apply(x, embedding, text), axis=-1)[0]

    window = np.zeros((8, 8), bool)
    window[:4, :4] = True
    assert np.array_equal(touched(block.regular), window)
    # The second layer's windows begin at row 2 and column 2; rows 6 and 7 lie beyond the seam.
    reach = np.zeros((8, 8), bool)
    reach[:6, :6] = True
    assert np.array_equal(touched(block), reach)


def test_the_second_layer_attends_to_the_text_and_both_are_told_the_time(block):
    x, embedding = image(8, 8, 8, batch=1), jnp.ones((1, 6))
    text = Text(image(1, 3, 5, batch=1)[0], None)
    assert not block.regular.attends_to_text and block.shifted.attends_to_text
    apply = jax.jit(block)
    out = apply(x, embedding, text)
    assert np.abs(apply(x, embedding, Text(text.tokens + 1.0, None)) - out).max() > 1e-3
    for layer in (block.regular, block.shifted):
        call = jax.jit(layer)
        assert np.abs(call(x, -embedding, text) - call(x, embedding, text)).max() > 1e-3
    mask = jnp.array([[True, False, True]])
    masked = apply(x, embedding, Text(text.tokens, mask))
    changed = apply(x, embedding, Text(text.tokens.at[:, 1].add(1.0), mask))
    assert np.array_equal(masked, changed) and not np.allclose(masked, out)


def test_merging_reads_four_pixels_and_expanding_writes_four():
    merge = nudge(PatchMerging(3, 5, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    x = image(4, 6, 3)
    four = np.concatenate([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], axis=-1)
    np.testing.assert_allclose(jax.jit(merge)(x), merge.linear(merge.norm(jnp.asarray(four))), atol=1e-5)

    expand = nudge(PatchExpanding(4, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    x = image(2, 3, 4)
    out = jax.jit(expand)(x)
    assert out.shape == (2, 4, 6, 4)
    parts = expand.linear(x).reshape(2, 2, 3, 4, 4)
    for row in range(2):
        for column in range(2):
            want = expand.norm(parts[:, :, :, 2 * row + column])
            np.testing.assert_allclose(out[:, row::2, column::2], want, atol=1e-5)
