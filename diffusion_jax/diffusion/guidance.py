"""Guidance: combinations of network calls that sharpen what is sampled.

Guidances act on raw outputs, before the prediction is read: a linear combination at fixed (x, t) is the same
combination of ε, x_0, v, score and velocity.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.denoiser import Guided, Model, conditional, network
from diffusion_jax.diffusion.point import Array, Point
from diffusion_jax.errors import UserError

Channels = Literal["all", "first3"]


def scale_from_weight(weight: float) -> float:
    """The scale s = 1 + w of the convention D_c + w (D_c − D_u) (Ho & Salimans 2022, U-ViT)."""
    return 1 + weight


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


@dataclasses.dataclass(frozen=True)
class ClassifierFreeGuidance:
    """ε̂ = ε_null + s (ε_cond − ε_null) (Ho & Salimans 2022, with s = 1 + w).

    Attributes:
      cfg_scale: s; 1 is no guidance and makes no null call.
      guided_channels: `all`, or `first3` for parity with the DiT release.

    Raises:
      UserError: an unknown channel choice, or a scale below 0.
    """

    cfg_scale: float = 1.0
    guided_channels: Channels = "all"

    def __post_init__(self):
        check_choice("guidance guided_channels", self.guided_channels, Channels)
        if self.cfg_scale < 0:
            raise UserError(f"guidance: cfg_scale must be at least 0 (1 is no guidance), not {self.cfg_scale}")

    def __call__(self, model: Model, cond: Any, null_cond: Any = None) -> Guided:
        """One doubled batch per evaluation.

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
        call = network(model)

        def guided(x: Array, point: Point) -> Array:
            batch = x.shape[0]

            # Sample i sits beside its null twin, so a sharded batch axis stays in place.
            def pair(a: Array, b: Array) -> Array:
                return jnp.stack([a, b], axis=1).reshape(2 * batch, *a.shape[1:])  # 2B, ...

            double_point = jax.tree.map(lambda f: jnp.repeat(f, 2) if jnp.ndim(f) else f, point)
            output = call(pair(x, x), double_point, jax.tree.map(pair, cond, null_cond))  # 2B, ..., C_out
            output = output.reshape(batch, 2, *output.shape[1:])  # B, 2, ..., C_out
            return extrapolate(output[:, 1], output[:, 0], self.cfg_scale, self.guided_channels, x.shape[-1])

        return guided
