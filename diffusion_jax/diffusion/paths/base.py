"""What every Gaussian path offers."""

from typing import Protocol

import jax

from diffusion_jax import keys
from diffusion_jax.diffusion.point import Array, Point
from diffusion_jax.errors import UserError


class Path(Protocol):
    """A Gaussian path x_t = α(t) x_0 + σ(t) ε, t from 0 (data) to 1 (noise).

    Methods take NumPy float64 arrays on the host, where sampler coefficients are built, and JAX arrays inside a
    program, and answer in kind.

    Attributes:
      name: the key of the path in `PATHS`.
      chain_length: the number of timesteps in the chain, None for a continuous path.
      time_min: the smallest time at which samplers evaluate the network.
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
        """Uniform training times: [B] float32, row b a function of (`key`, `index[b]`) alone."""
        ...

    def nearest_trained(self, time: Array) -> Array:
        """The time nearest to `time` that training may use."""
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


class ContinuousPath:
    """What paths of continuous time share: uniform training times between two fields."""

    train_time_min: float
    time_min: float
    time_max: float

    def __post_init__(self):
        for field in ("train_time_min", "time_min"):
            low = getattr(self, field)
            if not 0 <= low < self.time_max <= 1:
                raise UserError(f"path: need 0 ≤ {field} < time_max ≤ 1, not {low} and {self.time_max}")

    @property
    def chain_length(self) -> None:
        return None

    def draw_time(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """Uniform in [train_time_min, time_max]: [B] float32; row b depends on (`key`, `index[b]`) alone."""
        return self.train_time_min + (self.time_max - self.train_time_min) * keys.uniform(key, index)

    def nearest_trained(self, time: Array) -> Array:
        """`time` moved into [train_time_min, time_max]."""
        return time.clip(self.train_time_min, self.time_max)
