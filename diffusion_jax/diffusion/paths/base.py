"""What every Gaussian path offers."""

from typing import Protocol

import jax

from diffusion_jax.diffusion.point import Array, Point


class Path(Protocol):
    """A Gaussian path x_t = α(t) x_0 + σ(t) ε, t from 0 (data) to 1 (noise).

    Methods take NumPy float64 arrays on the host, where sampler coefficients are built, and JAX arrays inside a
    program, and answer in kind.

    Attributes:
      name: the key of the path in `PATHS`.
      chain_length: the number of timesteps in the chain, None for a continuous path.
      time_min: the smallest time at which continuous-time samplers evaluate the network.
      time_max: the largest.
    """

    @property
    def name(self) -> str: ...

    @property
    def chain_length(self) -> int | None: ...

    @property
    def time_min(self) -> float: ...

    @property
    def time_max(self) -> float: ...

    def draw_time(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """Training times: [B] float32, row b a function of (`key`, `index[b]`) alone."""
        ...

    def point(self, time: Array) -> Point:
        """The path at `time` (any shape); fields have its shape and dtype."""
        ...

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`, the inverse of `point(time).kappa`."""
        ...

    def prior_std(self, time: float) -> float:
        """The standard deviation of the noise that sampling starts from at `time`."""
        ...
