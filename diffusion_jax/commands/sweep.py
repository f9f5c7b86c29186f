"""Trains a config at many points, here or through SLURM, and reports what came of it.

    diffusion-jax sweep --sweep configs/sweeps/digits_lr.py --launcher local --concurrency 2
    diffusion-jax sweep --sweep configs/sweeps/digits_lr.py --launcher slurm --slurm "--gpus-per-node=1 --time=4:00:00"
    diffusion-jax sweep --sweep configs/sweeps/digits_lr.py --launcher print
    diffusion-jax sweep --sweep configs/sweeps/digits_lr.py --report --metrics loss,grad_norm

A sweep file names a base config and the points, products and zips of overrides; configs/sweeps/digits_lr.py is an
example. All configs are checked before the first run starts. Each run has a folder named after its point in the folder
of the sweep. The same command passes over finished runs and resumes the others.

--report writes report.md, report.csv and report.png (the last value of each metric, and its curve) into the folder of
the sweep; a sweep that has come to its end here writes them by itself.
"""

import pathlib
import shlex
import sys

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("sweep", None, "The sweep file, such as configs/sweeps/digits_lr.py.", flag_values=values)
    flags.DEFINE_string("workdir", None, "The sweep's folder; runs/NAME of the file by default.", flag_values=values)
    flags.DEFINE_enum(
        "launcher",
        "local",
        ["local", "slurm", "print"],
        "local trains here, slurm submits jobs, print prints the commands.",
        flag_values=values,
    )
    flags.DEFINE_integer("concurrency", 1, "local: runs at a time.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("gpus_per_run", None, "local: GPUs of each run.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("slurm", "", "slurm: options for sbatch, in quotes.", flag_values=values)
    flags.DEFINE_bool("report", False, "Write the table and the plot, start nothing.", flag_values=values)
    flags.DEFINE_list("metrics", None, "Metrics of the report; those of the sweep file by default.", flag_values=values)
    flags.mark_flag_as_required("sweep", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    import jax

    # This process only looks at shapes; the accelerators are for the runs.
    jax.config.update("jax_platforms", "cpu")
    from diffusion_jax.commands.train import STOPPED
    from diffusion_jax.files import user_path
    from diffusion_jax.sweeping import LAUNCHERS, LaunchOptions, planned_runs, read_sweep, write_report

    sweep = read_sweep(values.sweep)
    workdir = user_path(values.workdir or pathlib.Path("runs") / pathlib.Path(values.sweep).stem)
    runs = planned_runs(sweep, workdir)
    metrics = values.metrics or sweep.metrics
    if not values.report:
        left = [each for each in runs if not each.finished]
        print(f"{len(runs)} runs in {workdir}, {len(runs) - len(left)} finished", file=sys.stderr)
        options = LaunchOptions(values.concurrency, values.gpus_per_run, tuple(shlex.split(values.slurm)))
        if not LAUNCHERS[values.launcher](left, options):
            if values.launcher == "local":
                sys.exit(STOPPED)
            return
    print(write_report(runs, metrics, workdir), end="")
    print(f"{workdir / 'report.md'}, report.csv, report.png", file=sys.stderr)
