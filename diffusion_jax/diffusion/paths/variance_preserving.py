"""Variance-preserving and sub-variance-preserving processes in continuous time."""

import dataclasses
import math

from diffusion_jax.diffusion.paths.base import ContinuousPath
from diffusion_jax.diffusion.point import Array, Point, namespace, safe_ratio
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class VPPath(ContinuousPath):
    """The VP SDE of score-based models, dx = −½β(t)x dt + √β(t) dW, β(t) = beta_min + (beta_max − beta_min) t.

    α = exp(−¼t²(beta_max − beta_min) − ½t beta_min), σ = √(1 − α²) (Song et al. 2021, eq. 32, 33).

    Attributes:
      beta_min: β(0).
      beta_max: β(1).
      time_scale: the network receives time_scale · t.
      train_time_min: training draws t uniformly from [train_time_min, time_max].
      time_min: the smallest time at which samplers evaluate the network.
      time_max: the largest time of training and sampling.

    Raises:
      UserError: a value outside its range.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    time_scale: float = 999.0
    train_time_min: float = 1e-5
    time_min: float = 1e-3
    time_max: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta_min < self.beta_max:
            raise UserError(f"path: need 0 < beta_min < beta_max, not {self.beta_min} and {self.beta_max}")

    @property
    def name(self) -> str:
        return "vp"

    def _log_alpha(self, time: Array) -> Array:
        return -(self.beta_max - self.beta_min) / 4 * time**2 - self.beta_min / 2 * time

    def _log_alpha_dot(self, time: Array) -> Array:
        return -(self.beta_min + (self.beta_max - self.beta_min) * time) / 2

    def _time_of_log_alpha(self, log_alpha: Array) -> Array:
        # The positive root of the quadratic, in the form that stays accurate near 0.
        slope = self.beta_max - self.beta_min
        y = -4 * slope * log_alpha
        return y / ((namespace(y).sqrt(self.beta_min**2 + y) + self.beta_min) * slope)

    def point(self, time: Array) -> Point:
        """The process at `time`, any shape, in [0, 1]."""
        xp = namespace(time)
        log_alpha = self._log_alpha(time)
        alpha = xp.exp(log_alpha)
        sigma = xp.sqrt(-xp.expm1(2 * log_alpha))
        alpha_dot = alpha * self._log_alpha_dot(time)
        return Point(time, alpha, sigma, alpha_dot, safe_ratio(-alpha * alpha_dot, sigma), self.time_scale * time)

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`, from ln α = −½ ln(1 + κ²)."""
        return self._time_of_log_alpha(-namespace(kappa).log1p(kappa**2) / 2)

    def prior_std(self, time: float) -> float:
        """1: the process preserves unit variance."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class SubVPPath(VPPath):
    """The sub-VP SDE: the drift and α of the VP SDE with less noise, σ = 1 − α² (Song et al. 2021, eq. 29).

    Attributes: those of `VPPath`.
    """

    @property
    def name(self) -> str:
        return "sub_vp"

    def point(self, time: Array) -> Point:
        """The process at `time`, any shape, in [0, 1]."""
        xp = namespace(time)
        log_alpha = self._log_alpha(time)
        alpha = xp.exp(log_alpha)
        alpha_dot = alpha * self._log_alpha_dot(time)
        return Point(time, alpha, -xp.expm1(2 * log_alpha), alpha_dot, -2 * alpha * alpha_dot, self.time_scale * time)

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`, from α² + κα = 1."""
        xp = namespace(kappa)
        return self._time_of_log_alpha(-xp.arcsinh(kappa / 2))


@dataclasses.dataclass(frozen=True)
class CosineVPPath(ContinuousPath):
    """The cosine schedule in continuous time, α = cos(½π(t + s)/(1 + s)) / cos(½πs/(1 + s)) (Nichol & Dhariwal 2021).

    β diverges at t = 1, so time ends at 0.9946 (the end that DPM-Solver and ASCEND use).

    Attributes:
      s: the offset of the published schedule.
      kappa_scale: multiplies σ/α at every time; side/64 adapts the schedule to images of `side` pixels (simple
        diffusion: log-SNR shifted by 2 ln(64/side)).
      time_scale: the network receives time_scale · t.
      train_time_min: training draws t uniformly from [train_time_min, time_max].
      time_min: the smallest time at which samplers evaluate the network.
      time_max: the largest time of training and sampling.

    Raises:
      UserError: a value outside its range.
    """

    s: float = 0.008
    kappa_scale: float = 1.0
    time_scale: float = 999.0
    train_time_min: float = 1e-5
    time_min: float = 1e-3
    time_max: float = 0.9946

    def __post_init__(self):
        super().__post_init__()
        if self.s <= 0 or self.kappa_scale <= 0:
            raise UserError(f"path: s and kappa_scale must be positive, not {self.s} and {self.kappa_scale}")

    @property
    def name(self) -> str:
        return "vp_cosine"

    @property
    def _angle_rate(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def point(self, time: Array) -> Point:
        """The process at `time`, any shape, in [0, 1)."""
        xp = namespace(time)
        angle, start = (time + self.s) * self._angle_rate, self.s * self._angle_rate
        alpha = xp.cos(angle) / math.cos(start)
        # 1 − α² = sin(θ − θ_0) sin(θ + θ_0) / cos²θ_0, without the cancellation near t = 0.
        sigma = xp.sqrt(xp.sin(time * self._angle_rate) * xp.sin(angle + start)) / math.cos(start)
        drift = -self._angle_rate * xp.tan(angle)
        if self.kappa_scale != 1:
            # d ln κ/dt = −drift/σ² is the same for scaled κ.
            log_kappa_dot = safe_ratio(-drift, sigma**2)
            kappa = self.kappa_scale * sigma / alpha
            alpha = 1 / xp.sqrt(1 + kappa**2)
            sigma = kappa * alpha
            drift = -(sigma**2) * log_kappa_dot
        alpha_dot = alpha * drift
        return Point(time, alpha, sigma, alpha_dot, safe_ratio(-alpha * alpha_dot, sigma), self.time_scale * time)

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`."""
        xp = namespace(kappa)
        kappa = kappa / self.kappa_scale
        start = self.s * self._angle_rate
        # tan²θ = (1 + κ²)/cos²θ_0 − 1 = κ²/cos²θ_0 + tan²θ_0
        angle = xp.arctan(xp.sqrt((kappa / math.cos(start)) ** 2 + math.tan(start) ** 2))
        return angle / self._angle_rate - self.s

    def prior_std(self, time: float) -> float:
        """1: the process preserves unit variance."""
        return 1.0
