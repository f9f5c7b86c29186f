"""Interpolants between data and noise: the paths of flow matching."""

import dataclasses
import math

from diffusion_jax.diffusion.paths.base import ContinuousPath
from diffusion_jax.diffusion.point import Array, Point, namespace


@dataclasses.dataclass(frozen=True)
class LinearPath(ContinuousPath):
    """The straight path x_t = (1 − t) x_0 + t ε (Liu et al. 2023, Lipman et al. 2023).

    Its velocity is ε − x_0. Networks that predict ε or the score need time_max below 1, and for the score also
    train_time_min above 0 (SiT: 1e-3 at both ends).

    Attributes:
      time_scale: the network receives time_scale · t.
      train_time_min: training draws t uniformly from [train_time_min, time_max].
      time_min: the smallest time at which samplers evaluate the network.
      time_max: the largest time of training and sampling.

    Raises:
      UserError: a value outside its range.
    """

    time_scale: float = 1.0
    train_time_min: float = 0.0
    time_min: float = 0.0
    time_max: float = 1.0

    @property
    def name(self) -> str:
        return "linear"

    def point(self, time: Array) -> Point:
        """The path at `time`, any shape, in [0, 1]."""
        one = namespace(time).ones_like(time)
        return Point(time, 1 - time, time, -one, one, self.time_scale * time)

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`: κ/(1 + κ)."""
        return kappa / (1 + kappa)

    def prior_std(self, time: float) -> float:
        """1 at any time: the reference starts from pure noise even at time_max < 1."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class GVPPath(ContinuousPath):
    """The trigonometric path α = cos(½πt), σ = sin(½πt), which preserves variance (Albergo & Vanden-Eijnden 2023).

    Its velocity is ½π times the v of v-prediction.

    Attributes: those of `LinearPath`.
    """

    time_scale: float = 1.0
    train_time_min: float = 0.0
    time_min: float = 0.0
    time_max: float = 1.0

    @property
    def name(self) -> str:
        return "gvp"

    def point(self, time: Array) -> Point:
        """The path at `time`, any shape, in [0, 1]."""
        xp = namespace(time)
        # sin of the complement, exactly 0 at t = 1.
        alpha, sigma = xp.sin(math.pi / 2 * (1 - time)), xp.sin(math.pi / 2 * time)
        return Point(time, alpha, sigma, -math.pi / 2 * sigma, math.pi / 2 * alpha, self.time_scale * time)

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`: (2/π) arctan κ."""
        return namespace(kappa).arctan(kappa) * (2 / math.pi)

    def prior_std(self, time: float) -> float:
        """1: the path preserves unit variance."""
        return 1.0
