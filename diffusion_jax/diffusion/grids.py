"""The times that a sampler visits."""

import math
from typing import Literal

import numpy as np

from diffusion_jax.diffusion.paths import Path
from diffusion_jax.diffusion.point import Array
from diffusion_jax.diffusion.respacing import DISCRETE_GRIDS, discrete_indices
from diffusion_jax.errors import UserError, did_you_mean

CONTINUOUS_GRIDS = ("time", "quadratic", "log_snr", "karras")
GRIDS = (*DISCRETE_GRIDS, *CONTINUOUS_GRIDS)

Final = Literal["data", "first", "none"]

# How far a grid in ln(α/σ) stays from clean data and from pure noise where the path reaches them.
MARGIN = 1e-3


def shift_time(time: Array, shift: float) -> Array:
    """t' = a t / (1 + (a − 1) t): a > 1 moves steps towards noise, by −2 ln a in log-SNR on the linear path.

    Args:
      time: times in [0, 1], 0 = data.
      shift: a; codes that count time from noise to data use 1/a.

    Returns:
      Times in [0, 1]; 0 and 1 stay.
    """
    return shift * time / (1 + (shift - 1) * time)


def shift_for_resolution(pixels: float, base_pixels: float) -> float:
    """a = √(pixels/base_pixels) (Esser et al. 2024, eq. 23)."""
    return math.sqrt(pixels / base_pixels)


def karras_kappa(kappa_max: float, kappa_min: float, nodes: int, rho: float = 7.0) -> np.ndarray:
    """[nodes] noise levels from kappa_max to kappa_min, uniform in κ^{1/rho} (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0.0, 1.0, nodes)
    return (kappa_max ** (1 / rho) + ramp * (kappa_min ** (1 / rho) - kappa_max ** (1 / rho))) ** rho


def continuous_times(path: Path, grid: str, nodes: int, start: float, end: float, rho: float) -> np.ndarray:
    """Times from `start` down to `end`.

    Args:
      path: the process.
      grid: `time` (uniform in t), `quadratic` (uniform in √t), `log_snr` (uniform in ln(α/σ)) or `karras`.
      nodes: how many, both ends included.
      start: the first time.
      end: the last time.
      rho: the exponent of `karras`.

    Returns:
      [nodes] float64, descending.

    Raises:
      UserError: a grid in the noise level that starts without signal or ends without noise.
    """
    ramp = np.linspace(0.0, 1.0, nodes)
    if grid == "time":
        return start + ramp * (end - start)
    if grid == "quadratic":
        return (start**0.5 + ramp * (end**0.5 - start**0.5)) ** 2
    first, last = (float(path.point(np.float64(t)).kappa) for t in (start, end))
    if not 0 < last < first < math.inf:
        raise UserError(
            f"grid '{grid}': path '{path.name}' has noise levels {first:.3g} and {last:.3g} at its ends; "
            "choose time_start below 1 and time_end above 0"
        )
    if grid == "log_snr":
        kappa = np.exp(np.log(first) + ramp * (np.log(last) - np.log(first)))
    else:
        kappa = karras_kappa(first, last, nodes, rho)
    times = path.time_of_kappa(kappa)
    times[0] = start  # exactly, so that the ends do not depend on the inverse
    if nodes > 1:
        times[-1] = end
    return times


def _default_start(path: Path, grid: str) -> float:
    infinite = not np.isfinite(path.point(np.float64(path.time_max)).kappa)
    return path.time_max - MARGIN if infinite and grid in ("log_snr", "karras") else path.time_max


def _default_end(path: Path, grid: str) -> float:
    zero = path.point(np.float64(path.time_min)).sigma == 0
    return path.time_min + MARGIN if zero and grid in ("log_snr", "karras") else path.time_min


def times(
    path: Path,
    grid: str,
    steps: int,
    final: Final,
    time_start: float | None = None,
    time_end: float | None = None,
    rho: float = 7.0,
    shift: float = 1.0,
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
      shift: the a of `shift_time`, for continuous grids.

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
    if grid in DISCRETE_GRIDS:
        if shift != 1 or time_start is not None or time_end is not None:
            raise UserError(
                f"grid '{grid}' has no shift, time_start or time_end; use one of {', '.join(CONTINUOUS_GRIDS)}"
            )
        assert length is not None
        descending = (discrete_indices(grid, length, steps + (final == "none"))[::-1] + 1) / length
    else:
        start = _default_start(path, grid) if time_start is None else time_start
        end = _default_end(path, grid) if time_end is None else time_end
        if not 0 <= end < start <= 1:
            raise UserError(f"grid '{grid}': need 0 ≤ time_end < time_start ≤ 1, not {end} and {start}")
        if path.point(np.float64(end)).sigma == 0:
            final = "none"  # the grid reaches the data by itself
        nodes = steps + (final == "none")
        descending = shift_time(continuous_times(path, grid, nodes, start, end, rho), shift)
    if final == "none":
        return descending
    return np.append(descending, 0.0 if final == "data" or length is None else 1 / length)
