"""One training step of a diffusion model: uint8 images in, updated state and metrics out."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion_jax import keys
from diffusion_jax.data.latents import MIRRORED, MOMENTS
from diffusion_jax.diffusion.importance_sampling import LossHistory
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoder.first_stage import Identity, KLFirstStage, VQFirstStage
from diffusion_jax.models.conditioning.conditioners import Arrays, drop
from diffusion_jax.models.conditioning.encoders import with_encoder_of
from diffusion_jax.models.conditioning.parts import Conditioning
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.optim.ema_profiles import ema_update
from diffusion_jax.parallel.mesh import split_rows
from diffusion_jax.pictures import from_uint8
from diffusion_jax.runs.system import System
from diffusion_jax.training.diffusion_state import TrainState

TIME_BUCKETS = 4

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def draw_flips(system: System, step: jax.Array, index: jax.Array) -> jax.Array:
    """Which images of a step are mirrored, [B] bool; a function of the seed, the step and rows `index` [B]."""
    return keys.uniform(keys.purpose_key(system.train.seed, "flip", step), index) < 0.5


def prepare(
    system: System, first_stage: Identity | KLFirstStage | VQFirstStage, batch: Batch, step: jax.Array, index: jax.Array
) -> jax.Array:
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
    flip = draw_flips(system, step, index)[:, None, None, None]  # [B, 1, 1, 1]
    noise = keys.normal(
        keys.purpose_key(system.train.seed, "posterior", step), index, system.latent_shape
    )  # [B, h, w, c]
    if "image" in batch:
        images = from_uint8(batch["image"])  # [B, H, W, C]
        if system.data.flip:
            images = jnp.where(flip, images[:, :, ::-1], images)
        return first_stage.encode(images, noise)
    assert not isinstance(first_stage, Identity), "a cache holds the latents of an autoencoder"
    posterior = {name: batch[name] for name in MOMENTS if name in batch}
    if system.data.flip:
        posterior = {name: jnp.where(flip, batch[MIRRORED + name], value) for name, value in posterior.items()}
    return first_stage.draw({name: value.astype(jnp.float32) for name, value in posterior.items()}, noise)


def training_loss(
    system: System,
    model: Any,
    x0: jax.Array,
    cond: Conditioning,
    step: jax.Array,
    index: jax.Array,
    history: LossHistory | None,
    features: jax.Array | None = None,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """The loss of a batch.

    Args:
      system: the run's parts.
      model: the network.
      x0: [B, h, w, c] latents.
      cond: their conditions.
      step: the training step.
      index: [B] rows of the global batch.
      history: what the timestep sampler remembers; None draws by the loss's own law.
      features: [B, N, Z] patch features of the images, for an alignment.

    Returns:
      [B] losses, and the [B] diagnostics of the loss; with a timestep sampler also `unweighted`.

    Raises:
      UserError: an alignment without features.
    """
    key = keys.purpose_key(system.train.seed, "loss", step)
    sampled = system.timesteps is not None and history is not None
    if not sampled and system.alignment is None:
        return system.loss(model, system.path, system.prediction, x0, cond, key, index)
    time_key, noise_key = jax.random.split(key)
    if system.timesteps is not None and history is not None:
        time, weight = system.timesteps.draw(history, time_key, index)
    else:
        time, weight = system.loss.draw_time(system.path, time_key, index), jnp.ones(len(index))
    epsilon = keys.normal(noise_key, index, x0.shape[1:])  # [B, h, w, c]
    arguments = (model, system.path, system.prediction, x0, cond, time, epsilon)
    if system.alignment is None:
        loss, aux = system.loss.at(*arguments)
    elif features is None:
        raise UserError(f"alignment '{system.config.alignment.name}' needs batches with 'features' [B, N, Z]")
    else:
        loss, aux = system.alignment.at(system.loss, *arguments, features)
    return weight * loss, {**aux, "unweighted": loss} if sampled else aux


def make_train_step(
    system: System, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]:
    """Builds the step of a run; the caller compiles it.

    Noise, times, label drops and flips depend on (seed, purpose, step, row of the global batch) alone, so neither the
    mesh nor `train.microbatches` changes them.

    Args:
      system: the run's parts.
      optimizer: the gradient transformation.
      mesh: the mesh that the batch lies on.

    Returns:
      A function (state, frozen, batch) → (state, metrics). The batch has `image` or the moments of a cache, the arrays
      of the conditioner, each [B, ...], and for an alignment `features` [B, N, Z], patch features of the images in
      row-major order. The metrics are `loss`, the
      loss's own parts, `grad_norm`, and per time bucket `loss_sum` and `count` [TIME_BUCKETS].
    """
    train, conditioner = system.train, system.conditioner

    def batch_loss(model: Any, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[jax.Array, dict]:
        index, step = batch["index"], state.step
        x0 = prepare(system, frozen.first_stage, batch, step, index)
        arrays: Arrays = {name: batch[name] for name in conditioner.array_spec}
        if system.data.flip:
            arrays = conditioner.mirror(arrays, draw_flips(system, step, index))
        cond, null = (make(arrays, frozen.conditioner) for make in (conditioner, conditioner.null))
        cond = drop(conditioner, cond, null, keys.purpose_key(train.seed, "label_drop", step), index)
        dropout = keys.sample_keys(keys.purpose_key(train.seed, "dropout", step), index)
        cond = cond._replace(dropout_keys=dropout)
        features = batch.get("features")
        per_sample, aux = training_loss(system, model, x0, cond, step, index, state.timesteps, features)
        return per_sample.mean(), {"loss": per_sample, **aux}

    gradient = jax.grad(batch_loss, has_aux=True)

    def accumulate(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[Any, dict]:
        if train.microbatches == 1:
            return gradient(state.model, state, frozen, batch)
        micro = jax.tree.map(lambda rows: split_rows(rows, train.microbatches, mesh), batch)

        def body(total: Any, part: Batch) -> tuple[Any, dict]:
            gradients, aux = gradient(state.model, state, frozen, part)
            return jax.tree.map(jnp.add, total, gradients), aux

        total, aux = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, state.model), micro)
        mean = jax.tree.map(lambda gradients: gradients / train.microbatches, total)
        return mean, jax.tree.map(lambda rows: rows.T.reshape(-1), aux)  # [microbatches, B / microbatches] -> [B]

    def train_step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = {**batch, "index": jnp.arange(len(next(iter(batch.values()))))}
        gradients, aux = accumulate(state, frozen, batch)
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        step = state.step + 1
        time = aux.pop("time")
        timesteps = state.timesteps
        if system.timesteps:
            timesteps = system.timesteps.update(timesteps, time, aux.pop("unweighted"))
        ema = ema_update(state.ema, model, system.ema.decay(step))
        new_state = TrainState(
            step=step,
            model=model,
            ema=ema if system.ema.encoder else with_encoder_of(ema, model),
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
