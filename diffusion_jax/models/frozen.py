"""The networks that a program uses and does not train."""

from typing import NamedTuple

from diffusion_jax.parallel.partition import PyTree


class Frozen(NamedTuple):
    """One pytree of all frozen networks, an argument of the compiled functions; None is an empty subtree.

    Attributes:
      first_stage: the autoencoder whose latents are diffused, or the identity.
      conditioner: the networks that the conditioner needs, such as a text encoder, in the form that it takes them.
      lpips: the perceptual distance by which a first stage is trained.
    """

    first_stage: PyTree = None
    conditioner: PyTree = None
    lpips: PyTree = None
