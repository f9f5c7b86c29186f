"""What the output of a network means, and the conversions between the meanings.

At a fixed x = αx_0 + σε any one of x_0, ε, the score −ε/σ, the velocity u = α̇x_0 + σ̇ε and v = αε − σx_0 gives the
others (docs/diffusion.md, table of conversions). The `edm` network works on x/α = x_0 + κε with its own scalings of
input and output (Karras et al. 2022, eq. 7).
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp

from diffusion_jax.diffusion.checks import check_choice
from diffusion_jax.diffusion.point import Array, Point, Transition, align, namespace, weighted_sum
from diffusion_jax.errors import UserError

Kind = Literal["epsilon", "x0", "v", "score", "velocity", "edm"]
Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]


class EDMScalings(NamedTuple):
    """The scalings of the `edm` network at noise level κ (Karras et al. 2022, table 1).

    Attributes:
      c_skip: σ_d²/(κ² + σ_d²).
      c_out: κσ_d/√(κ² + σ_d²).
      c_in: 1/√(κ² + σ_d²).
      c_noise: ¼ ln κ.
    """

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The meaning of a network's output channels.

    Attributes:
      kind: what the first C channels predict; `edm` is F of D = c_skip x/α + c_out F(c_in x/α, ¼ ln κ).
      variance: the reverse variance of ancestral sampling: β̃ (`fixed_small`), β (`fixed_large`, with β̃ of the second
        step at the first), its logarithm as C more output channels (`learned`), or an interpolation between ln β̃ and
        ln β steered by C more output channels (`learned_range`; Nichol & Dhariwal 2021, eq. 15).
      sigma_data: standard deviation of the data, for `edm`.

    Raises:
      UserError: an unknown name.
    """

    kind: Kind = "epsilon"
    variance: Variance = "fixed_small"
    sigma_data: float = 0.5

    def __post_init__(self):
        check_choice("prediction kind", self.kind, Kind)
        check_choice("prediction variance", self.variance, Variance)
        if self.sigma_data <= 0:
            raise UserError(f"prediction: sigma_data must be positive, not {self.sigma_data}")

    @property
    def learns_variance(self) -> bool:
        """Whether the network has C output channels for the variance."""
        return self.variance in ("learned", "learned_range")

    def output_channels(self, channels: int) -> int:
        """The output channels of a network on images of `channels` channels."""
        return 2 * channels if self.learns_variance else channels

    def scalings(self, point: Point) -> EDMScalings:
        """The scalings of the `edm` network."""
        xp, kappa = namespace(point.kappa), point.kappa
        total = kappa**2 + self.sigma_data**2
        root = xp.sqrt(total)
        return EDMScalings(self.sigma_data**2 / total, kappa * self.sigma_data / root, 1 / root, xp.log(kappa) / 4)

    def network_inputs(self, x: Array, point: Point) -> tuple[Array, Array]:
        """What the network receives at x [B, ..., C]: its input, and its time with the shape of the point's fields."""
        if self.kind != "edm":
            return x, point.timestep
        aligned = align(point, x)
        return self.scalings(aligned).c_in * x / aligned.alpha, self.scalings(point).c_noise

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
            case "edm":
                c = self.scalings(point)
                return (x0 - c.c_skip * (x0 + point.kappa * epsilon)) / c.c_out

    def to_x0(self, mean: Array, x: Array, point: Point) -> Array:
        """The predicted data [B, ..., C] from the first C output channels `mean`; arguments as in `target`."""
        if self.kind == "x0":
            return mean
        of_x, of_mean = self._x0_weights(align(point, x))
        return weighted_sum(of_x, x, of_mean, mean)

    def to_epsilon(self, mean: Array, x: Array, point: Point) -> Array:
        """The predicted noise [B, ..., C] from the first C output channels `mean`; arguments as in `target`."""
        if self.kind == "epsilon":
            return mean
        of_x, of_mean = self._epsilon_weights(align(point, x))
        return weighted_sum(of_x, x, of_mean, mean)

    # Both conversions are weighted sums, with weights per noise level. Dividing x-sized arrays instead would cost more,
    # and would tie the last bit of a sample to the number of devices: XLA turns such divisions into products or not,
    # depending on whether it partitions the program.
    def _x0_weights(self, point: Point) -> tuple[Array, Array]:
        match self.kind:
            case "epsilon":
                return 1 / point.alpha, -point.sigma / point.alpha
            case "v":
                total = weighted_sum(point.alpha, point.alpha, point.sigma, point.sigma)
                return point.alpha / total, -point.sigma / total
            case "score":
                return 1 / point.alpha, point.sigma**2 / point.alpha
            case "velocity":
                return point.sigma_dot / point.delta, -point.sigma / point.delta
            case "edm":
                c = self.scalings(point)
                return c.c_skip / point.alpha, c.c_out
        raise ValueError(f"{self.kind} is the data itself")

    def _epsilon_weights(self, point: Point) -> tuple[Array, Array]:
        match self.kind:
            case "x0":
                return 1 / point.sigma, -point.alpha / point.sigma
            case "v":
                total = weighted_sum(point.alpha, point.alpha, point.sigma, point.sigma)
                return point.sigma / total, point.alpha / total
            case "score":
                return namespace(point.sigma).zeros_like(point.sigma), -point.sigma
            case "velocity":
                return -point.alpha_dot / point.delta, point.alpha / point.delta
            case "edm":
                # (x/α − D)/κ with κ divided out of both terms.
                c_in = self.scalings(point).c_in
                return c_in**2 * point.kappa / point.alpha, -c_in * self.sigma_data
        raise ValueError(f"{self.kind} is the noise itself")

    def x0_error_factor(self, point: Point) -> Array:
        """|Δx_0|²/|Δmean|² at fixed x: what turns a squared error of this kind into one of the data."""
        match self.kind:
            case "epsilon":
                return point.kappa**2
            case "x0":
                return namespace(point.sigma).ones_like(point.sigma)
            case "v":
                return (point.sigma / (point.alpha**2 + point.sigma**2)) ** 2
            case "score":
                return (point.sigma**2 / point.alpha) ** 2
            case "velocity":
                return (point.sigma / point.delta) ** 2
            case "edm":
                return self.scalings(point).c_out ** 2

    def epsilon_error_factor(self, point: Point) -> Array:
        """|Δε|²/|Δmean|² at fixed x, `x0_error_factor` · SNR without its 0 · ∞ at the ends of a path."""
        match self.kind:
            case "epsilon":
                return namespace(point.sigma).ones_like(point.sigma)
            case "x0":
                return point.snr
            case "v":
                return (point.alpha / (point.alpha**2 + point.sigma**2)) ** 2
            case "score":
                return point.sigma**2
            case "velocity":
                return (point.alpha / point.delta) ** 2
            case "edm":
                return (self.sigma_data * self.scalings(point).c_in) ** 2

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
