"""Both sides of the adversarial training of a first stage: losses and gradients of a batch.

The total loss is never formed as one function. Its gradient with respect to the reconstruction is the sum of two, and
the adaptive weight between them needs each alone, at the decoder's last convolution; so each loss is differentiated as
far as the reconstruction, weighed there, and the sum goes back through the autoencoder once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.autoencoding.losses import KLLoss, VQLoss, adaptive_weight
from diffusion_jax.models.autoencoder.autoencoder import Autoencoder, AutoencoderKL, AutoencoderVQ
from diffusion_jax.models.autoencoder.discriminator import NormStats, PatchDiscriminator
from diffusion_jax.models.autoencoder.lpips import LPIPS
from diffusion_jax.models.autoencoder.quantizer import codebook_loss, codebook_use

Metrics = dict[str, jax.Array]
Stats = tuple[NormStats, ...]


class Generator(NamedTuple):
    """What the first optimizer trains.

    Attributes:
      autoencoder: the autoencoder.
      logvar: scalar float32, log variance of the reconstruction; its gradient is zero unless the loss learns it.
    """

    autoencoder: Any
    logvar: jax.Array


class DiscriminatorState(NamedTuple):
    """The discriminator and the statistics of its norms."""

    model: PatchDiscriminator
    stats: Stats


class Reconstruction(NamedTuple):
    """Images that went through an autoencoder.

    Attributes:
      images: [B, H, W, C] float32.
      penalty: scalar, the KL divergence per image or the codebook loss.
    """

    images: jax.Array
    penalty: jax.Array


def reconstruct(
    loss: KLLoss | VQLoss, autoencoder: Autoencoder, images: jax.Array, noise: jax.Array
) -> tuple[Reconstruction, tuple[jax.Array, Metrics]]:
    """Encodes and decodes as in training.

    Args:
      loss: of the kind of the autoencoder.
      autoencoder: the autoencoder.
      images: [B, H, W, C] float in [−1, 1].
      noise: [B, h, w, c] standard normal, decides the draw from a KL posterior; not used by VQ.

    Returns:
      The reconstruction; the features [B, H, W, ch] that the decoder's last convolution read; and metrics: `kl`, or
      `codebook_loss`, `codebook_use` and `perplexity`.
    """
    if isinstance(autoencoder, AutoencoderKL):
        moments = autoencoder.encode(images)
        latents, penalty = moments.sample(noise), moments.kl().mean()  # [B, h, w, c]
        metrics = {"kl": penalty}
    elif isinstance(autoencoder, AutoencoderVQ) and isinstance(loss, VQLoss):
        encoded = autoencoder.encode(images)  # [B, h, w, c]
        latents, indices = autoencoder.quantizer(encoded)
        codes = autoencoder.quantizer.lookup(indices)
        penalty = codebook_loss(encoded, codes, beta=loss.beta, legacy=loss.legacy_beta)
        metrics = {"codebook_loss": penalty, **codebook_use(indices, autoencoder.quantizer.codebook.shape[0])}
    else:
        raise TypeError(f"{type(loss).__name__} does not train a {type(autoencoder).__name__}")
    features = autoencoder.decoder.features(autoencoder.post_quant_conv(latents))  # [B, H, W, ch]
    decoded = autoencoder.decoder.conv_out(features).astype(jnp.float32)  # [B, H, W, C]
    return Reconstruction(decoded, penalty), (features, metrics)


class GeneratorGradients(NamedTuple):
    """What the generator's losses say of a reconstruction.

    Attributes:
      images: [B, H, W, C], the gradient of nll + λ·d·g with respect to it.
      logvar: scalar, the gradient with respect to the log variance.
      total: scalar, nll + λ·d·g + penalty, weighted.
    """

    images: jax.Array
    logvar: jax.Array
    total: jax.Array


def generator_losses(
    loss: KLLoss | VQLoss,
    reconstruction: Reconstruction,
    features: jax.Array,
    conv_out: nnx.Conv,
    logvar: jax.Array,
    images: jax.Array,
    opponent: DiscriminatorState | None,
    lpips: LPIPS | None,
    step: jax.Array,
    *,
    train: bool = True,
) -> tuple[GeneratorGradients, Stats, Metrics]:
    """The generator's losses of a reconstruction and their gradient there.

    Args:
      loss: the loss.
      reconstruction: of `images`.
      features: [B, H, W, ch], of which `conv_out` made it.
      conv_out: the decoder's last convolution, where the adaptive weight is measured.
      logvar: scalar, log variance of the reconstruction.
      images: [B, H, W, C] float in [−1, 1].
      opponent: the discriminator; None trains without.
      lpips: the perceptual distance; None leaves its term out.
      step: training step, counted from 0.
      train: whether the discriminator normalises by the batch and updates its statistics.

    Returns:
      The pull; the discriminator's next statistics; and metrics.
    """

    def likelihood(decoded: jax.Array, logvar: jax.Array) -> tuple[jax.Array, Metrics]:
        difference = images - decoded  # [B, H, W, C]
        residual = jnp.abs(difference)
        metrics = {"l1": residual.mean()}
        if loss.pixel_loss == "l2":
            residual = jnp.square(difference)
        if lpips is not None:
            distance = lpips(images, decoded)  # [B]
            residual = residual + loss.perceptual_weight * distance[:, None, None, None]
            metrics["lpips"] = distance.mean()
        metrics["rec_loss"] = residual.mean()
        return loss.negative_log_likelihood(residual, logvar), metrics

    nll, backward, metrics = jax.vjp(likelihood, reconstruction.images, logvar, has_aux=True)
    gradient, logvar_gradient = backward(jnp.ones_like(nll))
    total = nll + loss.penalty_weight * reconstruction.penalty
    metrics["nll"] = nll
    if opponent is None:
        return GeneratorGradients(gradient, logvar_gradient, total), (), {**metrics, "loss": total}

    def deceive(decoded: jax.Array) -> tuple[jax.Array, Stats]:
        logits, stats = opponent.model(decoded, opponent.stats, train=train)  # [B, h, w, 1]
        return -logits.mean(), stats

    g_loss, backward_g, stats = jax.vjp(deceive, reconstruction.images, has_aux=True)
    (adversarial,) = backward_g(jnp.ones_like(g_loss))
    _, to_conv_out = jax.vjp(lambda conv: conv(features).astype(jnp.float32), conv_out)
    (of_nll,), (of_g,) = to_conv_out(gradient), to_conv_out(adversarial)
    weight = adaptive_weight(of_nll.kernel[...], of_g.kernel[...], loss.disc_weight)
    switch = loss.disc_switch(step)
    total = total + weight * switch * g_loss
    metrics |= {"loss": total, "g_loss": g_loss, "adaptive_weight": weight, "disc_switch": switch}
    return GeneratorGradients(gradient + weight * switch * adversarial, logvar_gradient, total), stats, metrics


def generator_gradient(
    loss: KLLoss | VQLoss,
    generator: Generator,
    images: jax.Array,
    noise: jax.Array,
    opponent: DiscriminatorState | None,
    lpips: LPIPS | None,
    step: jax.Array,
) -> tuple[Generator, Reconstruction, Stats, Metrics]:
    """The gradient of the autoencoder's loss; arguments as for `reconstruct` and `generator_losses`.

    Returns:
      The gradient; the reconstruction; the discriminator's next statistics; and metrics.
    """
    reconstruction, backward, (features, metrics) = jax.vjp(
        lambda autoencoder: reconstruct(loss, autoencoder, images, noise), generator.autoencoder, has_aux=True
    )
    conv_out = generator.autoencoder.decoder.conv_out
    pull, stats, more = generator_losses(
        loss, reconstruction, features, conv_out, generator.logvar, images, opponent, lpips, step
    )
    (gradient,) = backward(Reconstruction(pull.images, jnp.full_like(reconstruction.penalty, loss.penalty_weight)))
    return Generator(gradient, pull.logvar), reconstruction, stats, {**metrics, **more}


def discriminator_gradient(
    loss: KLLoss | VQLoss,
    opponent: DiscriminatorState,
    real: jax.Array,
    fake: jax.Array,
    step: jax.Array,
    *,
    train: bool = True,
) -> tuple[PatchDiscriminator, Stats, Metrics]:
    """The gradient of the discriminator's loss, zero before `loss.disc_start`.

    Args:
      loss: the loss.
      opponent: the discriminator and its statistics.
      real: [B, H, W, C] images.
      fake: [B, H, W, C] reconstructions; real and fake are normalised apart.
      step: training step, counted from 0.
      train: whether to normalise by the batches and update the statistics.

    Returns:
      The gradient; the next statistics; and metrics.
    """

    def judge(model: PatchDiscriminator, stats: Sequence[NormStats]) -> tuple[jax.Array, tuple[Stats, Metrics]]:
        logits_real, seen = model(real, stats, train=train)  # [B, h, w, 1]
        logits_fake, seen = model(jax.lax.stop_gradient(fake), seen, train=train)  # [B, h, w, 1]
        total = loss.disc_switch(step) * loss.discriminator_loss(logits_real, logits_fake)
        means = {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
        return total, (seen, {"disc_loss": total, **means})

    gradient, (stats, metrics) = jax.grad(judge, has_aux=True)(opponent.model, opponent.stats)
    return gradient, stats, metrics
