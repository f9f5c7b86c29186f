"""Trains a model from a config file, or continues a run that was stopped.

    diffusion-jax train --config configs/digits.py --workdir runs/digits
    diffusion-jax train --config configs/dit.py:L/2 --workdir runs/dit_l2 \\
        --config.data.name=folder:/data/imagenet --config.train.batch_size=512

    diffusion-jax train --config configs/ldm_autoencoder.py:kl-f8 --workdir runs/kl_f8 --config.lpips.weights=...

A config's section `kind` says what it trains: a diffusion model (the default), the autoencoder of latent diffusion
(`first_stage`; a diffusion model then takes the run's folder as its `autoencoder.weights`), or a classifier of noisy
data to guide by.

--init-from RUN[:STEP] begins another run with the averaged weights of one of the same architecture. Rows of a table of
classes go by the names of the classes, and learned positions are interpolated to another resolution;
--config.train.freeze="('blocks',)" keeps parameters of such names as they are.

The word behind the colon is the config's variant; every config has a variant `smoke` that runs anywhere in seconds.
Any key of the config can be overridden with --config.SECTION.KEY=VALUE; --print-config shows them all. The same
command resumes a run from its newest checkpoint, whether it was stopped by a signal, killed or finished, or from the
one that --resume-step names; with --allow-changes its learning rate, schedule and clipping may be others from there.
SIGTERM and SIGINT save and end it with status 75 ("try again later"), which schedulers can tell from a finished run,
status 0, and from a mistake, status 2.

On several hosts, start the command on each, on TPU pods and SLURM with --coordinator auto, elsewhere with
--coordinator HOST:PORT --num-processes N --process-id I. The scripts in launch/ do so: see docs/launching.md.
"""

import sys

from absl import flags

from diffusion_jax.commands.flags import define_process_flags, start_process

# EX_TEMPFAIL of sysexits.h; os.EX_TEMPFAIL is missing on some systems.
STOPPED = 75


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("config", None, "The config file, FILE.py or FILE.py:VARIANT.", flag_values=values)
    flags.DEFINE_string("workdir", None, "The run's folder, also gs://BUCKET/…; made if missing.", flag_values=values)
    flags.DEFINE_bool("print_config", False, "Print the complete config and exit.", flag_values=values)
    flags.DEFINE_list("overrides", [], "Filled with the --config.… arguments.", flag_values=values)
    flags.DEFINE_bool(
        "allow_changes", False, "Go on with another learning rate, schedule, clipping or decay.", flag_values=values
    )
    flags.DEFINE_string(
        "resume_step", None, "The checkpoint to go on from; newer ones are deleted.", flag_values=values
    )
    flags.DEFINE_string("init_from", None, "RUN or RUN:STEP whose weights a new run begins with.", flag_values=values)
    define_process_flags(values)
    flags.mark_flag_as_required("config", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    start_process(values)
    from diffusion_jax.api import load_config, train
    from diffusion_jax.config import to_json
    from diffusion_jax.errors import UserError

    config = load_config(values.config, values.overrides)
    if values.print_config:
        print(to_json(config))
        return
    if values.workdir is None:
        raise UserError("--workdir is missing: name a folder for checkpoints and logs, such as runs/first")
    run = train(
        config,
        values.workdir,
        init_from=values.init_from,
        allow_changes=values.allow_changes,
        resume_step=values.resume_step,
    )
    if not run.finished:
        sys.exit(STOPPED)
