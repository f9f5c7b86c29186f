"""Which dtype each part of a network computes in."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

DTypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Precision:
    """The mixed-precision policy of a backbone.

    Parameters are always float32, and so are norms, softmax, modulation, time and label embeddings.

    Attributes:
      compute: dtype of the matrix products over tokens or pixels (operands; accumulation is float32).
      residual: dtype of the residual stream between blocks.
    """

    compute: DTypeName = "float32"
    residual: DTypeName = "float32"

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute)

    @property
    def residual_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.residual)
