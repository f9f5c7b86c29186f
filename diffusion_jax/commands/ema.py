"""Makes an average of the weights of any width, after the run, from the snapshots that the run stored.

    diffusion-jax train --config configs/digits.py --workdir runs/digits \\
        --config.train.ema_widths="(0.05, 0.10)" --config.train.snapshot_every=100
    diffusion-jax ema --workdir runs/digits --sigma-rel 0.15 --out runs/digits_ema015
    diffusion-jax sample --workdir runs/digits_ema015 --out samples --num 40

The average has the power-function profile of relative width sigma_rel at the chosen step (Karras et al. 2024, section 3
and algorithm 3), as nearly as the snapshots allow: the width obtained is stated, and one whose profile misses more than
20 % of that asked for is refused. --out becomes a run folder whose one checkpoint holds the average as its `ema`.
"""

from absl import flags

from diffusion_jax.commands.flags import define_float


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("workdir", None, "The run whose snapshots to combine.", flag_values=values)
    flags.DEFINE_string("out", None, "The folder to make.", flag_values=values)
    define_float(values, "sigma_rel", None, "Relative width of the average, 0 to 0.28.")
    flags.DEFINE_string("step", "latest", "The step the average stands at.", flag_values=values)
    flags.mark_flags_as_required(["workdir", "out", "sigma_rel"], flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from diffusion_jax.runs.posthoc_ema import reconstruct

    fit = reconstruct(values.workdir, values.out, values.sigma_rel, values.step)
    print(
        f"{values.out}: an average of width {fit.sigma_rel:.3g} for {values.sigma_rel:g}, whose profile misses "
        f"{100 * fit.misfit:.1f} %; sample from it with --workdir {values.out}"
    )
