"""U-ViT: a vision transformer with long skips in which time and conditions are tokens (arXiv 2209.12152)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec, given_tokens, sequence_mask
from diffusion_jax.models.layers.convolution import conv3x3, pointwise
from diffusion_jax.models.layers.embeddings import LabelEmbedder, TimestepEmbedder, VectorEmbedder, timestep_features
from diffusion_jax.models.layers.norms import LayerNorm
from diffusion_jax.models.layers.patches import patch_grid, patchify, unpatchify
from diffusion_jax.models.layers.precision import DTypeName, Precision
from diffusion_jax.models.layers.remat import RematPolicy
from diffusion_jax.models.layers.residual import add
from diffusion_jax.models.layers.transformer import MLP, Linear, SelfAttention
from diffusion_jax.models.uvit.long_skips import INIT, PARTITION_RULES, LongSkips

NORM_EPS = 1e-5


class UViTBlock(nnx.Module):
    """The pre-norm block of a ViT: x += Attn(LN x), x += MLP(LN x), with the exact GELU.

    Args:
      width: D.
      heads: number of heads.
      hidden: width of the MLP.
      qkv_bias: whether the projection of q, k and v has a bias.
      dtype: compute dtype.
      rngs: initialiser streams.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, qkv_bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, heads, qkv_bias=qkv_bias, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=NORM_EPS)
        self.ffn = MLP(width, hidden, approximate=False, kernel_init=INIT, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Maps tokens [B, N, D], those with `mask` [B, N] False attended to by none, to [B, N, D] in the dtype of x."""
        x = add(x, self.attn(self.norm1(x), mask=mask))  # [B, N, D]
        return add(x, self.ffn(self.norm2(x)))  # [B, N, D]


class TokenEmbedding(nnx.Module):
    """The sequence [label], time, [context], patches, each of the first and third only if told; learned positions.

    Args:
      input_shape: (H, W, C) of x_t.
      conditioning: its classes, pooled embedding and tokens.
      width: D.
      patch_size: side p of a patch.
      time_mlp_ratio: hidden width over D of an MLP on the sinusoids of the time; 0 takes the sinusoids themselves.
      time_scale: factor on the timestep.
      precision: the mixed-precision policy.
      rngs: initialiser streams; label rows ~ N(0, 1) and patches as a convolution, PyTorch's defaults.

    Raises:
      UserError: p does not divide H and W.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        conditioning: ConditioningSpec,
        width: int,
        *,
        patch_size: int,
        time_mlp_ratio: float,
        time_scale: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        height, image_width, channels = input_shape
        dtype = precision.compute_dtype
        self.grid = patch_grid(height, image_width, patch_size)
        self.width, self.patch_size, self.time_scale = width, patch_size, time_scale
        self.residual_dtype = precision.residual_dtype
        self.context_length = conditioning.token_length
        self.extras = bool(conditioning.num_classes) + 1 + self.context_length
        self.patch_embed = pointwise(patch_size**2 * channels, width, dtype=dtype, rngs=rngs)

        def time_mlp() -> TimestepEmbedder:
            hidden = int(width * time_mlp_ratio)
            return TimestepEmbedder(width, features=width, time_scale=time_scale, hidden=hidden, rngs=rngs)

        def project_tokens() -> Linear:
            return Linear(conditioning.token_width, width, kernel_init=INIT, dtype=dtype, rngs=rngs)

        self.time_embed = time_mlp() if time_mlp_ratio else None
        self.label_embed = (
            LabelEmbedder(conditioning, width, stddev=1.0, rngs=rngs) if conditioning.num_classes else None
        )
        self.vector_embed = VectorEmbedder(conditioning, width, rngs=rngs) if conditioning.vector_width else None
        self.context_embed = project_tokens() if self.context_length else None
        self.positions = nnx.Param(INIT(rngs.params(), (self.sequence_length, width), jnp.float32))

    def time(self, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Embeds [B] timesteps, and the `vector` of the condition if the model has one, as [B, D] float32."""
        if self.time_embed is None:
            time = timestep_features(timestep * self.time_scale, self.width)  # [B, D]
        else:
            time = self.time_embed(timestep)  # [B, D]
        return time if self.vector_embed is None else time + self.vector_embed(cond.vector)  # [B, D]

    def __call__(self, x: jax.Array, time: jax.Array, cond: Conditioning) -> jax.Array:
        """Lays out the sequence.

        Args:
          x: [B, H, W, C] noisy images.
          time: [B, D], what `time` gave.
          cond: its `label` and `tokens` are used if the model has them.

        Returns:
          [B, N, D] tokens in the residual dtype.
        """
        parts = [time[:, None]]  # [B, 1, D]
        if self.label_embed is not None:
            parts.insert(0, self.label_embed(cond.label)[:, None])  # [B, 1, D]
        if self.context_embed is not None:
            parts.append(self.context_embed(given_tokens(cond)))  # [B, M, D]
        parts.append(self.patch_embed(patchify(x, self.patch_size)))  # [B, H·W/p², D]
        sequence = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=1)  # [B, N, D]
        return (sequence + self.positions[...]).astype(self.residual_dtype)

    def mask(self, cond: Conditioning) -> jax.Array | None:
        """Which tokens may be attended to, [B, N] bool: all but the invalid ones of the context; None means all."""
        if not self.context_length:
            return None
        before, after = self.extras - self.context_length, self.sequence_length - self.extras
        return sequence_mask(cond.token_mask, before, after)  # [B, N]

    @property
    def sequence_length(self) -> int:
        """Length N of the sequence."""
        return self.extras + self.grid[0] * self.grid[1]


class LinearFirstHead(nnx.Module):
    """Norm, linear map of each image token to its patch, and a 3×3 convolution over the image.

    Args:
      grid: rows and columns of patches.
      width: D.
      patch_size: side p of a patch.
      out_channels: channels of the output.
      conv: whether there is the convolution.
      rngs: initialiser streams.
    """

    def __init__(
        self, grid: tuple[int, int], width: int, patch_size: int, out_channels: int, *, conv: bool, rngs: nnx.Rngs
    ):
        self.grid, self.patch_size = grid, patch_size
        self.norm = LayerNorm(width, eps=NORM_EPS)
        self.linear = nnx.Linear(width, patch_size**2 * out_channels, kernel_init=INIT, rngs=rngs)
        float32 = jnp.dtype("float32")
        self.conv = conv3x3(out_channels, out_channels, dtype=float32, rngs=rngs) if conv else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D], of which the image's are last, to [B, H, W, out_channels] float32."""
        image = x[:, -self.grid[0] * self.grid[1] :]  # [B, H·W/p², D]
        image = unpatchify(self.linear(self.norm(image)), self.grid, self.patch_size)  # [B, H, W, out_channels]
        return image if self.conv is None else self.conv(image)


class UViT(nnx.Module):
    """A vision transformer with long skips over noisy patches; time, class and context are further tokens.

    A pooled embedding is added to the token of the time.

    Context tokens are part of the sequence of self-attention. The released text model attends to all of them, padding
    too, and has the encoding of the empty caption for its null condition; where `cond.token_mask` is given, invalid
    ones are attended to by none.

    Args:
      input_shape: (H, W, C) of x_t; H and W divisible by `patch_size`.
      out_channels: channels of the output.
      conditioning: what the model is told: a class label, a pooled embedding, tokens, in any combination, or nothing.
      depth: number of blocks L, odd; the released `depth` is L − 1.
      width: D, divisible by `heads`.
      heads: attention heads.
      patch_size: side p of a patch.
      mlp_ratio: hidden width of the MLPs over D.
      qkv_bias: whether the projections of q, k and v have biases.
      time_mlp_ratio: hidden width over D of an MLP on the sinusoids of the time; 0 for none, 4 where the released
        `mlp_time_embed` is true.
      conv: whether a 3×3 convolution follows the linear head.
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
        (r"embed/(vector_embed/linear|context_embed)/kernel|label_embed/table/embedding", PartitionSpec(None, "fsdp")),
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
        time_mlp_ratio: float = 0.0,
        conv: bool = True,
        time_scale: float = 1.0,
        remat: RematPolicy = "none",
        dtype: DTypeName = "float32",
        residual_dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        conditioning.check("uvit", frozenset({"label", "vector", "tokens"}))
        if width % heads:
            raise UserError(f"model.width={width} must be divisible by model.heads={heads}")
        self.precision = Precision(dtype, residual_dtype)
        self.embed = TokenEmbedding(
            input_shape,
            conditioning,
            width,
            patch_size=patch_size,
            time_mlp_ratio=time_mlp_ratio,
            time_scale=time_scale,
            precision=self.precision,
            rngs=rngs,
        )

        def block(rngs: nnx.Rngs) -> UViTBlock:
            hidden = int(width * mlp_ratio)
            return UViTBlock(width, heads, hidden, qkv_bias=qkv_bias, dtype=self.precision.compute_dtype, rngs=rngs)

        self.trunk = LongSkips(block, depth, width, precision=self.precision, remat_policy=remat, rngs=rngs)
        self.head = LinearFirstHead(self.embed.grid, width, patch_size, out_channels, conv=conv, rngs=rngs)

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Predicts the path's target for noisy inputs.

        Args:
          x: [B, H, W, C] float noisy images or latents.
          timestep: [B] float.
          cond: the parts that the model was built for: `label` [B], `vector` [B, vector_width], `tokens`
            [B, M, token_width] and `token_mask` [B, M].

        Returns:
          [B, H, W, out_channels] float32.
        """
        tokens = self.embed(x, self.embed.time(timestep, cond), cond)  # [B, N, D]
        return self.head(self.trunk(tokens, self.embed.mask(cond)))  # [B, H, W, out_channels]

    @property
    def sequence_length(self) -> int:
        """Length N of the sequence."""
        return self.embed.sequence_length
