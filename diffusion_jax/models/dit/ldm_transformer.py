"""LDM-Transformer: a ViT encoder and a ViT decoder that denoise latents (Chahal 2022, arXiv 2212.14678)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec, given_tokens, sequence_mask
from diffusion_jax.models.layers.embeddings import LabelEmbedder, TimestepEmbedder, VectorEmbedder, sincos_2d
from diffusion_jax.models.layers.norms import LayerNorm
from diffusion_jax.models.layers.patches import patch_grid, patchify, unpatchify
from diffusion_jax.models.layers.precision import DTypeName, Precision
from diffusion_jax.models.layers.remat import RematPolicy
from diffusion_jax.models.layers.residual import add
from diffusion_jax.models.layers.scan_blocks import scan_blocks
from diffusion_jax.models.layers.transformer import MLP, XAVIER_UNIFORM, Linear, SelfAttention

TimeMode = Literal["token", "add"]
ClassMode = Literal["token", "with_time"]


class ViTBlock(nnx.Module):
    """The pre-norm block of ViT (arXiv 2010.11929, eq. 2–3): x += Attn(LN x), x += MLP(LN x), with the exact GELU.

    Args:
      width: D.
      heads: number of heads.
      hidden: width of the MLP.
      qkv_bias: whether the projection of q, k and v has a bias.
      precision: the mixed-precision policy.
      rngs: initialiser streams.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, qkv_bias: bool, precision: Precision, rngs: nnx.Rngs):
        dtype = precision.compute_dtype
        self.norm1 = LayerNorm(width)
        self.attn = SelfAttention(width, heads, qkv_bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width)
        self.mlp = MLP(width, hidden, approximate=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps tokens [B, N, D], read where `mask` [B, N] is True, to [B, N, D], in the dtype of x."""
        x = add(x, self.attn(self.norm1(x), mask=mask))  # [B, N, D]
        return add(x, self.mlp(self.norm2(x)))  # [B, N, D]


class ViT(nnx.Module):
    """A stack of `ViTBlock` and a final norm.

    Args:
      depth: number of blocks.
      width: D, divisible by `heads`.
      heads: number of heads.
      hidden: width of the MLPs.
      qkv_bias: whether the projections of q, k and v have biases.
      remat_policy: rematerialisation policy of the blocks.
      precision: the mixed-precision policy.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        *,
        qkv_bias: bool,
        remat_policy: RematPolicy,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def block(key: jax.Array) -> ViTBlock:
            return ViTBlock(width, heads, hidden, qkv_bias=qkv_bias, precision=precision, rngs=nnx.Rngs(key))

        self.remat = remat_policy
        self.residual_dtype = precision.residual_dtype
        self.blocks = jax.vmap(block)(jax.random.split(rngs.params(), depth))
        self.norm = LayerNorm(width)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps tokens [B, N, D], read where `mask` [B, N] is True, to [B, N, D] float32."""

        def body(x: jax.Array, block: ViTBlock) -> tuple[jax.Array, None]:
            return block(x, mask), None

        x, _ = scan_blocks(body, x.astype(self.residual_dtype), self.blocks, self.remat)
        return self.norm(x)


class TokenEmbeddings(nnx.Module):
    """What tells the sequence time, class, text and place: [time, class, token_1 …, patch_1 … patch_P].

    All before the patches is optional. A pooled embedding is added to the time.

    Args:
      grid: rows and columns of patches; P is their product.
      width: D, divisible by 4.
      conditioning: the classes, pooled embedding and tokens that there are.
      time_mode: "token" gives time a token of its own, "add" adds it to all others.
      class_mode: "token" gives the class a token of its own, "with_time" adds it to the time.
      time_scale: factor on the timestep.
      dtype: compute dtype of the projection of the tokens.
      rngs: initialiser streams.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        conditioning: ConditioningSpec,
        *,
        time_mode: TimeMode,
        class_mode: ClassMode,
        time_scale: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def project_tokens() -> Linear:
            return Linear(conditioning.token_width, width, kernel_init=XAVIER_UNIFORM, dtype=dtype, rngs=rngs)

        self.grid, self.width, self.context_length = grid, width, conditioning.token_length
        self.time_mode, self.class_mode = time_mode, class_mode
        self.time_embed = TimestepEmbedder(width, features=width, time_scale=time_scale, rngs=rngs)
        self.label_embed = LabelEmbedder(conditioning, width, rngs=rngs) if conditioning.num_classes else None
        self.vector_embed = VectorEmbedder(conditioning, width, rngs=rngs) if conditioning.vector_width else None
        self.context_embed = project_tokens() if self.context_length else None

    def __call__(self, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Embeds [B] timesteps and the conditions of a batch as [B, N, D] float32."""
        positions = sincos_2d(*self.grid, self.width)  # [P, D]
        tokens = jnp.broadcast_to(positions, (len(timestep), *positions.shape))  # [B, P, D]
        if self.context_embed is not None:
            context = self.context_embed(given_tokens(cond)).astype(jnp.float32)  # [B, M, D]
            tokens = jnp.concatenate([context, tokens], axis=1)  # [B, M + P, D]
        time = self.time_embed(timestep)[:, None]  # [B, 1, D]
        if self.vector_embed is not None:
            time = time + self.vector_embed(cond.vector)[:, None]  # [B, 1, D]
        if self.label_embed is not None:
            label = self.label_embed(cond.label)[:, None]  # [B, 1, D]
            if self.class_mode == "token":
                tokens = jnp.concatenate([label, tokens], axis=1)  # [B, 1 + M + P, D]
            else:
                time = time + label
        return jnp.concatenate([time, tokens], axis=1) if self.time_mode == "token" else tokens + time  # [B, N, D]

    @property
    def extra(self) -> int:
        """Number of tokens before the patches."""
        has_class_token = self.label_embed is not None and self.class_mode == "token"
        return int(self.time_mode == "token") + int(has_class_token) + self.context_length

    def mask(self, cond: Conditioning) -> jax.Array | None:
        """Which tokens may be attended to, [B, N] bool: all but the invalid ones of the context; None means all."""
        if not self.context_length:
            return None
        return sequence_mask(cond.token_mask, self.extra - self.context_length, self.grid[0] * self.grid[1])


class LDMTransformer(nnx.Module):
    """ViT encoder and decoder over latent patches; class, time, text and image meet in self-attention alone.

    The layout is that of masked autoencoders (arXiv 2111.06377) without masking: no cross-attention, no skip
    connections, no dropout; the embeddings of time, class and place are added again before the decoder. The paper
    leaves most sizes open; the defaults make `ldm8-transformer`, as large as the UNet it is compared with.

    The paper has classes only, and argues that without cross-attention other tokens join as easily. Those of a text,
    projected to the width and without positions, stand after the class and are treated as it is: they are part of both
    halves' sequence and are added again before the decoder.

    Args:
      input_shape: (H, W, C) of x_t; H and W divisible by `patch_size`.
      out_channels: channels of the output.
      conditioning: what the model is told: a class label, a pooled embedding, tokens, in any combination, or nothing.
      depth: number of encoder blocks.
      width: D of the encoder, divisible by 4 and by `heads`.
      heads: attention heads of the encoder.
      decoder_depth: number of decoder blocks; None takes `depth`.
      decoder_width: D of the decoder; None takes `width`. Another width has its own embeddings of time and class.
      decoder_heads: attention heads of the decoder; None takes `heads`.
      patch_size: side p of a patch.
      mlp_ratio: hidden width of an MLP over D.
      qkv_bias: whether the projections of q, k and v have biases.
      bridge: a linear map between encoder and decoder; decoders of another width need it.
      zero_head: start the head at zero, so that the output does too, as that of the UNet.
      time_mode: "token" for a separate time token, "add" to add the time to every token.
      class_mode: "token" for a separate class token (adopted by the paper), "with_time" to add the class to the time.
      time_scale: factor on the timestep; 1 for the index 0…999, 1000 for t ∈ [0, 1].
      remat: rematerialisation policy of the blocks.
      dtype: compute dtype.
      residual_dtype: dtype of the residual stream.
      rngs: initialiser streams.

    Raises:
      UserError: sizes that do not divide, a decoder of another width without a bridge, or another condition.
    """

    # Head- and hidden-wise over "tensor", the other matrix axis over "fsdp".
    partition_rules = (
        (r"blocks/attn/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
        (r"blocks/attn/qkv/bias", PartitionSpec(None, None, "tensor", None)),
        (r"blocks/attn/proj/kernel", PartitionSpec(None, "tensor", "fsdp")),
        (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
        (r"blocks/mlp/fc1/bias", PartitionSpec(None, "tensor")),
        (r"blocks/mlp/fc2/kernel", PartitionSpec(None, "tensor", "fsdp")),
        (r"time_embed/fc\d/kernel|bridge/kernel", PartitionSpec("fsdp", None)),
        (r"vector_embed/linear/kernel|context_embed/kernel", PartitionSpec(None, "fsdp")),
        (r"label_embed/table/embedding", PartitionSpec(None, "fsdp")),
    )

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        out_channels: int,
        conditioning: ConditioningSpec,
        depth: int = 16,
        width: int = 1024,
        heads: int = 16,
        decoder_depth: int | None = None,
        decoder_width: int | None = None,
        decoder_heads: int | None = None,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        bridge: bool = True,
        zero_head: bool = True,
        time_mode: TimeMode = "token",
        class_mode: ClassMode = "token",
        time_scale: float = 1.0,
        remat: RematPolicy = "none",
        dtype: DTypeName = "float32",
        residual_dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        height, image_width, channels = input_shape
        conditioning.check("ldm_transformer", frozenset({"label", "vector", "tokens"}))
        decoder_depth = depth if decoder_depth is None else decoder_depth
        decoder_width = width if decoder_width is None else decoder_width
        decoder_heads = heads if decoder_heads is None else decoder_heads
        for half, size, parts in (("", width, heads), ("decoder_", decoder_width, decoder_heads)):
            if size % parts or size % 4:
                raise UserError(f"model.{half}width={size} must be divisible by 4 and by model.{half}heads={parts}")
        if decoder_width != width and not bridge:
            raise UserError(
                f"model.bridge=False needs one width, not model.width={width} and model.decoder_width={decoder_width}"
            )
        self.precision = Precision(dtype, residual_dtype)
        self.patch_size = patch_size
        self.grid = patch_grid(height, image_width, patch_size)
        compute_dtype = self.precision.compute_dtype

        def embeddings(width: int) -> TokenEmbeddings:
            return TokenEmbeddings(
                self.grid,
                width,
                conditioning,
                time_mode=time_mode,
                class_mode=class_mode,
                time_scale=time_scale,
                dtype=compute_dtype,
                rngs=rngs,
            )

        def vit(depth: int, width: int, heads: int) -> ViT:
            return ViT(
                depth,
                width,
                heads,
                int(width * mlp_ratio),
                qkv_bias=qkv_bias,
                remat_policy=remat,
                precision=self.precision,
                rngs=rngs,
            )

        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, kernel_init=XAVIER_UNIFORM, dtype=compute_dtype, rngs=rngs)

        self.patch_embed = linear(patch_size**2 * channels, width)
        self.embed = embeddings(width)
        self.encoder = vit(depth, width, heads)
        self.bridge = linear(width, decoder_width) if bridge else None
        self.decoder_embed = embeddings(decoder_width) if decoder_width != width else None
        self.decoder = vit(decoder_depth, decoder_width, decoder_heads)
        head_init = nnx.initializers.zeros_init() if zero_head else XAVIER_UNIFORM
        self.head = nnx.Linear(decoder_width, patch_size**2 * out_channels, kernel_init=head_init, rngs=rngs)

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Predicts the path's target for noisy inputs.

        Args:
          x: [B, H, W, C] float noisy images or latents.
          timestep: [B] float.
          cond: the parts that the model was built for: `label`, [B] int32 in 0…K; `vector`; `tokens`, of which those
            that `token_mask` masks have no influence, with `token_mask`.

        Returns:
          [B, H, W, out_channels] float32.
        """
        embeddings = self.embed(timestep, cond)  # [B, N, D]
        patches = self.patch_embed(patchify(x, self.patch_size)).astype(jnp.float32)  # [B, P, D]
        patches = jnp.pad(patches, ((0, 0), (self.embed.extra, 0), (0, 0)))  # [B, N, D]
        mask = self.embed.mask(cond)
        tokens = self.encoder(patches + embeddings, mask)  # [B, N, D]
        if self.bridge is not None:
            tokens = self.bridge(tokens).astype(jnp.float32)  # [B, N, D of the decoder]
        if self.decoder_embed is not None:
            embeddings = self.decoder_embed(timestep, cond)  # [B, N, D of the decoder]
        tokens = self.decoder(tokens + embeddings, mask)  # [B, N, D of the decoder]
        out = self.head(tokens[:, self.embed.extra :])  # [B, P, p²·out_channels]
        return unpatchify(out, self.grid, self.patch_size)  # [B, H, W, out_channels]

    @property
    def sequence_length(self) -> int:
        """Length N of the sequence."""
        return self.grid[0] * self.grid[1] + self.embed.extra
