"""Attention within windows of a feature map, and the changes of resolution of Swin (arXiv 2103.14030, 2111.09883)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from diffusion_jax.models.conditioning.text_features import Text
from diffusion_jax.models.layers.convolution import pointwise
from diffusion_jax.models.layers.norms import LayerNorm
from diffusion_jax.models.layers.remat import recomputed
from diffusion_jax.models.layers.residual import add
from diffusion_jax.models.layers.transformer import MLP, CrossAttention, Linear, SelfAttention
from diffusion_jax.models.unet.residual_block import film

LAYER_NORM_EPS = 1e-5
# Swin cuts its normal initialiser off at ±2, a hundred standard deviations.
SWIN_INIT = nnx.initializers.normal(0.02)


class Window(NamedTuple):
    """The windows of a feature map; sizes in pixels.

    Attributes:
      height: rows of a window.
      width: columns of a window.
      shift_rows: rows by which the windows are shifted.
      shift_columns: columns by which they are shifted.
    """

    height: int
    width: int
    shift_rows: int = 0
    shift_columns: int = 0


def make_windows(grid: tuple[int, int], size: int) -> tuple[Window, Window]:
    """The regular and the shifted windows of a feature map.

    Args:
      grid: (H, W) of the feature map.
      size: side of a window; a side of the map that is not larger is one window, and is not shifted.

    Returns:
      Windows without shift, and shifted by half a window.
    """
    height, width = min(size, grid[0]), min(size, grid[1])
    shift_rows = height // 2 if grid[0] > height else 0
    shift_columns = width // 2 if grid[1] > width else 0
    return Window(height, width), Window(height, width, shift_rows, shift_columns)


@functools.cache
def relative_positions(height: int, width: int) -> np.ndarray:
    """For each pair of pixels of a window, the row of the bias table that belongs to their offset.

    Args:
      height: rows of the window.
      width: columns of the window.

    Returns:
      [N, N] int32 in 0…(2·height − 1)(2·width − 1) − 1, N = height·width pixels in row-major order.
    """
    rows, columns = np.divmod(np.arange(height * width, dtype=np.int32), width)
    row_offset = rows[:, None] - rows[None] + height - 1
    column_offset = columns[:, None] - columns[None] + width - 1
    return row_offset * (2 * width - 1) + column_offset


def split_windows(x: jax.Array, window: Window) -> jax.Array:
    """Cuts a feature map into windows: [B, H, W, C] to [B·windows, N, C], windows in row-major order."""
    return rearrange(x, "b (i h) (j w) c -> (b i j) (h w) c", h=window.height, w=window.width)


def seam_regions(grid: tuple[int, int], window: Window) -> np.ndarray:
    """Which side of the seam each pixel lies on after the map was rolled by the shift.

    The roll brings the first rows and columns to the end, beside pixels that they are no neighbours of.

    Args:
      grid: (H, W) of the feature map.
      window: the windows.

    Returns:
      [windows, N] int32; two pixels of a window are neighbours if their numbers are equal.
    """
    rows = np.arange(grid[0])[:, None] >= grid[0] - window.shift_rows
    columns = np.arange(grid[1])[None] >= grid[1] - window.shift_columns
    regions = (2 * rows + columns).astype(np.int32)
    return rearrange(regions, "(i h) (j w) -> (i j) (h w)", h=window.height, w=window.width)


class WindowAttention(nnx.Module):
    """Self-attention within windows, with a learned bias for each offset between two pixels.

    Args:
      width: C.
      heads: number of heads, a divisor of C.
      window: the windows.
      dtype: compute dtype.
      rngs: initialiser streams.
    """

    def __init__(self, width: int, heads: int, window: Window, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.window = window
        self.attn = SelfAttention(width, heads, kernel_init=SWIN_INIT, dtype=dtype, rngs=rngs)
        offsets = (2 * window.height - 1) * (2 * window.width - 1)
        self.relative_bias = nnx.Param(SWIN_INIT(rngs.params(), (offsets, heads)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C] in the compute dtype."""
        window, (batch, height, width, _) = self.window, x.shape
        shift = (window.shift_rows, window.shift_columns)
        if any(shift):
            x = jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2))
        out = self.attn(split_windows(x, window), bias=self.bias((height, width)))  # [B·windows, N, C]
        out = rearrange(
            out,
            "(b i j) (h w) c -> b (i h) (j w) c",
            b=batch,
            i=height // window.height,
            h=window.height,
        )  # [B, H, W, C]
        return jnp.roll(out, shift, axis=(1, 2)) if any(shift) else out

    def bias(self, grid: tuple[int, int]) -> jax.Array:
        """What is added to the logits on a map of (H, W): [1 or windows, heads, N, N] float32.

        Pairs of pixels from both sides of the seam get a number so low that their weight is exactly zero.
        """
        table = self.relative_bias[...][relative_positions(self.window.height, self.window.width)]  # [N, N, heads]
        bias = table.transpose(2, 0, 1)[None]  # [1, heads, N, N]
        if not (self.window.shift_rows or self.window.shift_columns):
            return bias
        regions = jnp.asarray(seam_regions(grid, self.window))  # [windows, N]
        neighbours = regions[:, None, :, None] == regions[:, None, None, :]  # [windows, 1, N, N]
        return jnp.where(neighbours, bias, -1e9)  # [windows, heads, N, N]


class WindowLayer(nnx.Module):
    """Window attention, attention to a text if there is one, and an MLP that is told the time; each added to the input.

    Args:
      width: C.
      heads: number of heads, a divisor of C.
      embedding_width: E of the embedding of time (and text).
      window: the windows.
      context_width: width of the text's tokens; 0 for a layer that does not attend to the text.
      mlp_ratio: hidden width of the MLP over C.
      dtype: compute dtype; norms and modulation are float32.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        embedding_width: int,
        window: Window,
        *,
        context_width: int = 0,
        mlp_ratio: float = 4.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        hidden = int(width * mlp_ratio)
        self.norm1 = LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = WindowAttention(width, heads, window, dtype=dtype, rngs=rngs)
        self.attends_to_text = context_width > 0
        if self.attends_to_text:
            self.norm_cross = LayerNorm(width, eps=LAYER_NORM_EPS)
            self.cross = CrossAttention(width, context_width, heads, kernel_init=SWIN_INIT, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=LAYER_NORM_EPS)
        self.embedding = pointwise(embedding_width, 2 * width, dtype=jnp.dtype("float32"), rngs=rngs)
        self.mlp = MLP(width, hidden, approximate=False, kernel_init=SWIN_INIT, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, embedding: jax.Array, text: Text | None) -> jax.Array:
        """Applies the layer.

        Args:
          x: [B, H, W, C].
          embedding: [B, E] float32, the activated embedding SiLU(emb).
          text: what a layer with a context attends to.

        Returns:
          [B, H, W, C] in the dtype of x.
        """
        x = add(x, self.attn(self.norm1(x)))
        if self.attends_to_text and text is not None:
            pixels = rearrange(self.norm_cross(x), "b h w c -> b (h w) c")
            x = add(x, self.cross(pixels, text.tokens, text.mask).reshape(x.shape))
        modulated = recomputed(lambda norm, x, scale_shift: film(norm(x), scale_shift))
        return add(x, self.mlp(modulated(self.norm2, x, self.embedding(embedding))))


class SwinBlock(nnx.Module):
    """Two window layers, the second with shifted windows; the second one attends to the text.

    Args:
      width: C.
      heads: number of heads, a divisor of C.
      embedding_width: E of the embedding.
      grid: (H, W) of the feature map.
      window_size: side of a window.
      context_width: width of the text's tokens; 0 for a block that does not attend to the text.
      mlp_ratio: hidden width of the MLPs over C.
      dtype: compute dtype.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        embedding_width: int,
        grid: tuple[int, int],
        *,
        window_size: int = 8,
        context_width: int = 0,
        mlp_ratio: float = 4.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def layer(window: Window, context_width: int) -> WindowLayer:
            return WindowLayer(
                width,
                heads,
                embedding_width,
                window,
                context_width=context_width,
                mlp_ratio=mlp_ratio,
                dtype=dtype,
                rngs=rngs,
            )

        regular, shifted = make_windows(grid, window_size)
        self.regular = layer(regular, 0)
        self.shifted = layer(shifted, context_width)

    def __call__(self, x: jax.Array, embedding: jax.Array, text: Text | None) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C] in the dtype of x; `embedding` and `text` as in `WindowLayer`."""
        return self.shifted(self.regular(x, embedding, text), embedding, text)


class PatchMerging(nnx.Module):
    """Halves H and W: the channels of 2×2 pixels, normalised, through a linear map (Swin, §3.1).

    Args:
      channels: C of the input.
      features: C' of the output.
      dtype: compute dtype.
      rngs: initialiser streams.
    """

    def __init__(self, channels: int, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * channels, eps=LAYER_NORM_EPS)
        self.linear = Linear(4 * channels, features, use_bias=False, kernel_init=SWIN_INIT, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H/2, W/2, C'] in the compute dtype."""
        # The order of the four pixels is that of the released Swin: down the first column, then the second.
        return self.linear(self.norm(rearrange(x, "b (h p) (w q) c -> b h w (q p c)", p=2, q=2)))


class PatchExpanding(nnx.Module):
    """Doubles H and W: a linear map to the channels of 2×2 pixels, each normalised (arXiv 2105.05537, §3.5).

    Args:
      channels: C of input and output.
      dtype: compute dtype.
      rngs: initialiser streams.
    """

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = Linear(channels, 4 * channels, use_bias=False, kernel_init=SWIN_INIT, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(channels, eps=LAYER_NORM_EPS)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2H, 2W, C] float32."""
        return self.norm(rearrange(self.linear(x), "b h w (p q c) -> b (h p) (w q) c", p=2, q=2))
