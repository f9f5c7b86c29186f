"""Which trained timesteps a sampler visits."""

from collections.abc import Callable

import numpy as np

from diffusion_jax.errors import UserError, did_you_mean


def section_indices(num_timesteps: int, counts: tuple[int, ...]) -> np.ndarray:
    """ADM's respacing: equal sections of the chain, each with its own number of evenly spaced timesteps.

    Args:
      num_timesteps: T.
      counts: timesteps to keep in each section; the first T mod len(counts) sections are one longer.

    Returns:
      [sum(counts)] ascending int64 indices in [0, T).

    Raises:
      UserError: a section is shorter than its count.
    """
    size, extra = divmod(num_timesteps, len(counts))
    start, kept = 0, []
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if length < count:
            raise UserError(f"steps: cannot keep {count} of the {length} timesteps in section {section}; ask for fewer")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        # Accumulated, not multiplied: the reference adds the stride step by step, and ties round to even.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return np.array(kept, dtype=np.int64)


def ddim_indices(num_timesteps: int, steps: int) -> np.ndarray:
    """The "ddimN" rule: the smallest integer stride that visits exactly N timesteps, from 0 upwards.

    Raises:
      UserError: no integer stride gives `steps` timesteps.
    """
    counts = {len(range(0, num_timesteps, stride)): stride for stride in range(num_timesteps, 0, -1)}
    if steps not in counts:
        below = max((n for n in counts if n < steps), default=None)
        above = min((n for n in counts if n > steps), default=None)
        near = " or ".join(str(n) for n in (below, above) if n is not None)
        raise UserError(
            f"grid 'ddim': no integer stride visits {steps} of {num_timesteps} timesteps; "
            f"use {near}, or grid 'linspace'"
        )
    return np.arange(0, num_timesteps, counts[steps])


def _leading(num_timesteps: int, steps: int) -> np.ndarray:
    return np.arange(steps) * (num_timesteps // steps)


def _trailing(num_timesteps: int, steps: int) -> np.ndarray:
    # Half-to-even rounding from the top, as in diffusers.
    return (np.round(np.arange(num_timesteps, 0, -num_timesteps / steps)).astype(np.int64) - 1)[:steps][::-1]


def _linspace(num_timesteps: int, steps: int) -> np.ndarray:
    return np.round(np.linspace(0, num_timesteps - 1, steps)).astype(np.int64)


def _ldm(num_timesteps: int, steps: int) -> np.ndarray:
    return np.arange(0, num_timesteps, num_timesteps // steps) + 1


def _ldm_quad(num_timesteps: int, steps: int) -> np.ndarray:
    return (np.linspace(0, np.sqrt(0.8 * num_timesteps), steps) ** 2).astype(np.int64) + 1


DISCRETE_GRIDS: dict[str, Callable[[int, int], np.ndarray]] = {
    "adm": lambda num_timesteps, steps: section_indices(num_timesteps, (steps,)),
    "ddim": ddim_indices,
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "ldm": _ldm,
    "ldm_quad": _ldm_quad,
}


def discrete_indices(grid: str, num_timesteps: int, steps: int) -> np.ndarray:
    """The trained timesteps of a named grid.

    Args:
      grid: `adm` (ADM and DiT "250": first and last timestep included), `ddim` (integer stride from 0), `leading`
        (k·⌊T/N⌋), `trailing` (from T−1 down in steps of T/N), `linspace` (rounded, both ends), `ldm` (the LDM code's
        uniform rule, from 1; visits more than `steps` where T is not a multiple), `ldm_quad` (its quadratic rule).
      num_timesteps: T.
      steps: how many to visit.

    Returns:
      [steps] ascending int64 indices in [0, T); duplicates occur in `ldm_quad` with many steps.

    Raises:
      UserError: steps outside [1, T], unknown grid, or a rule that leaves the table.
    """
    if grid not in DISCRETE_GRIDS:
        raise UserError(f"grid: unknown '{grid}'{did_you_mean(grid, DISCRETE_GRIDS)}")
    if not 1 <= steps <= num_timesteps:
        raise UserError(f"steps: {steps} is outside 1…{num_timesteps}, the timesteps that the path was trained on")
    indices = DISCRETE_GRIDS[grid](num_timesteps, steps)
    if indices[-1] >= num_timesteps:
        raise UserError(
            f"grid '{grid}': {steps} steps reach timestep {indices[-1]}, beyond the last, {num_timesteps - 1}; "
            "ask for fewer steps or use grid 'trailing'"
        )
    return indices


def parse_respacing(respacing: str, num_timesteps: int) -> np.ndarray:
    """ADM's respacing string: "" (all), "250", "10,15,20" (section counts) or "ddim50".

    Returns:
      Ascending int64 indices in [0, T).

    Raises:
      UserError: the string does not parse, or asks for what the chain does not have.
    """
    if not respacing:
        return np.arange(num_timesteps)
    try:
        if respacing.startswith("ddim"):
            steps = int(respacing.removeprefix("ddim"))
        else:
            counts = tuple(int(part) for part in respacing.split(","))
    except ValueError:
        raise UserError(f"respacing: cannot read '{respacing}'; write '250', '10,15,20' or 'ddim50'") from None
    if respacing.startswith("ddim"):
        return ddim_indices(num_timesteps, steps)
    return section_indices(num_timesteps, counts)
