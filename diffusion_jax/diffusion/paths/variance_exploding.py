"""The variance-exploding process."""

import dataclasses
import math

from diffusion_jax.diffusion.paths.base import ContinuousPath
from diffusion_jax.diffusion.point import Array, Point, namespace
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class VEPath(ContinuousPath):
    """The VE SDE: α = 1, σ = κ = kappa_min (kappa_max/kappa_min)^t (Song et al. 2021, eq. 30).

    EDM models live on the same path with κ from 0.002 to 80; their times are drawn by the `edm` law and their
    network time is that of prediction `edm`. At t = 0 the noise is kappa_min, not zero.

    Attributes:
      kappa_min: noise level at t = 0.
      kappa_max: noise level at t = 1.
      train_time_min: training draws t uniformly from [train_time_min, time_max].
      time_min: the smallest time at which samplers evaluate the network.
      time_max: the largest time of training and sampling.

    Raises:
      UserError: a value outside its range.
    """

    kappa_min: float = 0.01
    kappa_max: float = 50.0
    train_time_min: float = 1e-5
    time_min: float = 1e-5
    time_max: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.kappa_min < self.kappa_max:
            raise UserError(f"path: need 0 < kappa_min < kappa_max, not {self.kappa_min} and {self.kappa_max}")

    @property
    def name(self) -> str:
        return "ve"

    @property
    def _log_ratio(self) -> float:
        return math.log(self.kappa_max / self.kappa_min)

    def point(self, time: Array) -> Point:
        """The process at `time`, any shape; the network receives ln(κ/2)."""
        xp = namespace(time)
        log_kappa = math.log(self.kappa_min) + self._log_ratio * time
        kappa, one = xp.exp(log_kappa), xp.ones_like(time)
        return Point(time, one, kappa, 0 * one, self._log_ratio * kappa, log_kappa - math.log(2))

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`."""
        return (namespace(kappa).log(kappa) - math.log(self.kappa_min)) / self._log_ratio

    def prior_std(self, time: float) -> float:
        """σ(time): data are negligible beside the noise."""
        return math.exp(math.log(self.kappa_min) + self._log_ratio * time)
