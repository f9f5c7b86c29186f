"""How fast a running average of weights forgets: the update and its decay, step by step.

`ema_update` is the update itself. Steps count from 1: step k is the k-th update.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMAProfile:
    """A rule for the decay of a running average.

    Attributes:
      encoder: whether the average is of the condition's encoder too, where one is trained with the network; False
        takes the encoder's raw weights, as LDM does.
    """

    encoder: bool = True

    def decay(self, step: jax.Array) -> jax.Array:
        """The decay a of θ̄ ← a θ̄ + (1 − a) θ at update `step`, scalar float32; `step` counts from 1."""
        raise NotImplementedError


def _check_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"ema: {name} must lie in [0, 1], not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantEMA(EMAProfile):
    """One decay throughout (Ho et al. 2020).

    Attributes:
      max_decay: the decay.
    """

    max_decay: float = 0.9999

    def __post_init__(self):
        _check_unit("max_decay", self.max_decay)

    def decay(self, step: jax.Array) -> jax.Array:
        return jnp.asarray(self.max_decay, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupEMA(EMAProfile):
    """min(max_decay, (1 + k)/(10 + k)) at update k (the LDM code).

    Attributes:
      max_decay: the decay in the long run.
    """

    max_decay: float = 0.9999

    def __post_init__(self):
        _check_unit("max_decay", self.max_decay)

    def decay(self, step: jax.Array) -> jax.Array:
        k = jnp.asarray(step, jnp.float32)
        return jnp.minimum(self.max_decay, (1 + k) / (10 + k))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseGammaEMA(EMAProfile):
    """min(max_decay, 1 − (1 + k/γ)^{−p}) (k-diffusion).

    Attributes:
      max_decay: the decay in the long run.
      gamma: γ, the length of the warm-up in updates.
      power: p; 2/3 reaches 0.999 at 31.6 thousand updates, 3/4 at 10 thousand.
    """

    max_decay: float = 0.9999
    gamma: float = 1.0
    power: float = 2 / 3

    def __post_init__(self):
        _check_unit("max_decay", self.max_decay)
        if self.gamma <= 0 or self.power <= 0:
            raise UserError(f"ema: gamma and power must be positive, not {self.gamma} and {self.power}")

    def decay(self, step: jax.Array) -> jax.Array:
        k = jnp.asarray(step, jnp.float32)
        return jnp.minimum(self.max_decay, 1 - (1 + k / self.gamma) ** -self.power)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfLifeEMA(EMAProfile):
    """½^{batch/H}, H images or a share r of the images seen so far, whichever is less (Karras et al. 2022).

    Attributes:
      batch_size: images per update.
      half_life: H in images; EDM 500 000.
      ramp: r; EDM 0.05, in other places 0.09; None for no ramp.
    """

    batch_size: int
    half_life: float = 500_000.0
    ramp: float | None = 0.05

    def __post_init__(self):
        if self.batch_size < 1 or self.half_life <= 0 or (self.ramp is not None and self.ramp <= 0):
            raise UserError("ema: batch_size, half_life and ramp must be positive")

    def decay(self, step: jax.Array) -> jax.Array:
        half_life = jnp.asarray(self.half_life, jnp.float32)
        if self.ramp is not None:
            # The images seen before this update, as in the reference; none at the first, which then starts afresh.
            seen = (jnp.asarray(step, jnp.float32) - 1) * self.batch_size
            half_life = jnp.minimum(half_life, seen * self.ramp)
        return 0.5 ** (self.batch_size / jnp.maximum(half_life, 1e-8))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerEMA(EMAProfile):
    """The power-function profile: weights ∝ τ^γ, a width that is a fixed share of the run (Karras et al. 2024, eq. 1).

    Attributes:
      sigma_rel: standard deviation of the profile relative to the training time; EDM2 stores 0.05 and 0.10.
    """

    sigma_rel: float = 0.10

    def __post_init__(self):
        if not 0 < self.sigma_rel < 0.28:
            raise UserError(f"ema: sigma_rel must lie in (0, 0.28), where a profile exists, not {self.sigma_rel}")

    @property
    def gamma(self) -> float:
        """γ."""
        return gamma_of_width(self.sigma_rel)

    def decay(self, step: jax.Array) -> jax.Array:
        return (1 - 1 / jnp.asarray(step, jnp.float32)) ** (self.gamma + 1)


EMA_PROFILES: dict[str, Callable[..., EMAProfile]] = {
    "constant": ConstantEMA,
    "warmup": WarmupEMA,
    "inverse_gamma": InverseGammaEMA,
    "half_life": HalfLifeEMA,
    "power": PowerEMA,
}


def width_of_gamma(gamma: float) -> float:
    """σ_rel = √((γ + 1)/((γ + 2)² (γ + 3))) (Karras et al. 2024, eq. 125)."""
    return float(np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))))


def gamma_of_width(sigma_rel: float) -> float:
    """The γ ≥ 0 whose profile has the relative width σ_rel, the largest real root of a cubic (eq. 126)."""
    precision = sigma_rel**-2
    roots = np.roots([1, 7, 16 - precision, 12 - precision])
    return float(np.max(roots[np.abs(roots.imag) < 1e-9].real))


def ema_update(ema: Tree, params: Tree, decay: float | jax.Array) -> Tree:
    """One step of the exponential moving average, ema ← decay · ema + (1 − decay) · params (arXiv 2006.11239).

    Args:
      ema: the average, any pytree of float arrays.
      params: the new weights, same structure.
      decay: 0 ≤ decay ≤ 1, scalar; see `EMAProfile`.

    Returns:
      The new average.
    """
    return jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, params)
