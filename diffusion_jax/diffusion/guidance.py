"""Guidance: combinations of network calls that sharpen what is sampled (docs/diffusion.md, eq. 9).

Guidances act on raw outputs, before the prediction is read: a linear combination at fixed (x, t) is the same
combination of ε, x_0, v, score and velocity. They map functions (x, point) -> output to such functions, so they nest:
autoguidance of two guided networks, an interval around either. The scale s has s = 1 for no guidance everywhere.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.denoiser import Condition, Guided, Model, conditional, network
from diffusion_jax.diffusion.point import Array, Point
from diffusion_jax.errors import UserError
from diffusion_jax.parallel.platform import platform
from diffusion_jax.schema import OpenFloat

Channels = Literal["all", "first3"]
Batching = Literal["auto", "joint", "separate"]
Interval = tuple[OpenFloat, OpenFloat] | None


def extrapolate(weak: Array, strong: Array, scale: float, guided_channels: Channels, channels: int) -> Array:
    """weak + scale · (strong − weak) on the guided channels, `strong` on the others.

    Args:
      weak: [B, ..., C_out], e.g. the unconditional output.
      strong: [B, ..., C_out], e.g. the conditional output.
      scale: s; 1 gives `strong`.
      guided_channels: `all` of the C prediction channels, or the `first3` of them (the DiT release). Channels from C
        on, a learned variance, are always those of `strong`.
      channels: C.

    Returns:
      [B, ..., C_out].
    """
    guided = channels if guided_channels == "all" else min(3, channels)
    combined = weak[..., :guided] + scale * (strong[..., :guided] - weak[..., :guided])
    return jnp.concatenate([combined, strong[..., guided:]], axis=-1)


def rescale(guided: Array, plain: Array, share: float, channels: int) -> Array:
    """Gives the guided prediction the standard deviation of the unguided one, in part (Lin et al. 2023, eq. 15, 16).

    Args:
      guided: [B, ..., C_out].
      plain: [B, ..., C_out] the conditional output.
      share: φ; 0 changes nothing, 1 takes the standard deviation (over all but the batch) whole.
      channels: C; later channels stay.

    Returns:
      [B, ..., C_out].
    """
    axes = tuple(range(1, guided.ndim))

    def std(output: Array) -> Array:
        return jnp.std(output[..., :channels], axis=axes, keepdims=True)

    factor = share * std(plain) / std(guided) + (1 - share)  # B, 1, ...
    return jnp.concatenate([guided[..., :channels] * factor, guided[..., channels:]], axis=-1)


def within_interval(inside: Guided, outside: Guided, interval: Interval) -> Guided:
    """`inside` at noise levels κ = σ/α in [low, high], `outside` elsewhere (Kynkäänniemi et al. 2024).

    The choice falls once per sampler step, by the level where the step starts. Where all samples share it (every
    sampler but the adaptive ones) only the chosen function runs.

    Args:
      inside: (x, point) -> output.
      outside: likewise.
      interval: (low, high), closed; None means everywhere.

    Returns:
      A function of (x, point).
    """
    if interval is None:
        return inside
    # Levels of a grid are compared in float32; an end given as one of them belongs to the interval.
    low, high = interval[0] * (1 - 1e-5), interval[1] * (1 + 1e-5)

    def guided(x: Array, point: Point) -> Array:
        kappa = point.kappa if point.step_kappa is None else point.step_kappa
        active = (kappa >= low) & (kappa <= high)
        if jnp.ndim(active) == 0:
            return jax.lax.cond(active, inside, outside, x, point)
        choice = active.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(choice, inside(x, point), outside(x, point))

    return guided


def _check_interval(interval: Interval) -> None:
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise UserError(f"guidance: interval must be (low, high) noise levels with 0 ≤ low < high, not {interval}")


@dataclasses.dataclass(frozen=True)
class ClassifierFreeGuidance:
    """ε̂ = ε_null + s (ε_cond − ε_null) (Ho & Salimans 2022, with s = 1 + w).

    Attributes:
      cfg_scale: s; 1 is no guidance and makes no null call.
      guided_channels: `all`, or `first3` for parity with the DiT release.
      rescale: φ of CFG rescale; 0 is off, 0.7 the published value.
      interval: noise levels κ = σ/α between which to guide, (low, high); None means at all. Outside, the null call is
        skipped.
      batching: `joint` makes one call of the doubled batch, `separate` one call after the other, of half the memory;
        `auto` is `separate` on CPUs, where a doubled batch leaves the caches, and `joint` elsewhere.

    Raises:
      UserError: an unknown choice of channels or batching, or a value outside its range.
    """

    cfg_scale: float = 1.0
    guided_channels: Channels = "all"
    rescale: float = 0.0
    interval: Interval = None
    batching: Batching = "auto"

    def __post_init__(self):
        check_choice("guidance guided_channels", self.guided_channels, Channels)
        check_choice("guidance batching", self.batching, Batching)
        _check_interval(self.interval)
        if self.cfg_scale < 0:
            raise UserError(f"guidance: cfg_scale must be at least 0 (1 is no guidance), not {self.cfg_scale}")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance: rescale must lie in [0, 1], not {self.rescale}")

    def __call__(self, model: Model, cond: Condition, null_cond: Condition = None) -> Guided:
        """Combines the conditional and the null output.

        Args:
          model: the network.
          cond: condition pytree, leaves [B, ...].
          null_cond: the condition that means "none", the same structure as `cond`; unused at scale 1.

        Returns:
          A function of (x [B, ..., C], point) giving the guided raw output.

        Raises:
          UserError: guidance without a null condition.
        """
        if self.cfg_scale == 1:
            return conditional(model, cond)
        if null_cond is None:
            raise UserError(
                f"guidance: cfg_scale {self.cfg_scale} needs a null condition, which this model was not trained with; "
                "use cfg_scale 1, or train with label dropout"
            )
        separate = self.batching == "separate" or (self.batching == "auto" and platform() == "cpu")
        outputs = (_one_after_the_other if separate else _side_by_side)(model, cond, null_cond)

        def guided(x: Array, point: Point) -> Array:
            plain, null = outputs(x, point)
            channels = x.shape[-1]
            combined = extrapolate(null, plain, self.cfg_scale, self.guided_channels, channels)
            return rescale(combined, plain, self.rescale, channels) if self.rescale else combined

        return within_interval(guided, conditional(model, cond), self.interval)


def _side_by_side(model: Model, cond: Condition, null_cond: Condition) -> Callable[[Array, Point], tuple[Array, Array]]:
    """The outputs for both conditions in one call of the doubled batch."""
    call = network(model)

    def outputs(x: Array, point: Point) -> tuple[Array, Array]:
        batch = x.shape[0]

        # Sample i sits beside its null twin, so a sharded batch axis stays in place.
        def pair(a: Array, b: Array) -> Array:
            return jnp.stack([a, b], axis=1).reshape(2 * batch, *a.shape[1:])  # 2B, ...

        double_point = jax.tree.map(lambda f: jnp.repeat(f, 2) if jnp.ndim(f) else f, point)
        output = call(pair(x, x), double_point, jax.tree.map(pair, cond, null_cond))  # 2B, ..., C_out
        output = output.reshape(batch, 2, *output.shape[1:])  # B, 2, ..., C_out
        return output[:, 0], output[:, 1]

    return outputs


def _one_after_the_other(
    model: Model, cond: Condition, null_cond: Condition
) -> Callable[[Array, Point], tuple[Array, Array]]:
    """The outputs for both conditions in a call each."""
    with_cond, with_null = conditional(model, cond), conditional(model, null_cond)

    def outputs(x: Array, point: Point) -> tuple[Array, Array]:
        # Side by side, the two calls would hold the memory of both.
        x, plain = jax.lax.optimization_barrier((x, with_cond(x, point)))
        return plain, with_null(x, point)

    return outputs


@dataclasses.dataclass(frozen=True)
class Autoguidance:
    """D_weak + s (D_strong − D_weak): guidance by a smaller, less trained version of the network (Karras et al. 2024).

    Attributes:
      scale: s; 1 is no guidance and makes no weak call.
      guided_channels: `all` or `first3`.
      interval: noise levels κ = σ/α between which to guide; None means at all.

    Raises:
      UserError: a value outside its range.
    """

    scale: float = 2.0
    guided_channels: Channels = "all"
    interval: Interval = None

    def __post_init__(self):
        check_choice("guidance guided_channels", self.guided_channels, Channels)
        _check_interval(self.interval)
        if self.scale < 0:
            raise UserError(f"guidance: scale must be at least 0 (1 is no guidance), not {self.scale}")

    def __call__(self, strong: Guided, weak: Guided) -> Guided:
        """Combines two functions of (x, point), such as `conditional(model, cond)` of two checkpoints."""
        if self.scale == 1:
            return strong

        def guided(x: Array, point: Point) -> Array:
            return extrapolate(weak(x, point), strong(x, point), self.scale, self.guided_channels, x.shape[-1])

        return within_interval(guided, strong, self.interval)
