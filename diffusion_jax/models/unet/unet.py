"""The UNet of latent diffusion, which with other options is that of DDPM, IDDPM and ADM.

LDM: arXiv 2112.10752, appendix E. ADM: arXiv 2105.05233. IDDPM: arXiv 2102.09672. DDPM: arXiv 2006.11239, appendix B.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec, given_tokens, zero_dropped
from diffusion_jax.models.layers.convolution import conv3x3
from diffusion_jax.models.layers.embeddings import LabelEmbedder, TimestepEmbedder, VectorEmbedder
from diffusion_jax.models.layers.group_norm import GroupNorm
from diffusion_jax.models.layers.key_stream import KeyStream
from diffusion_jax.models.layers.precision import DTypeName, Precision
from diffusion_jax.models.layers.remat import RematPolicy
from diffusion_jax.models.unet.blocks import Context, DownsamplePadding, Encoder, UNetLayout, UpLevel

# Head- and hidden-wise over "tensor", the other matrix axis over "fsdp"; the first rule that fits decides.
UNET_PARTITION_RULES = (
    (r"blocks/attn\d/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
    (r"blocks/attn\d/q/kernel", PartitionSpec(None, "fsdp", "tensor", None)),
    (r"blocks/attn\d/kv/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
    (r"blocks/attn\d/proj/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", None, "tensor")),
    (r"blocks/mlp/fc1/bias", PartitionSpec(None, None, "tensor")),
    (r"blocks/mlp/fc2/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"attn/qkv/kernel", PartitionSpec("fsdp", None, "tensor", None)),
    (r"attn/qkv/bias", PartitionSpec(None, "tensor", None)),
    (r"attn/proj/kernel", PartitionSpec("tensor", "fsdp")),
    (r"conv1/kernel", PartitionSpec(None, None, "fsdp", "tensor")),
    (r"conv1/bias", PartitionSpec("tensor")),
    (r"conv2/kernel", PartitionSpec(None, None, "tensor", "fsdp")),
    (r"sampler/conv/kernel|conv_out/kernel", PartitionSpec(None, None, "fsdp", None)),
    (r"conv_in/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"(embedding|shortcut|proj_in|proj_out|time_embed/fc\d)/kernel", PartitionSpec("fsdp", None)),
    (r"vector_embed/linear/kernel", PartitionSpec(None, "fsdp")),
    (r"label_embed/table/embedding", PartitionSpec(None, "fsdp")),
)


class UNet(nnx.Module):
    """Convolutional network from noisy images or latents to the prediction, with skips from the way down to the way up.

    It is told by what the conditioner provides: a class label and a pooled embedding are added to the time embedding,
    tokens are attended to by a `SpatialTransformer` in place of every `AttentionBlock`.

    Args:
      input_shape: (H, W, C) of x_t; H and W divisible by 2^(levels − 1). Other sizes of which that is true can be
        given to the same weights.
      out_channels: channels of the output, 2C with a learned variance.
      conditioning: what the model is told; label, vector and tokens, in any combination.
      model_channels: C₀; the time embedding has width 4 C₀.
      channel_mult: width of each level over C₀, full resolution first; every further level halves H and W.
      num_res_blocks: residual blocks per level on the way down; one more on the way up.
      attention_resolutions: down-sampling factors of the levels with attentions, not sizes; the middle always has one.
        Factors that no level has are of no effect, as in some published configurations.
      num_heads: heads of every attention; set this or `num_head_channels`.
      num_head_channels: width of a head, the number of heads being C / `num_head_channels`.
      transformer_depth: blocks of a `SpatialTransformer`.
      use_scale_shift_norm: modulate norms by the time embedding instead of adding it.
      resblock_updown: change the resolution by residual blocks instead of convolutions.
      downsample_padding: zeros of a strided convolution: "symmetric" (LDM, IDDPM, ADM), or "after" (DDPM).
      norm_groups: groups of every norm.
      norm_eps: of every norm but those of `SpatialTransformer`; 1e-6 in DDPM.
      dropout: of the residual blocks, where `cond.dropout_keys` are given.
      time_scale: factor on the timestep; 1 for the index 0…999, 1000 for t ∈ [0, 1].
      freq_denominator: see `timestep_features`; C₀/2 − 1 in DDPM.
      remat: rematerialisation policy of the blocks; "dots" recomputes convolutions.
      dtype: compute dtype.
      residual_dtype: dtype of the feature maps between blocks.
      rngs: initialiser streams.

    Raises:
      UserError: sizes or heads that do not divide, or a condition that the model cannot take.
    """

    partition_rules = UNET_PARTITION_RULES

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        out_channels: int,
        conditioning: ConditioningSpec,
        model_channels: int = 256,
        channel_mult: tuple[float, ...] = (1, 2, 4),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (1, 2, 4),
        num_heads: int | None = None,
        num_head_channels: int | None = None,
        transformer_depth: int = 1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        downsample_padding: DownsamplePadding = "symmetric",
        norm_groups: int = 32,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        time_scale: float = 1.0,
        freq_denominator: int | None = None,
        remat: RematPolicy = "none",
        dtype: DTypeName = "float32",
        residual_dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        conditioning.check("unet", frozenset({"label", "vector", "tokens"}))
        self.layout = layout = UNetLayout(
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            context_width=conditioning.token_width or None,
            transformer_depth=transformer_depth,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            downsample_padding=downsample_padding,
            norm_groups=norm_groups,
            norm_eps=norm_eps,
            dropout=dropout,
            remat=remat,
            precision=Precision(dtype, residual_dtype),
        )
        height, width, channels = input_shape
        layout.check_size(height, width)
        self.sequence_length = layout.longest_sequence(height, width)
        rngs = KeyStream(rngs.params())
        self.time_embed = TimestepEmbedder(
            layout.embedding_width,
            features=model_channels,
            time_scale=time_scale,
            freq_denominator=freq_denominator,
            fan_in_init=True,
            rngs=rngs,
        )
        classes, vector, embedding_width = conditioning.num_classes, conditioning.vector_width, layout.embedding_width
        self.label_embed = LabelEmbedder(conditioning, embedding_width, stddev=1.0, rngs=rngs) if classes else None
        self.vector_embed = (
            VectorEmbedder(conditioning, embedding_width, fan_in_init=True, rngs=rngs) if vector else None
        )
        self.encoder = Encoder(channels, layout, rngs=rngs)
        self.decoder = Decoder(layout, out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Predicts the path's target for noisy inputs.

        Args:
          x: [B, H, W, C] float noisy images or latents.
          timestep: [B] float.
          cond: the parts that the model was built for; a sample whose `token_mask` is all False attends to zeros.

        Returns:
          [B, H, W, out_channels] float32.

        Raises:
          ValueError: a part that the model was built for is missing.
        """
        context = self.context(timestep, cond)
        return self.decoder(*self.encoder(x, context), context)  # [B, H, W, out_channels]

    def context(self, timestep: jax.Array, cond: Conditioning) -> Context:
        """What all blocks are told of [B] times and the condition."""
        embedding, tokens = self.time_embed(timestep), None  # [B, E]
        if self.label_embed is not None:
            embedding = embedding + self.label_embed(cond.label)  # [B, E]
        if self.vector_embed is not None:
            embedding = embedding + self.vector_embed(cond.vector)  # [B, E]
        if self.layout.context_width is not None:
            tokens = zero_dropped(given_tokens(cond), cond.token_mask)  # [B, M, context_width]
        return Context(jax.nn.silu(embedding), tokens, cond.token_mask, cond.dropout_keys)


class Decoder(nnx.Module):
    """The way up of a UNet, and its head.

    Args:
      layout: the shape.
      out_channels: channels of the output.
      rngs: initialiser streams; the last convolution starts at zero.
    """

    def __init__(self, layout: UNetLayout, out_channels: int, *, rngs: KeyStream):
        skips, blocks = layout.skip_widths, layout.num_res_blocks + 1
        inputs = (*layout.widths[1:], layout.widths[-1])
        # Levels are numbered as the encoder's, so the way up begins with the last; level i takes blocks·i ….
        self.levels = nnx.List(
            [
                UpLevel(
                    inputs[level],
                    width,
                    skips[blocks * level : blocks * (level + 1)][::-1],
                    layout,
                    attends=layout.attends[level],
                    is_last=level == 0,
                    rngs=rngs,
                )
                for level, width in enumerate(layout.widths)
            ]
        )
        self.norm_out = GroupNorm(layout.widths[0], groups=layout.norm_groups, eps=layout.norm_eps)
        self.conv_out = conv3x3(layout.widths[0], out_channels, zero_init=True, dtype=jnp.dtype("float32"), rngs=rngs)

    def __call__(self, x: jax.Array, skips: list[jax.Array], context: Context) -> jax.Array:
        """Decodes what an `Encoder` returned to [B, H, W, out_channels] float32."""
        for i in reversed(range(len(self.levels))):
            blocks = len(self.levels[i].blocks)
            x = self.levels[i](x, skips[blocks * i : blocks * (i + 1)][::-1], context)  # [B, H/2^(i−1), W/2^(i−1), …]
        return self.conv_out(jax.nn.silu(self.norm_out(x)))  # [B, H, W, out_channels]
