"""The times that a sampler visits."""

from typing import Literal

import numpy as np

from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.respacing import DISCRETE_GRIDS, discrete_indices
from diffusion_jax.errors import UserError, did_you_mean

CONTINUOUS_GRIDS = ("time", "quadratic", "log_snr", "karras")
GRIDS = (*DISCRETE_GRIDS, *CONTINUOUS_GRIDS)

Final = Literal["data", "first", "none"]


def continuous_times(path: Path, grid: str, nodes: int, start: float, end: float, rho: float) -> np.ndarray:
    """Times from `start` down to `end`.

    Args:
      path: the process.
      grid: `time` (uniform in t), `quadratic` (uniform in √t), `log_snr` (uniform in ln(α/σ)) or `karras` (uniform in
        κ^{1/rho}; Karras et al. 2022, eq. 5).
      nodes: how many, both ends included.
      start: the first time.
      end: the last time.
      rho: the exponent of `karras`.

    Returns:
      [nodes] float64, descending.
    """
    ramp = np.linspace(0.0, 1.0, nodes)
    if grid == "time":
        return start + ramp * (end - start)
    if grid == "quadratic":
        return (start**0.5 + ramp * (end**0.5 - start**0.5)) ** 2
    first, last = (float(path.point(np.float64(t)).kappa) for t in (start, end))
    if grid == "log_snr":
        kappa = np.exp(np.log(first) + ramp * (np.log(last) - np.log(first)))
    else:
        kappa = (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho
    times = path.time_of_kappa(kappa)
    times[0], times[-1] = start, end  # exactly, so that the ends do not depend on the inverse
    return times


def times(
    path: Path,
    grid: str,
    steps: int,
    final: Final,
    time_start: float | None = None,
    time_end: float | None = None,
    rho: float = 7.0,
) -> np.ndarray:
    """The times of a sampling run of `steps` steps.

    Args:
      path: the process.
      grid: a name in `GRIDS`. Discrete grids visit timesteps that a discrete path was trained on, continuous grids
        any time of any path.
      steps: the number of steps.
      final: where the last step ends: at clean `data`; at the `first` timestep of a discrete path (the LDM code's
        choice, which leaves a trace of noise); or `none`, at the last node of the grid, which then has one node more.
      time_start: where a continuous grid starts; None means path.time_max.
      time_end: where its nodes end; None means path.time_min.
      rho: the exponent of the `karras` grid.

    Returns:
      [steps + 1] float64, descending from noise to data.

    Raises:
      UserError: unknown grid, a discrete grid or `first` on a continuous path, steps beyond the trained timesteps.
    """
    if grid not in GRIDS:
        raise UserError(f"grid: unknown '{grid}'{did_you_mean(grid, GRIDS)}")
    if steps < 1:
        raise UserError(f"steps: need at least 1, not {steps}")
    length = path.chain_length
    if length is None and (grid in DISCRETE_GRIDS or final == "first"):
        what = f"grid '{grid}'" if grid in DISCRETE_GRIDS else "final 'first'"
        raise UserError(
            f"{what} visits trained timesteps and path '{path.name}' is continuous; "
            f"use one of {', '.join(CONTINUOUS_GRIDS)} with final 'data' or 'none'"
        )
    nodes = steps + (final == "none")
    if grid in DISCRETE_GRIDS:
        assert length is not None
        descending = (discrete_indices(grid, length, nodes)[::-1] + 1) / length
    else:
        start = path.time_max if time_start is None else time_start
        end = path.time_min if time_end is None else time_end
        if not 0 <= end < start <= 1:
            raise UserError(f"grid '{grid}': need 0 ≤ time_end < time_start ≤ 1, not {end} and {start}")
        descending = continuous_times(path, grid, nodes, start, end, rho)
    if final == "none":
        return descending
    return np.append(descending, 0.0 if final == "data" or length is None else 1 / length)
