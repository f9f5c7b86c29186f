"""IU-ViT: U-ViT with a rearrange-first head, convolutional feed-forwards and cross-attention (arXiv 2212.13771)."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.models.conditioning.text_features import Text, TextFeatures
from diffusion_jax.models.layers.convolution import conv3x3
from diffusion_jax.models.layers.norms import LayerNorm
from diffusion_jax.models.layers.patches import unpatchify
from diffusion_jax.models.layers.precision import DTypeName, Precision
from diffusion_jax.models.layers.remat import RematPolicy
from diffusion_jax.models.layers.residual import add
from diffusion_jax.models.layers.transformer import MLP, ZEROS, CrossAttention, SelfAttention
from diffusion_jax.models.uvit.dwconv_ffn import DWConvFFN, ExtraTokens
from diffusion_jax.models.uvit.long_skips import INIT, PARTITION_RULES, LongSkips
from diffusion_jax.models.uvit.uvit import NORM_EPS, LinearFirstHead, TokenEmbedding


class IUViTBlock(nnx.Module):
    """Pre-norm self-attention, cross-attention to text if there is any, and a feed-forward.

    Args:
      width: D.
      heads: number of heads.
      text_width: width of the text tokens; 0 for no cross-attention.
      qkv_bias: whether the projections of q, k and v have biases.
      make_ffn: makes the feed-forward, [B, N, D] to [B, N, D].
      dtype: compute dtype.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        text_width: int,
        qkv_bias: bool,
        make_ffn: Callable[[nnx.Rngs], Callable[[jax.Array], jax.Array]],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, heads, qkv_bias=qkv_bias, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.norm_cross = LayerNorm(width, eps=NORM_EPS) if text_width else None
        self.cross = (
            CrossAttention(width, text_width, heads, qkv_bias=qkv_bias, kernel_init=INIT, dtype=dtype, rngs=rngs)
            if text_width
            else None
        )
        self.norm2 = LayerNorm(width, eps=NORM_EPS)
        self.ffn = make_ffn(rngs)

    def __call__(self, x: jax.Array, text: Text | None) -> jax.Array:
        """Maps tokens [B, N, D], told a text if there is cross-attention, to [B, N, D] in the dtype of x."""
        x = add(x, self.attn(self.norm1(x)))  # [B, N, D]
        if self.norm_cross is not None and self.cross is not None and text is not None:
            x = add(x, self.cross(self.norm_cross(x), text.tokens, text.mask))  # [B, N, D]
        return add(x, self.ffn(self.norm2(x)))  # [B, N, D]


class RearrangeFirstHead(nnx.Module):
    """Norm, each image token laid out as p×p pixels of D/p² channels, and one 3×3 convolution.

    Args:
      grid: rows and columns of patches.
      width: D, divisible by p².
      patch_size: side p of a patch.
      out_channels: channels of the output.
      rngs: initialiser streams.

    Raises:
      UserError: p² does not divide D.
    """

    def __init__(self, grid: tuple[int, int], width: int, patch_size: int, out_channels: int, *, rngs: nnx.Rngs):
        if width % patch_size**2:
            raise UserError(
                f"model.width={width} must be divisible by {patch_size**2}, the pixels of a patch, to be laid out as "
                "them: choose another width or model.patch_size, or model.head='linear'"
            )
        self.grid, self.patch_size = grid, patch_size
        self.norm = LayerNorm(width, eps=NORM_EPS)
        self.conv = conv3x3(width // patch_size**2, out_channels, dtype=jnp.dtype("float32"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D], of which the image's are last, to [B, H, W, out_channels] float32."""
        image = self.norm(x[:, -self.grid[0] * self.grid[1] :])  # [B, H·W/p², D]
        return self.conv(unpatchify(image, self.grid, self.patch_size))  # [B, H, W, out_channels]


class IUViT(nnx.Module):
    """The improved U-ViT, unconditional, of classes or of text.

    The paper leaves parts open; the defaults are the reading that meets all its parameter counts. With `head="linear"`,
    `ffn="mlp"` and `time_mlp_ratio=0` it is U-ViT, and the rows between are its ablation.

    Args:
      input_shape: (H, W, C) of x_t; H and W divisible by `patch_size`.
      out_channels: channels of the output.
      conditioning: what the model is told: a class label (one more token), a pooled embedding (added to the time
        embedding), text (see `TextFeatures`), in any combination, or nothing.
      depth: number of blocks L, odd.
      width: D, even, divisible by `heads` and, with the rearrange-first head, by `patch_size`².
      heads: attention heads.
      patch_size: side p of a patch.
      mlp_ratio: hidden width of the feed-forwards over D.
      qkv_bias: whether the projections of q, k and v have biases.
      time_mlp_ratio: hidden width over D of the MLP on the sinusoids of the time; 0 for none.
      head: "rearrange" to pixels, then a convolution; or U-ViT's "linear" first.
      ffn: "dwconv", with a depth-wise convolution; or U-ViT's "mlp".
      ffn_norm_affine: whether the norms inside "dwconv" have a scale and bias.
      ffn_norm_first: norm before GELU inside "dwconv" instead of after it.
      ffn_extra_tokens: what "dwconv" does to tokens without a place in the image: "pointwise" leaves out the
        convolution, "none" leaves the tokens as they are.
      text_width: width at which text is attended to; features of another width are projected first.
      text_mask_padding: leave padding out of the mean of the text and of cross-attention.
      time_scale: factor on the timestep; 1 for the index 0…999, 1000 for t ∈ [0, 1].
      remat: rematerialisation policy of the blocks.
      dtype: compute dtype.
      residual_dtype: dtype of the residual stream.
      rngs: initialiser streams.

    Raises:
      UserError: sizes that do not divide, an even depth, or another condition.
    """

    partition_rules = (
        *PARTITION_RULES,
        (r"embed/time_embed/fc\d/kernel", PartitionSpec("fsdp", None)),
        (r"embed/vector_embed/linear/kernel|label_embed/table/embedding", PartitionSpec(None, "fsdp")),
        (r"text/(project|pool|time_half|text_half)/kernel", PartitionSpec("fsdp", None)),
    )

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        out_channels: int,
        conditioning: ConditioningSpec,
        depth: int = 13,
        width: int = 512,
        heads: int = 8,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        time_mlp_ratio: float = 1.0,
        head: Literal["rearrange", "linear"] = "rearrange",
        ffn: Literal["dwconv", "mlp"] = "dwconv",
        ffn_norm_affine: bool = True,
        ffn_norm_first: bool = False,
        ffn_extra_tokens: ExtraTokens = "pointwise",
        text_width: int = 1024,
        text_mask_padding: bool = False,
        time_scale: float = 1.0,
        remat: RematPolicy = "none",
        dtype: DTypeName = "float32",
        residual_dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        conditioning.check("iuvit", frozenset({"label", "vector", "tokens"}))
        if width % heads or width % 2:
            raise UserError(f"model.width={width} must be even and divisible by model.heads={heads}")
        self.precision = Precision(dtype, residual_dtype)
        compute = self.precision.compute_dtype
        self.embed = TokenEmbedding(
            input_shape,
            conditioning._replace(token_length=0, token_width=0),
            width,
            patch_size=patch_size,
            time_mlp_ratio=time_mlp_ratio,
            time_scale=time_scale,
            precision=self.precision,
            rngs=rngs,
        )
        grid, hidden = self.embed.grid, int(width * mlp_ratio)
        has_text = conditioning.token_length > 0

        def text_features() -> TextFeatures:
            return TextFeatures(
                conditioning.token_width,
                width,
                text_width=text_width,
                mask_padding=text_mask_padding,
                kernel_init=INIT,
                bias_init=ZEROS,
                rngs=rngs,
            )

        self.text = text_features() if has_text else None

        def make_ffn(rngs: nnx.Rngs) -> MLP | DWConvFFN:
            if ffn == "mlp":
                return MLP(width, hidden, approximate=False, kernel_init=INIT, dtype=compute, rngs=rngs)
            return DWConvFFN(
                width,
                hidden,
                grid,
                norm_affine=ffn_norm_affine,
                norm_first=ffn_norm_first,
                extra_tokens=ffn_extra_tokens,
                eps=NORM_EPS,
                kernel_init=INIT,
                dtype=compute,
                rngs=rngs,
            )

        def block(rngs: nnx.Rngs) -> IUViTBlock:
            text = text_width if has_text else 0
            return IUViTBlock(
                width, heads, text_width=text, qkv_bias=qkv_bias, make_ffn=make_ffn, dtype=compute, rngs=rngs
            )

        self.trunk = LongSkips(block, depth, width, precision=self.precision, remat_policy=remat, rngs=rngs)
        self.head: LinearFirstHead | RearrangeFirstHead
        if head == "linear":
            self.head = LinearFirstHead(grid, width, patch_size, out_channels, conv=True, rngs=rngs)
        else:
            self.head = RearrangeFirstHead(grid, width, patch_size, out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Predicts the path's target for noisy inputs.

        Args:
          x: [B, H, W, C] float noisy images or latents.
          timestep: [B] float.
          cond: the parts that the model was built for: `label` [B], `vector` [B, vector_width], `tokens`
            [B, M, token_width] and `token_mask` [B, M]; a sample whose mask is all False has no text.

        Returns:
          [B, H, W, out_channels] float32.
        """
        time = self.embed.time(timestep, cond)  # [B, D]
        text = None
        if self.text is not None:
            time, text = self.text(time, cond)  # [B, D]
        return self.head(self.trunk(self.embed(x, time, cond), text))  # [B, H, W, out_channels]

    @property
    def sequence_length(self) -> int:
        """Length N of the sequence of self-attention."""
        return self.embed.sequence_length
