"""Importance sampling of timesteps by the second moment of the loss (Nichol & Dhariwal 2021, section 3.3)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import keys
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.diffusion.point import Array
from diffusion_jax.errors import UserError


class LossHistory(NamedTuple):
    """The latest losses at each timestep; a pytree to be kept with the training state.

    Attributes:
      losses: [T, history] float32, in a ring.
      counts: [T] int32, how many losses each timestep has seen.
    """

    losses: Array
    counts: Array


@dataclasses.dataclass(frozen=True)
class LossSecondMoment:
    """Draws timestep n with p_n ∝ √E[L_n²], once every timestep has a full history; uniformly before.

    Every process must update with the losses of all processes: inside a jitted step on global arrays that is so by
    itself.

    Attributes:
      history: losses remembered per timestep.
      uniform_share: probability mass spread evenly over all timesteps.

    Raises:
      UserError: a value outside its range.
    """

    history: int = 10
    uniform_share: float = 0.001

    def __post_init__(self):
        if self.history < 1 or not 0 <= self.uniform_share <= 1:
            raise UserError(
                f"importance sampling: need history ≥ 1 and uniform_share in [0, 1], not {self.history} and "
                f"{self.uniform_share}"
            )

    def init(self, path: DiscretePath) -> LossHistory:
        """An empty history."""
        length = path.chain_length
        return LossHistory(jnp.zeros((length, self.history)), jnp.zeros(length, jnp.int32))

    def probabilities(self, state: LossHistory) -> Array:
        """[T] the probability of each timestep."""
        length = len(state.counts)
        moment = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
        total = jnp.sum(moment)
        weighted = (1 - self.uniform_share) * moment / jnp.where(total > 0, total, 1.0) + self.uniform_share / length
        warm = jnp.all(state.counts >= self.history) & (total > 0)
        return jnp.where(warm, weighted, 1 / length)

    def draw(self, state: LossHistory, key: jax.Array, index: Array) -> tuple[Array, Array]:
        """Draws training times for `Loss.at`.

        Args:
          state: the history.
          key: scalar key.
          index: [B] global sample indices.

        Returns:
          [B] times of the chain, and [B] weights 1/(T p) that keep the expected loss unbiased.
        """
        probabilities = self.probabilities(state)
        length = len(probabilities)
        logits = jnp.log(probabilities)
        n = jax.vmap(lambda k: jax.random.categorical(k, logits))(keys.sample_keys(key, index))  # B
        return (n + 1) / length, 1 / (length * probabilities[n])

    def update(self, state: LossHistory, time: Array, loss: Array) -> LossHistory:
        """Remembers the unweighted losses of a batch.

        Args:
          state: the history.
          time: [B] the times of the whole global batch.
          loss: [B] their losses.

        Returns:
          The history after all of them, in order.
        """
        n = jnp.round(time * len(state.counts)).astype(jnp.int32) - 1

        def remember(state: LossHistory, entry: tuple[Array, Array]) -> tuple[LossHistory, None]:
            timestep, value = entry
            slot = state.counts[timestep] % self.history
            losses = state.losses.at[timestep, slot].set(value.astype(jnp.float32))
            return LossHistory(losses, state.counts.at[timestep].add(1)), None

        return jax.lax.scan(remember, state, (n, loss))[0]
