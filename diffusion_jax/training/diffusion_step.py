"""One training step of a diffusion model: uint8 images in, updated state and metrics out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion_jax import keys
from diffusion_jax.data.latents import MIRRORED, MOMENTS
from diffusion_jax.optim.ema_profiles import ema_update
from diffusion_jax.parallel.mesh import split_rows
from diffusion_jax.runs.system import System
from diffusion_jax.training.diffusion_state import TrainState

TIME_BUCKETS = 4

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def prepare(system: System, first_stage: Any, batch: Batch, step: jax.Array, index: jax.Array) -> jax.Array:
    """Turns uint8 images, or what a cache holds of them, into what the backbone is trained on.

    A cache gives the latents that its images would give: the same draws choose the image or its mirror, and the point
    of the posterior.

    Args:
      system: the run's parts.
      first_stage: the autoencoder, or the identity.
      batch: `image` uint8 [B, H, W, C]; or, of a cache, `mean` [B, h, w, c] and whatever else the first stage's
        `draw` needs, and with `data.flip` each also as `mirrored_NAME`.
      step: the training step.
      index: [B] rows of the global batch.

    Returns:
      Latents [B, h, w, c] float32: flipped at random if the config says so, scaled to [−1, 1], encoded.
    """
    seed = system.train.seed
    flip = keys.uniform(keys.purpose_key(seed, "flip", step), index)[:, None, None, None] < 0.5  # [B, 1, 1, 1]
    noise = keys.normal(keys.purpose_key(seed, "posterior", step), index, system.latent_shape)  # [B, h, w, c]
    if "image" in batch:
        images = batch["image"].astype(jnp.float32) / 127.5 - 1  # [B, H, W, C]
        if system.data.flip:
            images = jnp.where(flip, images[:, :, ::-1], images)
        return first_stage.encode(images, noise)
    posterior = {name: batch[name] for name in MOMENTS if name in batch}
    if system.data.flip:
        posterior = {name: jnp.where(flip, batch[MIRRORED + name], value) for name, value in posterior.items()}
    return first_stage.draw({name: value.astype(jnp.float32) for name, value in posterior.items()}, noise)


def make_train_step(
    system: System, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]:
    """Builds the step of a run; the caller compiles it.

    Noise, times, label drops and flips depend on (seed, purpose, step, row of the global batch) alone, so neither the
    mesh nor `train.microbatches` changes them.

    Args:
      system: the run's parts.
      optimizer: the gradient transformation.
      mesh: the mesh that the batch lies on.

    Returns:
      A function (state, first_stage, batch) → (state, metrics). The batch has `image` and `label` and, for an
      alignment, `features` [B, N, Z], patch features of the images in row-major order. The metrics are `loss`, the
      loss's own parts, `grad_norm`, and per time bucket `loss_sum` and `count` [TIME_BUCKETS].
    """
    train = system.train

    def batch_loss(model: Any, state: TrainState, first_stage: Any, batch: Batch) -> tuple[jax.Array, dict]:
        index, step = batch["index"], state.step
        x0 = prepare(system, first_stage, batch, step, index)
        cond = system.conditioner(batch["label"])
        cond = system.conditioner.drop(cond, keys.purpose_key(train.seed, "label_drop", step), index)
        dropout = keys.sample_keys(keys.purpose_key(train.seed, "dropout", step), index)
        cond = cond._replace(dropout_keys=dropout)
        features = batch.get("features")
        per_sample, aux = system.training_loss(model, x0, cond, step, index, state.timesteps, features)
        return per_sample.mean(), {"loss": per_sample, **aux}

    gradient = jax.grad(batch_loss, has_aux=True)

    def accumulate(state: TrainState, first_stage: Any, batch: Batch) -> tuple[Any, dict]:
        if train.microbatches == 1:
            return gradient(state.model, state, first_stage, batch)
        micro = jax.tree.map(lambda rows: split_rows(rows, train.microbatches, mesh), batch)

        def body(total: Any, part: Batch) -> tuple[Any, dict]:
            gradients, aux = gradient(state.model, state, first_stage, part)
            return jax.tree.map(jnp.add, total, gradients), aux

        total, aux = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, state.model), micro)
        mean = jax.tree.map(lambda gradients: gradients / train.microbatches, total)
        return mean, jax.tree.map(lambda rows: rows.T.reshape(-1), aux)  # [microbatches, B / microbatches] -> [B]

    def train_step(state: TrainState, first_stage: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = {**batch, "index": jnp.arange(batch["label"].shape[0])}
        gradients, aux = accumulate(state, first_stage, batch)
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        step = state.step + 1
        time = aux.pop("time")
        timesteps = state.timesteps
        if system.timesteps:
            timesteps = system.timesteps.update(timesteps, time, aux.pop("unweighted"))
        new_state = TrainState(
            step=step,
            model=model,
            ema=ema_update(state.ema, model, system.ema.decay(step)),
            optimizer=opt_state,
            tracks=tuple(
                ema_update(track, model, profile.decay(step))
                for track, profile in zip(state.tracks, system.tracks, strict=True)
            ),
            timesteps=timesteps,
        )
        bucket = jnp.clip((time * TIME_BUCKETS).astype(jnp.int32), 0, TIME_BUCKETS - 1)
        metrics = {name: values.mean() for name, values in aux.items()}
        metrics["grad_norm"] = optax.tree.norm(gradients)
        metrics["loss_sum"] = jnp.zeros(TIME_BUCKETS).at[bucket].add(aux["loss"])
        metrics["count"] = jnp.zeros(TIME_BUCKETS).at[bucket].add(1.0)
        return new_state, metrics

    return train_step
