"""The networks that a program uses and does not train."""

from typing import Any, NamedTuple


class Frozen(NamedTuple):
    """One pytree of all frozen networks, an argument of the compiled functions; None is an empty subtree.

    Attributes:
      first_stage: the autoencoder whose latents are diffused, or the identity.
      conditioner: the networks that the conditioner needs, such as a text encoder, in the form that it takes them.
      lpips: the perceptual distance by which a first stage is trained.
    """

    first_stage: Any = None
    conditioner: Any = None
    lpips: Any = None
