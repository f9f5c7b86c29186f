"""The optimizers of the papers, built from the config section `optimizer`."""

from typing import Literal

import jax
import optax
import optax.contrib

from diffusion_jax.errors import UserError
from diffusion_jax.optim.hidden_matrices import hidden_matrices

ScheduleName = Literal["constant", "cosine", "linear"]


def learning_rate(lr: float, schedule: ScheduleName, warmup_steps: int, decay_steps: int | None) -> optax.Schedule:
    """The learning rate as a function of the step.

    Args:
      lr: peak rate, reached after the warm-up.
      schedule: shape after the warm-up; "cosine" and "linear" reach zero at `decay_steps`.
      warmup_steps: steps of linear growth from zero, ≥ 0.
      decay_steps: the step of the schedule's end, warm-up included; needed unless constant.

    Returns:
      A function of the integer step.

    Raises:
      UserError: a decaying schedule without an end after the warm-up, or a negative rate or warm-up.
    """
    if not lr >= 0 or warmup_steps < 0:
        name, value = ("warmup_steps", warmup_steps) if warmup_steps < 0 else ("lr", lr)
        raise UserError(f"optimizer.{name}={value}: must be at least 0")
    if schedule == "constant":
        after = optax.constant_schedule(lr)
    else:
        if decay_steps is None or decay_steps <= warmup_steps:
            raise UserError(
                f"optimizer.decay_steps={decay_steps}: the {schedule} schedule needs an end after "
                f"optimizer.warmup_steps={warmup_steps}"
            )
        remaining = decay_steps - warmup_steps
        decays = {
            "cosine": optax.cosine_decay_schedule(lr, remaining),
            "linear": optax.linear_schedule(lr, 0.0, remaining),
        }
        after = decays[schedule]
    if warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), after], [warmup_steps])


def adamw(
    *,
    lr: float = 1e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    schedule: ScheduleName = "constant",
    warmup_steps: int = 0,
    decay_steps: int | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW (arXiv 1711.05101), by default as DiT trains: constant rate, no decay, no clipping.

    Args:
      lr: learning rate.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled decay per step, times the learning rate, on every parameter.
      clip_norm: largest global norm of the gradient; None does not clip.
      schedule: shape of the learning rate.
      warmup_steps: linear warm-up.
      decay_steps: end of a decaying schedule.

    Returns:
      The transformation, and the learning rate as a function of the step.

    Raises:
      UserError: a value out of its range.
    """
    rate = learning_rate(lr, schedule, warmup_steps, decay_steps)
    _check_ranges(eps, weight_decay, clip_norm, b1=b1, b2=b2)
    return _clipped(clip_norm, optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)), rate


def muon(
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    newton_schulz_steps: int = 5,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    schedule: ScheduleName = "constant",
    warmup_steps: int = 0,
    decay_steps: int | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Muon: hidden matrices step by their orthogonalised momentum (Jordan 2024), all else by AdamW.

    A matrix of r rows and c columns moves by 0.2 √max(r, c) lr times the orthogonal factor, so that the root mean
    square of its entries is that of a usual step of AdamW (Liu et al. 2025, arXiv 2502.16982, eq. 4) and one `lr`
    serves both. A step costs about 20 min(r, c) operations a parameter on top, whatever the batch.

    Args:
      lr: learning rate.
      momentum: decay of the momentum of matrices, which is Nesterov's, as is that of the rest (NAdam, Dozat 2016).
      newton_schulz_steps: iterations that orthogonalise it.
      b1: decay of the first moment of the other parameters.
      b2: decay of their second moment.
      eps: added to the root of their second moment, and to the norm of a matrix.
      weight_decay: decoupled decay per step, times the learning rate, on every parameter.
      clip_norm: largest global norm of the gradient; None does not clip. Matrices do not feel it but in their momentum.
      schedule: shape of the learning rate.
      warmup_steps: linear warm-up.
      decay_steps: end of a decaying schedule.

    Returns:
      The transformation, and the learning rate as a function of the step.

    Raises:
      UserError: a value out of its range.
    """
    rate = learning_rate(lr, schedule, warmup_steps, decay_steps)
    _check_ranges(eps, weight_decay, clip_norm, b1=b1, b2=b2, momentum=momentum)
    if newton_schulz_steps < 1:
        raise UserError(f"optimizer.newton_schulz_steps={newton_schulz_steps}: must be at least 1")
    transformation = optax.contrib.muon(
        rate,
        ns_steps=newton_schulz_steps,
        beta=momentum,
        eps=eps,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=hidden_matrices,
        consistent_rms=0.2,
    )
    return _clipped(clip_norm, transformation), rate


def _check_ranges(eps: float, weight_decay: float, clip_norm: float | None, **decays: float) -> None:
    """Raises a `UserError` for values with which no optimizer descends."""
    for name, value in (("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise UserError(f"optimizer.{name}={value}: must be at least 0")
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise UserError(f"optimizer.{name}={value}: must be at least 0 and below 1")
    if clip_norm is not None and not clip_norm > 0:
        raise UserError(f"optimizer.clip_norm={clip_norm}: must be positive, or None to clip nothing")


def _clipped(clip_norm: float | None, transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation of gradients whose global norm is at most `clip_norm`."""
    steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    return _promoting(optax.chain(*steps, transformation))


def _promoting(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets Optax mix its integer step counts with floats where the user has made JAX strict about promotion."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(transformation.init, update)


OPTIMIZERS = {"adamw": adamw, "muon": muon}
"""Optimizers by the `name` of the config section `optimizer`."""
