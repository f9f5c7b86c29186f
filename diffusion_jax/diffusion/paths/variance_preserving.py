"""Variance-preserving processes in continuous time."""

import dataclasses

import jax

from diffusion_jax import keys
from diffusion_jax.diffusion.point import Array, Point, namespace
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class VPPath:
    """The VP SDE of score-based models, dx = −½β(t)x dt + √β(t) dW, β(t) = beta_min + (beta_max − beta_min) t.

    α = exp(−¼t²(beta_max − beta_min) − ½t beta_min), σ = √(1 − α²) (Song et al. 2021, eq. 32, 33).

    Attributes:
      beta_min: β(0).
      beta_max: β(1).
      time_scale: the network receives time_scale · t.
      train_time_min: training draws t uniformly from [train_time_min, 1].
      time_min: the smallest time at which samplers evaluate the network.

    Raises:
      UserError: a value outside its range.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    time_scale: float = 999.0
    train_time_min: float = 1e-5
    time_min: float = 1e-3

    def __post_init__(self):
        if not 0 < self.beta_min < self.beta_max:
            raise UserError(f"path: need 0 < beta_min < beta_max, not {self.beta_min} and {self.beta_max}")
        for field in ("train_time_min", "time_min"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"path: {field} must lie in [0, 1), not {getattr(self, field)}")

    @property
    def name(self) -> str:
        return "vp"

    @property
    def chain_length(self) -> None:
        return None

    @property
    def time_max(self) -> float:
        return 1.0

    def draw_time(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """Uniform in [train_time_min, 1]: [B] float32; row b depends on (`key`, `index[b]`) alone."""
        return self.train_time_min + (1 - self.train_time_min) * keys.uniform(key, index)

    def point(self, time: Array) -> Point:
        """The process at `time`, any shape, in [0, 1]."""
        xp = namespace(time)
        slope = self.beta_max - self.beta_min
        log_alpha = -slope / 4 * time**2 - self.beta_min / 2 * time
        alpha = xp.exp(log_alpha)
        sigma = xp.sqrt(-xp.expm1(2 * log_alpha))
        alpha_dot = -alpha * (self.beta_min + slope * time) / 2
        sigma_dot = -alpha * alpha_dot / xp.where(sigma > 0, sigma, xp.inf)
        return Point(time, alpha, sigma, alpha_dot, sigma_dot, self.time_scale * time)

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`, from ln α = −½ ln(1 + κ²)."""
        xp = namespace(kappa)
        slope = self.beta_max - self.beta_min
        y = 2 * slope * xp.log1p(kappa**2)
        return y / ((xp.sqrt(self.beta_min**2 + y) + self.beta_min) * slope)

    def prior_std(self, time: float) -> float:
        """1: the process preserves unit variance."""
        return 1.0
