"""One training step of a first stage: the autoencoder moves, then the discriminator judges what it makes now."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax import keys
from diffusion_jax.autoencoding.image_quality import psnr
from diffusion_jax.autoencoding.losses import KLLoss, VQLoss
from diffusion_jax.autoencoding.objective import (
    DiscriminatorState,
    Generator,
    discriminator_gradient,
    generator_gradient,
    reconstruct,
)
from diffusion_jax.models.autoencoder.autoencoder import Autoencoder
from diffusion_jax.models.autoencoder.discriminator import PatchDiscriminator
from diffusion_jax.models.autoencoder.lpips import LPIPS
from diffusion_jax.optim.ema_profiles import EMAProfile, ema_update
from diffusion_jax.pictures import from_uint8

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class AutoencoderState(NamedTuple):
    """Everything a checkpoint of a first stage holds.

    Attributes:
      step: int32 scalar, steps done; a step moves both networks once.
      model: the autoencoder and the log variance of its reconstruction, float32.
      ema: their running average.
      optimizer: state of their optimizer.
      opponent: the discriminator and its running statistics; None for a run without.
      opponent_optimizer: state of its optimizer; None for a run without.
    """

    step: jax.Array
    model: Generator
    ema: Generator
    optimizer: Any
    opponent: DiscriminatorState | None
    opponent_optimizer: Any


@dataclasses.dataclass(frozen=True)
class AutoencoderStep:
    """The step of a run, a pure function of state and batch; the caller compiles it.

    Noise and flips depend on (seed, purpose, step, row of the global batch) alone. Losses and the statistics of the
    discriminator's norms are those of the whole batch, so the number of devices changes nothing.

    Attributes:
      loss: of the kind of the autoencoder.
      optimizer: of the autoencoder.
      opponent_optimizer: of the discriminator.
      ema: the running average of the autoencoder.
      latent_shape: (h, w, c) of one image's latents.
      seed: of the run.
      flip: mirror images at random.
    """

    loss: KLLoss | VQLoss
    optimizer: optax.GradientTransformation
    opponent_optimizer: optax.GradientTransformation
    ema: EMAProfile
    latent_shape: tuple[int, int, int]
    seed: int
    flip: bool = False

    def init(self, autoencoder: Autoencoder, discriminator: PatchDiscriminator | None) -> AutoencoderState:
        """The state before the first step.

        Args:
          autoencoder: the initial autoencoder.
          discriminator: the initial discriminator; None trains without.
        """
        model = Generator(autoencoder, jnp.float32(self.loss.logvar_init))
        return AutoencoderState(
            step=jnp.zeros((), jnp.int32),
            model=model,
            ema=jax.tree.map(jnp.copy, model),
            optimizer=self.optimizer.init(model),
            opponent=None if discriminator is None else DiscriminatorState(discriminator, discriminator.init_stats()),
            opponent_optimizer=None if discriminator is None else self.opponent_optimizer.init(discriminator),
        )

    def __call__(self, state: AutoencoderState, lpips: LPIPS | None, batch: Batch) -> tuple[AutoencoderState, Metrics]:
        """Moves the autoencoder, then the discriminator on reconstructions by the new autoencoder.

        Args:
          state: the state.
          lpips: the frozen perceptual distance; None leaves its term out.
          batch: `image` uint8 [B, H, W, C].

        Returns:
          The next state and scalar metrics: `loss`, its parts, `psnr` in dB and `grad_norm`; with a discriminator its
          loss, mean logits and `disc_grad_norm`.
        """
        index = jnp.arange(batch["image"].shape[0])
        images = self.prepare(batch["image"], state.step, index)  # [B, H, W, C]
        noise = self._noise("posterior", state.step, index)  # [B, h, w, c]
        opponent = state.opponent
        if opponent is not None:
            opponent = self._fitted(opponent, state.model.autoencoder, images, noise, state.step)
        gradient, reconstruction, stats, metrics = generator_gradient(
            self.loss, state.model, images, noise, opponent, lpips, state.step
        )
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        metrics |= {"psnr": psnr(images, reconstruction.images).mean(), "grad_norm": optax.tree.norm(gradient)}

        opponent_optimizer = state.opponent_optimizer
        if opponent is not None:
            noise = self._noise("posterior_again", state.step, index)  # [B, h, w, c]
            again, _ = reconstruct(self.loss, model.autoencoder, images, noise)
            against, stats, judged = discriminator_gradient(
                self.loss, DiscriminatorState(opponent.model, stats), images, again.images, state.step
            )
            updates, opponent_optimizer = self.opponent_optimizer.update(against, opponent_optimizer, opponent.model)
            opponent = DiscriminatorState(optax.apply_updates(opponent.model, updates), stats)
            metrics |= {**judged, "disc_grad_norm": optax.tree.norm(against)}
        step = state.step + 1
        ema = ema_update(state.ema, model, self.ema.decay(step))
        return AutoencoderState(step, model, ema, optimizer, opponent, opponent_optimizer), metrics

    def prepare(self, images: jax.Array, step: jax.Array, index: jax.Array) -> jax.Array:
        """uint8 images [B, H, W, C] as the float32 images in [−1, 1] that step `step` trains on."""
        scaled = from_uint8(images)
        if not self.flip:
            return scaled
        flip = keys.uniform(keys.purpose_key(self.seed, "flip", step), index) < 0.5
        return jnp.where(flip[:, None, None, None], scaled[:, :, ::-1], scaled)

    def _noise(self, purpose: str, step: jax.Array, index: jax.Array) -> jax.Array:
        return keys.normal(keys.purpose_key(self.seed, purpose, step), index, self.latent_shape)

    def _fitted(
        self,
        opponent: DiscriminatorState,
        autoencoder: Autoencoder,
        images: jax.Array,
        noise: jax.Array,
        step: jax.Array,
    ) -> DiscriminatorState:
        """Before the first step, the discriminator with actnorms that fit the first reconstructions."""
        if opponent.stats:  # batch norms have nothing to fit
            return opponent

        def fit(model: PatchDiscriminator) -> PatchDiscriminator:
            return model.fit_actnorms(reconstruct(self.loss, autoencoder, images, noise)[0].images)

        return DiscriminatorState(jax.lax.cond(step == 0, fit, lambda model: model, opponent.model), ())
