"""Any trained network as a denoiser of x̄ = x/α = x_0 + κε: D(x̄; κ) = c_skip x̄ + c_out F(c_in x̄; c_noise).

This is the view of EDM (docs/diffusion.md, eq. 8; Karras et al. 2022, eq. 7 and table 1). Path and prediction decide
the four numbers; the ε-network of a variance-preserving path has (1, −κ, 1/√(κ² + 1), 999 t), the velocity network of
the linear path (1/(1 + κ), −κ/(1 + κ), 1/(1 + κ), κ/(1 + κ)).
"""

from typing import NamedTuple

from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array, namespace
from diffusion_jax.diffusion.predictions import Prediction


class Preconditioning(NamedTuple):
    """The four numbers at each κ."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def preconditioning(path: Path, prediction: Prediction, kappa: Array) -> Preconditioning:
    """The preconditioning of a network that was trained with `prediction` on `path`.

    Args:
      path: the process.
      prediction: the meaning of F.
      kappa: [N] noise levels σ/α.

    Returns:
      [N] fields.
    """
    point = path.point(path.time_of_kappa(kappa))
    zero = namespace(kappa).zeros_like(kappa)
    one = zero + 1
    c_in, c_noise = prediction.network_inputs(point.alpha, point)
    return Preconditioning(
        c_skip=prediction.to_x0(zero, point.alpha, point),
        c_out=prediction.to_x0(one, zero, point),
        c_in=c_in,
        c_noise=c_noise,
    )
