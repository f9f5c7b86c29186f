"""What the output of a network means, and the conversions between the meanings.

At a fixed x = αx_0 + σε any one of x_0, ε, the score −ε/σ, the velocity u = α̇x_0 + σ̇ε and v = αε − σx_0 gives the
others (docs/diffusion.md, table of conversions).
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.point import Array, Point, Transition, align

Kind = Literal["epsilon", "x0", "v", "score", "velocity"]
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The meaning of a network's output channels.

    Attributes:
      kind: what the first C channels predict.
      variance: the reverse variance of ancestral sampling: β̃ (`fixed_small`), β (`fixed_large`, with β̃ of the second
        step at the first), its logarithm as C more output channels (`learned`), or an interpolation between ln β̃ and
        ln β steered by C more output channels (`learned_range`; Nichol & Dhariwal 2021, eq. 15).

    Raises:
      UserError: an unknown name.
    """

    kind: Kind = "epsilon"
    variance: Variance = "fixed_small"

    def __post_init__(self):
        check_choice("prediction kind", self.kind, Kind)
        check_choice("prediction variance", self.variance, Variance)

    @property
    def learns_variance(self) -> bool:
        """Whether the network has C output channels for the variance."""
        return self.variance in ("learned", "learned_range")

    def output_channels(self, channels: int) -> int:
        """The output channels of a network on images of `channels` channels."""
        return 2 * channels if self.learns_variance else channels

    def split(self, output: Array) -> tuple[Array, Array | None]:
        """Splits [..., output_channels] into the prediction [..., C] and the variance output [..., C] or None."""
        if not self.learns_variance:
            return output, None
        mean, variance = jnp.split(output, 2, axis=-1)
        return mean, variance

    def target(self, x0: Array, epsilon: Array, point: Point) -> Array:
        """The value that the first C channels should take.

        Args:
          x0: [B, ..., C] data.
          epsilon: [B, ..., C] the noise in x = αx_0 + σε.
          point: scalar or [B] fields.

        Returns:
          [B, ..., C].
        """
        point = align(point, x0)
        match self.kind:
            case "epsilon":
                return epsilon
            case "x0":
                return x0
            case "v":
                return point.alpha * epsilon - point.sigma * x0
            case "score":
                return -epsilon / point.sigma
            case "velocity":
                return point.alpha_dot * x0 + point.sigma_dot * epsilon

    def to_x0(self, mean: Array, x: Array, point: Point) -> Array:
        """The predicted data [B, ..., C] from the first C output channels `mean`; arguments as in `target`."""
        point = align(point, x)
        match self.kind:
            case "epsilon":
                return (x - point.sigma * mean) / point.alpha
            case "x0":
                return mean
            case "v":
                return (point.alpha * x - point.sigma * mean) / (point.alpha**2 + point.sigma**2)
            case "score":
                return (x + point.sigma**2 * mean) / point.alpha
            case "velocity":
                return (point.sigma_dot * x - point.sigma * mean) / point.delta

    def to_epsilon(self, mean: Array, x: Array, point: Point) -> Array:
        """The predicted noise [B, ..., C] from the first C output channels `mean`; arguments as in `target`."""
        point = align(point, x)
        match self.kind:
            case "epsilon":
                return mean
            case "x0":
                return (x - point.alpha * mean) / point.sigma
            case "v":
                return (point.sigma * x + point.alpha * mean) / (point.alpha**2 + point.sigma**2)
            case "score":
                return -point.sigma * mean
            case "velocity":
                return (point.alpha * mean - point.alpha_dot * x) / point.delta

    def log_variance(self, variance_output: Array | None, transition: Transition) -> Array:
        """The log-variance of the reverse step p(x_s | x_t).

        Args:
          variance_output: [B, ..., C] from `split`, None unless the variance is learned.
          transition: scalar fields, or [B, 1, ...] aligned with `variance_output`.

        Returns:
          [B, ..., C] if learned, else the shape of the transition's fields.
        """
        low, high = transition.log_variance_min, transition.log_variance_max
        match self.variance:
            case "fixed_small":
                return low
            case "fixed_large":
                return jnp.where(transition.to_data > 0, low, high)
            case "learned":
                assert variance_output is not None
                return variance_output
            case "learned_range":
                assert variance_output is not None
                fraction = (variance_output + 1) / 2
                return fraction * high + (1 - fraction) * low
