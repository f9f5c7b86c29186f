"""The losses of the LDM first stages (arXiv 2112.10752, appendix G): functions of images, logits and gradients.

An autoencoder is trained for r = |x − x̂| + w·LPIPS(x, x̂), against a discriminator, under a KL or a codebook penalty:

    L = nll(r) + λ·d·g + penalty,  g = −mean D(x̂),  λ = w_d·‖∂nll/∂W‖ / (‖∂g/∂W‖ + 1e-4)

with W the kernel of the decoder's last convolution and d zero before the step at which the discriminator sets in.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """What KL and VQ autoencoders are trained for alike.

    Attributes:
      pixel_loss: "l1" for |x − x̂| in r, as published; "l2" for its square, under which the mean and not the median of
        what is uncertain is learned, so that rare colours come sooner.
      perceptual_weight: w, the weight of LPIPS; has no effect on a run without LPIPS weights.
      gan: the discriminator's loss.
      disc_start: the first step, counted from 0, at which the discriminator learns and is listened to.
      disc_weight: w_d, multiplies the adaptive weight.
      disc_factor: d from `disc_start` on.

    Raises:
      UserError: a negative weight or step.
    """

    pixel_loss: Literal["l1", "l2"] = "l1"
    perceptual_weight: float = 1.0
    gan: Literal["hinge", "vanilla"] = "hinge"
    disc_start: int = 50_001
    disc_weight: float = 0.5
    disc_factor: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "logvar_init" and isinstance(value, int | float) and value < 0:
                raise UserError(f"loss.{field.name}={value}: must be at least 0")

    def disc_switch(self, step: jax.Array) -> jax.Array:
        """d: `disc_factor` from step `disc_start` on, 0 before."""
        return jnp.where(step >= self.disc_start, jnp.float32(self.disc_factor), 0.0)

    def discriminator_loss(self, real: jax.Array, fake: jax.Array) -> jax.Array:
        """The loss of the discriminator, scalar, for logits [B, h, w, 1] of images and of reconstructions."""
        return {"hinge": hinge, "vanilla": vanilla}[self.gan](real, fake)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLLoss(AdversarialLoss):
    """The loss of an `AutoencoderKL`: nll is a sum over pixels, the penalty a sum over latents, means over the batch.

    Attributes:
      kl_weight: weight of the divergence from N(0, I).
      logvar_init: s, the log variance of the reconstruction, at the start.
      learn_logvar: whether s is trained; the released training never did.
    """

    kl_weight: float = 1e-6
    logvar_init: float = 0.0
    learn_logvar: bool = False

    @property
    def penalty_weight(self) -> float:
        """Of the mean divergence per image, nats."""
        return self.kl_weight

    def negative_log_likelihood(self, residual: jax.Array, logvar: jax.Array) -> jax.Array:
        """(1/B) Σ (r·exp(−s) + s) over all elements of r [B, H, W, C]; scalar."""
        if not self.learn_logvar:
            logvar = jax.lax.stop_gradient(logvar)
        return jnp.sum(residual * jnp.exp(-logvar) + logvar) / residual.shape[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQLoss(AdversarialLoss):
    """The loss of an `AutoencoderVQ`: nll and penalty are means over all elements.

    Attributes:
      codebook_weight: weight of `models.quantizer.codebook_loss`.
      beta: its β.
      legacy_beta: whether β slows the codes, as the released training did, or the latents, as the paper has it.
    """

    disc_weight: float = 0.75
    codebook_weight: float = 1.0
    beta: float = 0.25
    legacy_beta: bool = True

    @property
    def penalty_weight(self) -> float:
        """Of the codebook loss."""
        return self.codebook_weight

    @property
    def logvar_init(self) -> float:
        """There is no variance of the reconstruction."""
        return 0.0

    def negative_log_likelihood(self, residual: jax.Array, logvar: jax.Array) -> jax.Array:
        """The mean of r [B, H, W, C]; scalar."""
        return residual.mean()


AUTOENCODER_LOSSES: Mapping[str, type[KLLoss] | type[VQLoss]] = {"kl": KLLoss, "vq": VQLoss}
"""Losses by the `name` of the autoencoder they train."""


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """½ (mean max(0, 1 − real) + mean max(0, 1 + fake)) of logits of any shape; scalar (arXiv 1705.02894)."""
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def vanilla(real: jax.Array, fake: jax.Array) -> jax.Array:
    """½ (mean softplus(−real) + mean softplus(fake)) of logits of any shape; scalar (arXiv 1406.2661)."""
    return 0.5 * (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean())


def adaptive_weight(nll_gradient: jax.Array, adversarial_gradient: jax.Array, disc_weight: float) -> jax.Array:
    """λ, which makes both losses pull alike at the decoder's last convolution (arXiv 2012.09841, equation 7).

    Args:
      nll_gradient: ∂nll/∂W, any shape.
      adversarial_gradient: ∂g/∂W, same shape.
      disc_weight: w_d.

    Returns:
      Scalar, constant to differentiation: the ratio of the norms, in [0, 10⁴], times `disc_weight`.
    """
    norms = [jnp.sqrt(jnp.sum(gradient**2)) for gradient in (nll_gradient, adversarial_gradient)]
    return jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, 1e4) * disc_weight)
