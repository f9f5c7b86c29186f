"""Lists the samplers with their order, network calls per step and options.

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
    from diffusion_jax.training.system import SCHEMA

    print(f"{'name':<22}{'order':<16}{'calls per step':<26}what it is")
    for name, sampler in SAMPLERS.items():
        lines = inspect.cleandoc(sampler.__doc__ or "").splitlines()
        print(f"{name:<22}{sampler.order:<16}{sampler.calls:<26}{lines[0]}")  # type: ignore[attr-defined]
        options = SCHEMA["sampler"].options(sampler)
        print(" " * 22 + ", ".join(f"{key}={option.default!r}" for key, option in options.items()))
