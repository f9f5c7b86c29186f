"""A classifier of noisy images or latents, for classifier guidance (arXiv 2105.05233, §4; 2112.10752, appendix C)."""

from collections.abc import Mapping

import jax
from flax import nnx

from diffusion_jax.models.conditioning.parts import Conditioning
from diffusion_jax.models.layers.embeddings import TimestepEmbedder
from diffusion_jax.models.layers.group_norm import GroupNorm
from diffusion_jax.models.layers.key_stream import KeyStream
from diffusion_jax.models.layers.precision import DTypeName, Precision
from diffusion_jax.models.layers.remat import RematPolicy
from diffusion_jax.models.unet.attention import AttentionPool
from diffusion_jax.models.unet.blocks import Context, Encoder, UNetLayout
from diffusion_jax.models.unet.unet import UNET_PARTITION_RULES
from diffusion_jax.schema import Options


class NoisyClassifier(nnx.Module):
    """The way down of a UNet, pooled by attention to the logits of the classes.

    Args:
      input_shape: (H, W, C) of x_t; the pooling has learned positions, so no other size can be given.
      num_classes: K.
      model_channels: see `UNet` for this and the rest; `num_head_channels` also sizes the heads of the pooling.
      rngs: initialiser streams.

    Raises:
      UserError: sizes or heads that do not divide.
    """

    partition_rules = UNET_PARTITION_RULES
    classifies = True

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        model_channels: int = 128,
        channel_mult: tuple[float, ...] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (8, 16, 32),
        num_head_channels: int = 64,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        norm_groups: int = 32,
        time_scale: float = 1.0,
        remat: RematPolicy = "none",
        dtype: DTypeName = "float32",
        residual_dtype: DTypeName = "float32",
        rngs: nnx.Rngs,
    ):
        layout = UNetLayout(
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            num_heads=None,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            norm_groups=norm_groups,
            remat=remat,
            precision=Precision(dtype, residual_dtype),
        )
        height, width, channels = input_shape
        layout.check_size(height, width)
        rngs = KeyStream(rngs.params())
        self.time_embed = TimestepEmbedder(
            layout.embedding_width, features=model_channels, time_scale=time_scale, fan_in_init=True, rngs=rngs
        )
        self.encoder = Encoder(channels, layout, rngs=rngs)
        top = layout.widths[-1]
        self.norm_out = GroupNorm(top, groups=norm_groups, eps=layout.norm_eps)
        self.pool = AttentionPool(
            height * width // layout.downsampling**2,
            top,
            layout.heads(top),
            num_classes,
            dtype=layout.precision.compute_dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Conditioning | None = None) -> jax.Array:
        """Classifies noisy inputs.

        Args:
          x: [B, H, W, C] float.
          timestep: [B] float.
          cond: not used; a classifier is called like a backbone.

        Returns:
          [B, num_classes] float32 logits.
        """
        h, _ = self.encoder(x, Context(jax.nn.silu(self.time_embed(timestep))))  # [B, h, w, widths[-1]]
        return self.pool(jax.nn.silu(self.norm_out(h)))  # [B, K]


def classifier_config(name: str) -> Options:
    """The `model` section of a published classifier.

    Args:
      name: a key of `NOISY_CLASSIFIERS`.

    Returns:
      The name of the model and its options; the input's shape is that of the data.
    """
    options = {key: value for key, value in NOISY_CLASSIFIERS[name].items() if key != "input_shape"}
    return {"name": "noisy_classifier", **options}


NOISY_CLASSIFIERS: Mapping[str, Options] = {
    "ldm-8-g": {
        "input_shape": (32, 32, 4),
        "model_channels": 256,
        "channel_mult": (1, 2, 4),
        "attention_resolutions": (1, 2, 4),
        "num_head_channels": 32,
        "use_scale_shift_norm": False,
        "resblock_updown": False,
    },
    "adm-64": {
        "input_shape": (64, 64, 3),
        "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": 4,
        "attention_resolutions": (2, 4, 8),
    },
    "adm-128": {
        "input_shape": (128, 128, 3),
        "channel_mult": (1, 1, 2, 3, 4),
        "attention_resolutions": (4, 8, 16),
    },
    "adm-256": {"input_shape": (256, 256, 3)},
    "adm-512": {
        "input_shape": (512, 512, 3),
        "channel_mult": (0.5, 1, 1, 2, 2, 4, 4),
        "attention_resolutions": (16, 32, 64),
    },
}
"""Arguments of the published ImageNet classifiers, of 1000 classes. LDM-8-G guides with a scale of 10."""
