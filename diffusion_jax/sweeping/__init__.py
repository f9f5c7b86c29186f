"""Many runs of one config: points, launching, reports."""

from diffusion_jax.sweeping.grid import SweepPoint, product, zipped
from diffusion_jax.sweeping.launchers import LAUNCHERS, LaunchOptions
from diffusion_jax.sweeping.report import write_report
from diffusion_jax.sweeping.sweep import PlannedRun, Sweep, planned_runs, read_sweep

__all__ = [
    "LAUNCHERS",
    "LaunchOptions",
    "PlannedRun",
    "Sweep",
    "SweepPoint",
    "planned_runs",
    "product",
    "read_sweep",
    "write_report",
    "zipped",
]
