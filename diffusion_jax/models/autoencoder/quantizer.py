"""Vector quantisation with a learned codebook (arXiv 1711.00937, as VQGAN, arXiv 2012.09841, trains it)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.errors import UserError

# Codes compared at once: bounds the table of distances at this many per latent, whatever the size of the codebook.
CODES_AT_ONCE = 1024


class Quantized(NamedTuple):
    """Latents after quantisation.

    Attributes:
      latents: [..., dim] float32, the nearest codes; gradients pass straight through to the latents that came in.
      indices: [...] int32, the number of each code.
    """

    latents: jax.Array
    indices: jax.Array


class VectorQuantizer(nnx.Module):
    """Replaces each latent by the entry of a codebook that is nearest in squared Euclidean distance.

    Args:
      num_codes: |Z|, the size of the codebook.
      dim: channels of a latent and of a code.
      rngs: initialiser streams; codes uniform in ±1/|Z|.

    Raises:
      UserError: a codebook without codes.
    """

    def __init__(self, num_codes: int, dim: int, *, rngs: nnx.Rngs):
        if num_codes < 1:
            raise UserError(f"autoencoder.num_codes={num_codes}: must be at least 1")
        bound = 1 / num_codes
        self.codebook = nnx.Param(jax.random.uniform(rngs.params(), (num_codes, dim), minval=-bound, maxval=bound))

    def nearest(self, latents: jax.Array) -> jax.Array:
        """The number of the code nearest to each latent, the lower one of a tie.

        Args:
          latents: [..., dim] float.

        Returns:
          [...] int32 in 0 … |Z| − 1.
        """
        codebook = jax.lax.stop_gradient(self.codebook[...])  # [|Z|, dim]
        flat = jax.lax.stop_gradient(latents.astype(jnp.float32)).reshape(-1, codebook.shape[1])  # [N, dim]
        num_codes = codebook.shape[0]
        chunk = min(num_codes, CODES_AT_ONCE)
        chunks = -(-num_codes // chunk)
        padded = jnp.pad(codebook, ((0, chunks * chunk - num_codes), (0, 0)))
        # ‖z − e‖² without its ‖z‖², which is the same for all codes. Padding is infinitely far.
        offset = jnp.where(
            jnp.arange(chunks * chunk) < num_codes, jnp.sum(padded**2, axis=1), jnp.inf
        )  # [chunks·chunk]

        def closer(best: tuple[jax.Array, jax.Array], part: tuple[jax.Array, ...]) -> tuple[tuple, None]:
            codes, offsets, first = part
            product = jnp.matmul(flat, codes.T, precision="highest")  # [N, chunk]
            distance = offsets - 2 * product
            here, where = distance.min(axis=1), distance.argmin(axis=1).astype(jnp.int32) + first  # [N]
            shorter = here < best[0]
            return (jnp.where(shorter, here, best[0]), jnp.where(shorter, where, best[1])), None

        start = (jnp.full(flat.shape[:1], jnp.inf), jnp.zeros(flat.shape[:1], jnp.int32))
        firsts = jnp.arange(chunks, dtype=jnp.int32) * chunk
        parts = (padded.reshape(chunks, chunk, -1), offset.reshape(chunks, chunk), firsts)
        (_, indices), _ = jax.lax.scan(closer, start, parts)
        return indices.reshape(latents.shape[:-1])

    def lookup(self, indices: jax.Array) -> jax.Array:
        """The codes [..., dim] of `indices` [...]; gradients go to the codebook."""
        return self.codebook[...][indices]

    def __call__(self, latents: jax.Array) -> Quantized:
        """Quantises latents [..., dim]; see `Quantized`."""
        latents = latents.astype(jnp.float32)
        indices = self.nearest(latents)
        return Quantized(latents + jax.lax.stop_gradient(self.lookup(indices) - latents), indices)


def codebook_loss(latents: jax.Array, codes: jax.Array, *, beta: float = 0.25, legacy: bool = True) -> jax.Array:
    """What moves codes towards latents and latents towards codes.

    Args:
      latents: [..., dim], before quantisation.
      codes: [..., dim], the code of each, with the gradient of `VectorQuantizer.lookup`.
      beta: weight of the slower of the two moves.
      legacy: True slows the codes, as all published models were trained; False slows the latents, as the paper
        (arXiv 1711.00937, equation 3) has it.

    Returns:
      Scalar, a weighted sum of two means over all elements.
    """
    commitment = jnp.mean((jax.lax.stop_gradient(codes) - latents) ** 2)
    codebook = jnp.mean((codes - jax.lax.stop_gradient(latents)) ** 2)
    return commitment + beta * codebook if legacy else beta * commitment + codebook


def codebook_use(indices: jax.Array, num_codes: int) -> dict[str, jax.Array]:
    """How much of a codebook a batch uses.

    Args:
      indices: integers of any shape, 0 … num_codes − 1.
      num_codes: |Z|.

    Returns:
      `codebook_use`: share of the codes that occur, in (0, 1]; `perplexity`: exp of the entropy of their frequencies,
      in [1, num_codes].
    """
    counts = jnp.zeros(num_codes).at[indices.reshape(-1)].add(1.0)
    frequency = counts / counts.sum()
    entropy = -jnp.sum(jnp.where(frequency > 0, frequency * jnp.log(jnp.maximum(frequency, 1e-30)), 0.0))
    return {"codebook_use": jnp.mean((counts > 0).astype(jnp.float32)), "perplexity": jnp.exp(entropy)}
