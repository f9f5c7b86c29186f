"""Lists the samplers with their order, network calls, what they are for, what they are and their options.

    diffusion-jax samplers

Any of them draws from any trained model whose path it has a form for:

    diffusion-jax sample --workdir runs/digits --out out --num 40 --sampler dpm_solver_multistep --steps 12
"""

import inspect

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    """This command has no flags of its own."""


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from diffusion_jax.diffusion.samplers import SAMPLERS
    from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA

    print(f"{'name':<22}{'order':<16}{'calls of N steps':<26}for")
    for name, sampler in SAMPLERS.items():
        print(f"{name:<22}{sampler.order:<16}{sampler.calls:<26}{sampler.purpose}")  # type: ignore[attr-defined]
        print(" " * 22 + inspect.cleandoc(sampler.__doc__ or "").splitlines()[0])
        options = DIFFUSION_SCHEMA["sampler"].options(sampler)
        print(" " * 22 + ", ".join(f"{key}={option.default!r}" for key, option in options.items()))
