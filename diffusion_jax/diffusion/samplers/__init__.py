"""Samplers: walks along a path from noise to data."""

from collections.abc import Callable

from diffusion_jax.diffusion.samplers.adaptive import RK45, AdaptiveDPMSolver
from diffusion_jax.diffusion.samplers.base import Progress, Sampler, Walk, check_sampling, initial_noise, sample, walk
from diffusion_jax.diffusion.samplers.ddim import DDIM, DDIMInversion
from diffusion_jax.diffusion.samplers.ddpm import DDPM
from diffusion_jax.diffusion.samplers.dpm_solver import DPMSolver
from diffusion_jax.diffusion.samplers.dpm_solver_multistep import DPMSolverMultistep, SDEDPMSolver
from diffusion_jax.diffusion.samplers.edm import EDM
from diffusion_jax.diffusion.samplers.euler_maruyama import EulerMaruyama
from diffusion_jax.diffusion.samplers.interpolant_sde import InterpolantSDE
from diffusion_jax.diffusion.samplers.plms import PLMS
from diffusion_jax.diffusion.samplers.predictor_corrector import PredictorCorrector
from diffusion_jax.diffusion.samplers.probability_flow import ProbabilityFlow
from diffusion_jax.diffusion.samplers.renoise import Renoise
from diffusion_jax.diffusion.samplers.unipc import UniPC

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "ddim_inversion": DDIMInversion,
    "plms": PLMS,
    "dpm_solver": DPMSolver,
    "dpm_solver_multistep": DPMSolverMultistep,
    "sde_dpm_solver": SDEDPMSolver,
    "adaptive_dpm_solver": AdaptiveDPMSolver,
    "unipc": UniPC,
    "euler_maruyama": EulerMaruyama,
    "predictor_corrector": PredictorCorrector,
    "probability_flow": ProbabilityFlow,
    "rk45": RK45,
    "edm": EDM,
    "interpolant_sde": InterpolantSDE,
    "renoise": Renoise,
}

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "PLMS",
    "RK45",
    "SAMPLERS",
    "AdaptiveDPMSolver",
    "DDIMInversion",
    "DPMSolver",
    "DPMSolverMultistep",
    "EulerMaruyama",
    "InterpolantSDE",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Progress",
    "Renoise",
    "SDEDPMSolver",
    "Sampler",
    "UniPC",
    "Walk",
    "check_sampling",
    "initial_noise",
    "sample",
    "walk",
]
