"""What a backbone may be told beside the noisy image and the time."""

from typing import NamedTuple

import jax


class Conditioning(NamedTuple):
    """The conditions of a batch; every part is optional and a pytree leaf (None is an empty subtree).

    Attributes:
      label: [B] int32 class index; `num_classes` is the null class of classifier-free guidance.
      vector: [B, D] float, a pooled embedding.
      tokens: [B, M, D] float, a sequence to attend to.
      token_mask: [B, M] bool, True where `tokens` is valid; needs `tokens`.
      image: [B, H, W, C] float, channels concatenated to the noisy image.
    """

    label: jax.Array | None = None
    vector: jax.Array | None = None
    tokens: jax.Array | None = None
    token_mask: jax.Array | None = None
    image: jax.Array | None = None
