"""The first stages of latent diffusion (arXiv 2112.10752, tables 8 and 9) as the table of models lists them."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.autoencoder.autoencoder import (
    AUTOENCODERS,
    VQ_AUTOENCODERS,
    AutoencoderKL,
    AutoencoderVQ,
    Moments,
)
from diffusion_jax.models.macs import count_macs
from diffusion_jax.models.presets.preset import Counts


@dataclasses.dataclass(frozen=True)
class FirstStagePreset:
    """A published autoencoder.

    Attributes:
      name: a key of `AUTOENCODERS` or `VQ_AUTOENCODERS`, the `preset` of a config section `autoencoder`.
      input_shape: (H, W, C) of the images that its cost is counted for.
      published: its number of parameters as printed in the paper; empty where none is.
    """

    name: str
    input_shape: tuple[int, int, int] = (256, 256, 3)
    published: str = ""

    def abstract(self) -> AutoencoderKL | AutoencoderVQ:
        """The autoencoder with shapes in place of arrays."""

        def make() -> AutoencoderKL | AutoencoderVQ:
            if self.name in AUTOENCODERS:
                return AutoencoderKL(**AUTOENCODERS[self.name], rngs=nnx.Rngs(0))
            return AutoencoderVQ(**VQ_AUTOENCODERS[self.name], rngs=nnx.Rngs(0))

        return jax.eval_shape(make)

    def count(self) -> Counts:
        """The size of the autoencoder, counted from shapes."""
        model = self.abstract()

        def reconstruct(model: AutoencoderKL | AutoencoderVQ, images: jax.Array) -> jax.Array:
            encoded = model.encode(images)  # [1, h, w, c]
            return model.decode(encoded.mean if isinstance(encoded, Moments) else encoded)  # [1, H, W, C]

        macs = count_macs(reconstruct, model, jax.ShapeDtypeStruct((1, *self.input_shape), jnp.float32))
        layout, side = model.layout, self.input_shape[0]
        sides = [side // 2**level for level, attends in enumerate(layout.attention) if attends]
        sides += [side // layout.downsampling] if layout.mid_attention else []
        tokens = max((side**2 for side in sides), default=0)
        return Counts(sum(leaf.size for leaf in jax.tree.leaves(model)), macs, tokens)


FIRST_STAGE_PRESETS: Mapping[str, FirstStagePreset] = {
    name: FirstStagePreset(name) for name in (*AUTOENCODERS, *VQ_AUTOENCODERS)
}
"""Every first stage, in the order of the tables of arguments; `sd-vae` has the architecture of `kl-f8`."""
