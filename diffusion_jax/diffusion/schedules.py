"""β schedules of discrete diffusion, as float64 tables."""

from collections.abc import Callable

import numpy as np

from diffusion_jax.errors import UserError, did_you_mean

MAX_BETA = 0.999


def _linear(steps: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start, end, steps)


def _scaled_linear(steps: int, start: float, end: float) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, steps) ** 2


def _sqrt_linspace(steps: int, start: float, end: float) -> np.ndarray:
    return np.sqrt(np.linspace(start, end, steps))


def _constant(steps: int, start: float, end: float) -> np.ndarray:
    return np.full(steps, end)


def _warmup(steps: int, start: float, end: float, fraction: float) -> np.ndarray:
    betas = np.full(steps, end)
    warm = int(steps * fraction)
    betas[:warm] = np.linspace(start, end, warm)
    return betas


def _sigmoid(steps: int, start: float, end: float) -> np.ndarray:
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))


def _from_alpha_bar(alpha_bar: Callable[[np.ndarray], np.ndarray], steps: int) -> np.ndarray:
    u = np.arange(steps + 1) / steps
    return np.minimum(1 - alpha_bar(u[1:]) / alpha_bar(u[:-1]), MAX_BETA)


# name -> (formula of (steps, beta_start, beta_end), default beta_start, default beta_end)
_WITH_ENDS: dict[str, tuple[Callable[[int, float, float], np.ndarray], float, float]] = {
    "linear": (_linear, 1e-4, 0.02),
    "scaled_linear": (_scaled_linear, 8.5e-4, 0.012),
    "quad": (_scaled_linear, 1e-4, 0.02),
    "sqrt_linspace": (_sqrt_linspace, 1e-4, 0.02),
    "constant": (_constant, 0.02, 0.02),
    "warmup10": (lambda n, a, b: _warmup(n, a, b, 0.1), 1e-4, 0.02),
    "warmup50": (lambda n, a, b: _warmup(n, a, b, 0.5), 1e-4, 0.02),
    "sigmoid": (_sigmoid, 1e-4, 0.02),
}

_WITHOUT_ENDS: dict[str, Callable[[int], np.ndarray]] = {
    "cosine": lambda n: _from_alpha_bar(lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2, n),
    "sqrt": lambda n: _from_alpha_bar(lambda u: 1 - np.sqrt(u + 1e-4), n),
    "jsd": lambda n: 1 / np.linspace(n, 1, n),
}

SCHEDULES = (*_WITH_ENDS, *_WITHOUT_ENDS)


def betas(
    schedule: str, num_timesteps: int, beta_start: float | None = None, beta_end: float | None = None
) -> np.ndarray:
    """The variances β_0 … β_{T−1} of the forward steps.

    Args:
      schedule: `linear` (DDPM, ADM, DiT), `scaled_linear` (LDM, Stable Diffusion: linear in √β; the LDM code calls it
        "linear"), `cosine` (Improved DDPM), `sqrt` (Diffusion-LM), `quad`, `sqrt_linspace` (√ of linear; the LDM code
        calls it "sqrt"), `constant`, `warmup10`, `warmup50`, `jsd` or `sigmoid`.
      num_timesteps: T.
      beta_start: β_0, for the schedules that have ends; None means the published value, for `linear` 1e-4 · 1000/T.
      beta_end: β_{T−1}, likewise; for `linear` 0.02 · 1000/T.

    Returns:
      [T] float64 in (0, 1].

    Raises:
      UserError: unknown schedule, ends given to a schedule that has none, or a β outside (0, 1].
    """
    if schedule in _WITHOUT_ENDS:
        if beta_start is not None or beta_end is not None:
            raise UserError(f"path: schedule '{schedule}' has no beta_start or beta_end; leave them None")
        table = _WITHOUT_ENDS[schedule](num_timesteps)
    elif schedule in _WITH_ENDS:
        formula, default_start, default_end = _WITH_ENDS[schedule]
        scale = 1000 / num_timesteps if schedule == "linear" else 1.0
        start = default_start * scale if beta_start is None else beta_start
        end = default_end * scale if beta_end is None else beta_end
        table = formula(num_timesteps, start, end)
    else:
        raise UserError(f"path: unknown schedule '{schedule}'{did_you_mean(schedule, SCHEDULES)}")
    if not (np.all(table > 0) and np.all(table <= 1)):
        raise UserError(
            f"path: schedule '{schedule}' with {num_timesteps} timesteps leaves (0, 1] "
            f"(β from {table.min():.3g} to {table.max():.3g}); change num_timesteps, beta_start or beta_end"
        )
    return table


def zero_terminal_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Shifts and scales √ᾱ so that the last step carries no signal (Lin et al. 2023, algorithm 1).

    Args:
      alpha_bar: [T] float64, decreasing.

    Returns:
      [T] float64 with the first entry unchanged and the last exactly 0.
    """
    root = np.sqrt(alpha_bar)
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
