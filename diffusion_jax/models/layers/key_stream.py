"""Keys for the initialisation of large networks."""

import jax
from flax import nnx


class KeyStream(nnx.Rngs):
    """One initialiser key after another, counted outside the trace; to be given to layers as `rngs`.

    The counter of `nnx.Rngs` is an array, and counting inside a trace takes time quadratic in the length of the trace:
    15 s instead of 2 s for the shapes of a UNet.

    Args:
      key: scalar key that all keys of the stream derive from.
    """

    def __init__(self, key: jax.Array):
        self.key = key
        self.drawn = 0

    def params(self) -> jax.Array:
        """The next key."""
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn)
