"""Many runs of one config: points, launching, reports."""

from diffusion_jax.sweeping.grid import Point, product, zipped
from diffusion_jax.sweeping.launchers import LAUNCHERS, LaunchOptions
from diffusion_jax.sweeping.report import write_report
from diffusion_jax.sweeping.sweep import Run, Sweep, plan, read_sweep

__all__ = [
    "LAUNCHERS",
    "LaunchOptions",
    "Point",
    "Run",
    "Sweep",
    "plan",
    "product",
    "read_sweep",
    "write_report",
    "zipped",
]
