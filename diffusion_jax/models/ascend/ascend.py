"""ASCEND, an asymmetric encoder-decoder: Swin blocks on the way down, residual convolutions up (arXiv 2212.13771)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.models.ascend.blocks import (
    EPS,
    BlockKind,
    Context,
    ConvLevel,
    DecoderLevel,
    Downsampler,
    Layout,
    Middle,
    Resampling,
    Skips,
    SwinLevel,
    Upsampler,
)
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.models.conditioning.text_features import TextFeatures
from diffusion_jax.models.layers.convolution import UNIFORM_FAN_IN, conv3x3, uniform
from diffusion_jax.models.layers.embeddings import LabelEmbedder, TimestepEmbedder, VectorEmbedder
from diffusion_jax.models.layers.group_norm import GroupNorm
from diffusion_jax.models.layers.precision import DTypeName, Precision
from diffusion_jax.models.layers.remat import RematPolicy

# Head- and hidden-wise over "tensor", the other matrix axis over "fsdp".
_RULES = (
    (r"qkv/kernel", ("fsdp", None, "tensor", None)),
    (r"qkv/bias", (None, "tensor", None)),
    (r"cross/q/kernel", ("fsdp", "tensor", None)),
    (r"cross/q/bias", ("tensor", None)),
    (r"cross/kv/kernel", ("fsdp", None, "tensor", None)),
    (r"cross/kv/bias", (None, "tensor", None)),
    (r"proj/kernel", ("tensor", "fsdp")),
    (r"relative_bias", (None, "tensor")),
    (r"mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"mlp/fc1/bias", ("tensor",)),
    (r"mlp/fc2/kernel", ("tensor", "fsdp")),
    (r"embedding/kernel", ("fsdp", None)),
)


class ASCEND(nnx.Module):
    """Hierarchical noise-prediction network in pixel space.

    The encoder's levels are Swin blocks, the decoder's residual convolution blocks with attention; each level of the
    decoder also gets what the encoder's level of the same size made. Both halves, the steps between levels and the
    skips can be exchanged, as in the paper's ablation.

    The paper has no model of classes. A label, and a pooled embedding, are added here to the embedding of the time, as
    ADM adds them, whose residual blocks these are; in a model of text before that takes its half of the embedding.

    Args:
      input_shape: (H, W, C) of x_t; H and W divisible by 2^(levels − 1).
      out_channels: channels of the output.
      conditioning: what the model is told: a class label, a pooled embedding, the tokens of a text, in any
        combination, or nothing.
      model_channels: base width, a multiple of 32.
      channel_mult: width of each level over the base width, full resolution first.
      enc_depths: blocks of each level of the encoder; a Swin block is two window attentions.
      dec_blocks: blocks of each level of the decoder.
      encoder: kind of the encoder's blocks.
      decoder: kind of the decoder's blocks.
      skips: "level" hands over the last output of each level, "block" the input of a level and the output of each of
        its blocks (ADM), "none" nothing.
      resampling: PatchMerging and PatchExpanding between levels, or convolutions.
      attention_resolutions: heights at which convolution blocks are followed by an attention between all pixels, and
        Swin blocks attend to the text; the middle does both in any case.
      num_head_channels: channels of a head.
      window_size: largest side of a window.
      mlp_ratio: hidden width of the MLPs over their width.
      dropout: of the residual blocks, where `cond.dropout_keys` are given.
      text_width: width of the tokens inside the model; None for that of the tokens given.
      mask_padding: leave tokens that `cond.token_mask` masks out of attention and mean.
      time_scale: factor on the timestep; 1 for the index 0…999, 1000 for t ∈ [0, 1].
      remat: rematerialisation policy of the blocks.
      dtype: compute dtype.
      residual_dtype: dtype of the feature maps between blocks.
      rngs: initialiser streams.

    Raises:
      UserError: sizes that do not fit together, or a condition that the model cannot take.
    """

    partition_rules = (
        *((f"stack/.*{name}", PartitionSpec(None, *axes)) for name, axes in _RULES),
        *((name, PartitionSpec(*axes)) for name, axes in _RULES),
        (r"res/conv1/kernel|block\d/conv1/kernel", PartitionSpec(None, None, "fsdp", "tensor")),
        (r"res/conv2/kernel|block\d/conv2/kernel", PartitionSpec(None, None, "tensor", "fsdp")),
        (r"(down|up)samplers/\d+/layer/linear/kernel|time_embed/fc\d/kernel", PartitionSpec("fsdp", None)),
        (r"(down|up)samplers/\d+/layer/kernel", PartitionSpec(None, None, "fsdp", None)),
        (r"shortcut/kernel|project/kernel|text_features/\w+/kernel", PartitionSpec("fsdp", None)),
        (r"vector_embed/linear/kernel", PartitionSpec(None, "fsdp")),
        (r"label_embed/table/embedding", PartitionSpec(None, "fsdp")),
    )

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        out_channels: int,
        conditioning: ConditioningSpec,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        enc_depths: tuple[int, ...] = (4, 4, 4, 4),
        dec_blocks: tuple[int, ...] = (2, 2, 2, 2),
        encoder: BlockKind = "swin",
        decoder: BlockKind = "conv",
        skips: Skips = "level",
        resampling: Resampling = "patch",
        attention_resolutions: tuple[int, ...] = (16,),
        num_head_channels: int = 64,
        window_size: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        text_width: int | None = None,
        mask_padding: bool = False,
        time_scale: float = 1.0,
        remat: RematPolicy = "none",
        dtype: DTypeName = "float32",
        residual_dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        height, width, channels = input_shape
        conditioning.check("ascend", frozenset({"label", "vector", "tokens"}))
        layout = Layout(
            grid=(height, width),
            model_channels=model_channels,
            channel_mult=channel_mult,
            enc_depths=enc_depths,
            dec_blocks=dec_blocks,
            encoder=encoder,
            decoder=decoder,
            skips=skips,
            resampling=resampling,
            attention_resolutions=attention_resolutions,
            num_head_channels=num_head_channels,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            context_width=(text_width or conditioning.token_width) if conditioning.token_length else 0,
            remat=remat,
            precision=Precision(dtype, residual_dtype),
        )
        self.precision = layout.precision
        self.sequence_length = layout.longest_sequence
        widths, levels = layout.widths, range(len(layout.widths))
        embedding_width = layout.embedding_width
        self.time_embed = TimestepEmbedder(
            embedding_width, features=model_channels, time_scale=time_scale, fan_in_init=True, rngs=rngs
        )
        classes, vector, tokens = conditioning.num_classes, conditioning.vector_width, conditioning.token_length
        self.label_embed = LabelEmbedder(conditioning, embedding_width, stddev=1.0, rngs=rngs) if classes else None
        self.vector_embed = (
            VectorEmbedder(conditioning, embedding_width, fan_in_init=True, rngs=rngs) if vector else None
        )

        def text_features() -> TextFeatures:
            return TextFeatures(
                conditioning.token_width,
                embedding_width,
                text_width=text_width,
                mask_padding=mask_padding,
                kernel_init=UNIFORM_FAN_IN,
                bias_init=uniform(embedding_width),
                rngs=rngs,
            )

        self.text_features = text_features() if tokens else None
        self.conv_in = conv3x3(channels, widths[0], dtype=layout.dtype, rngs=rngs)
        level_kind = {"swin": SwinLevel, "conv": ConvLevel}[encoder]
        self.encoder = nnx.List([level_kind(level, layout, rngs=rngs) for level in levels])
        self.downsamplers = nnx.List(
            [
                Downsampler(features, following, layout, rngs=rngs)
                for features, following in zip(widths, layout.inputs[1:], strict=False)
            ]
        )
        self.middle = Middle(layout, rngs=rngs)
        self.decoder = nnx.List(
            [
                DecoderLevel(following, level, layout, rngs=rngs)
                for level, following in zip(levels, (*widths[1:], widths[-1]), strict=True)
            ]
        )
        # Upsampler i leads from level i + 1 to level i.
        self.upsamplers = nnx.List([Upsampler(features, layout, rngs=rngs) for features in widths[1:]])
        self.norm_out = GroupNorm(widths[0], eps=EPS)
        self.conv_out = conv3x3(widths[0], out_channels, zero_init=True, dtype=layout.dtype, rngs=rngs)

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
        """Predicts the path's target for noisy inputs.

        Args:
          x: [B, H, W, C] float noisy images or latents.
          timestep: [B] float.
          cond: the parts that the model was built for: `label`, [B] int32 in 0…K; `vector`; `tokens` with
            `token_mask`.

        Returns:
          [B, H, W, out_channels] float32.
        """
        context = self.context(timestep, cond)
        x = self.conv_in(x).astype(self.precision.residual_dtype)  # [B, H, W, widths[0]]
        skips: list[list[jax.Array]] = []
        for i, level in enumerate(self.encoder):
            x, outputs = level(x, context.part(i))  # [B, H/2^i, W/2^i, widths[i]] each
            skips.append(outputs)
            if i < len(self.downsamplers):
                x = self.downsamplers[i](x)  # [B, H/2^(i+1), W/2^(i+1), inputs[i+1]]
        x = self.middle(x, context.part(len(skips)))
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](x, skips[i], context.part(len(skips) + 1 + i))  # [B, H/2^i, W/2^i, widths[i]]
            if i > 0:
                x = self.upsamplers[i - 1](x)  # [B, H/2^(i-1), W/2^(i-1), widths[i]]
        return self.conv_out(jax.nn.silu(self.norm_out(x))).astype(jnp.float32)  # [B, H, W, out_channels]

    def context(self, timestep: jax.Array, cond: Conditioning) -> Context:
        """What all blocks are told of [B] times and the condition."""
        embedding, text = self.time_embed(timestep), None  # [B, E]
        if self.label_embed is not None:
            embedding = embedding + self.label_embed(cond.label)  # [B, E]
        if self.vector_embed is not None:
            embedding = embedding + self.vector_embed(cond.vector)  # [B, E]
        if self.text_features is not None:
            embedding, text = self.text_features(embedding, cond)
        return Context(jax.nn.silu(embedding), text, cond.dropout_keys)
