"""What a Gaussian path is at one noise level: the numbers that predictions, guidance and samplers are functions of.

The path is docs/diffusion.md, eq. 1; its forward SDE docs/diffusion.md, eq. 3.
"""

from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# A float64 NumPy array where coefficients are built on the host, a JAX array (float32 in training) inside a program.
Array = Any

Tree = TypeVar("Tree")


def namespace(array: Array) -> ModuleType:
    """`numpy` for a NumPy array or scalar, `jax.numpy` for a JAX array: one formula serves host tables and programs."""
    return array.__array_namespace__()


def safe_ratio(numerator: Array, denominator: Array) -> Array:
    """numerator/denominator, inf where the denominator is 0, without a warning or a NaN gradient there."""
    xp = namespace(denominator)
    zero = denominator == 0
    return xp.where(zero, xp.inf, numerator / xp.where(zero, 1.0, denominator))


def weighted_sum(a: Array, x: Array, b: Array, y: Array) -> Array:
    """a x + b y in the shape they broadcast to, rounded alike in every JAX program that computes it.

    Compilers for CPUs contract a product and a sum into one instruction that rounds once. Here they may take either
    product, and which one they take varies with the code around it, so that the last bit would depend on the number of
    devices. Clipped at the largest finite number, a x has one value and cannot be contracted.
    """
    product = a * x
    if isinstance(product, jax.Array):
        largest = jnp.finfo(product.dtype).max
        product = jnp.clip(product, -largest, largest)
    return product + b * y


class Transition(NamedTuple):
    """One step of the reversed chain, from a noisy point t to a cleaner one s; scalars or [B] arrays (DDPM eq. 6, 7).

    q(x_s | x_t, x_0) = N(x0_weight · x_0 + x_weight · x_t, exp(log_variance_min)).

    Attributes:
      x0_weight: β √ᾱ_s / (1 − ᾱ_t) of the variance-preserving case.
      x_weight: √(1 − β) (1 − ᾱ_s) / (1 − ᾱ_t) of the variance-preserving case.
      log_variance_min: ln β̃, the posterior log-variance. Where s is clean data, β̃ is 0 and the value of the step
        before stands in its place.
      log_variance_max: ln β, the log-variance of the forward step s → t.
      to_data: 1 where s is clean data, else 0.
    """

    x0_weight: Array
    x_weight: Array
    log_variance_min: Array
    log_variance_max: Array
    to_data: Array


class Point(NamedTuple):
    """A path at one noise level, x_t = alpha · x_0 + sigma · ε; every field a scalar, [B] or (on the host) [N].

    Attributes:
      time: t in [0, 1], 0 = data, 1 = noise.
      alpha: the signal scale α(t).
      sigma: the noise scale σ(t).
      alpha_dot: dα/dt.
      sigma_dot: dσ/dt.
      timestep: the number that the network receives as its time.
      step_kappa: σ/α at the start of the sampler step that evaluates here, set by samplers with inner stages so that
        all stages of a step make the same choice; None means this point's own.
      transition: the reverse step that starts here, where one is defined (ancestral sampling, variational bounds).
    """

    time: Array
    alpha: Array
    sigma: Array
    alpha_dot: Array
    sigma_dot: Array
    timestep: Array
    step_kappa: Array | None = None
    transition: Transition | None = None

    @property
    def kappa(self) -> Array:
        """σ/α, the noise level of EDM; inf where no signal is left."""
        return safe_ratio(self.sigma, self.alpha)

    @property
    def snr(self) -> Array:
        """α²/σ²; inf at clean data."""
        return safe_ratio(self.alpha, self.sigma) ** 2

    @property
    def delta(self) -> Array:
        """ασ̇ − α̇σ, positive wherever noise grows along the path."""
        return self.alpha * self.sigma_dot - self.alpha_dot * self.sigma

    @property
    def drift(self) -> Array:
        """f of the forward SDE dx = f x dt + g dW: α̇/α; infinite where no signal is left."""
        return -safe_ratio(-self.alpha_dot, self.alpha)

    @property
    def diffusion(self) -> Array:
        """g² of the forward SDE: 2σδ/α; infinite where no signal is left."""
        return 2 * safe_ratio(self.sigma * self.delta, self.alpha)


def align(tree: Tree, x: Array) -> Tree:
    """Reshapes the [B] leaves of `tree` to [B, 1, …] so that they broadcast against `x` [B, …]; scalars stay."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape + (1,) * (x.ndim - 1)) if np.ndim(leaf) else leaf, tree)
