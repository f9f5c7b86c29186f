"""Starting the runs of a sweep: here, through SLURM, or by printing their commands."""

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import diffusion_jax
from diffusion_jax.errors import UserError
from diffusion_jax.files import cache_folder, in_bucket, make_folder, write_atomically
from diffusion_jax.sweeping.sweep import PlannedRun
from diffusion_jax.training.signals import StopRequest

OUTPUT = "train.log"

# Seconds between looks at the runs.
POLL = 0.1


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """How runs are started.

    Attributes:
      concurrency: runs at a time on this host, ≥ 1.
      gpus_per_run: GPUs of this host that a run gets; None lets every run see all of them.
      slurm: options for sbatch.
    """

    concurrency: int = 1
    gpus_per_run: int | None = None
    slurm: tuple[str, ...] = ()


def launch_locally(runs: Sequence[PlannedRun], options: LaunchOptions) -> bool:
    """Trains the runs on this host, some at a time, their output in `WORKDIR/train.log`.

    Of runs in a bucket the output grows in the user's cache folder, and is uploaded when a run ends.

    SIGTERM and SIGINT are passed on to the runs, which save; the next call resumes them.

    Returns:
      Whether all runs are at their end; False after a signal.

    Raises:
      UserError: some runs failed, after all others have ended; names them and their logs.
    """
    waiting = list(runs)
    slots: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}
    failed: list[PlannedRun] = []
    passed_on = False
    with StopRequest() as stop:
        while slots or (waiting and not stop.signal_name):
            for slot in range(options.concurrency):
                if slot not in slots and waiting and not stop.signal_name:
                    run = waiting.pop(0)
                    print(f"{'resuming' if run.step else 'starting'} {run.name}", file=sys.stderr)
                    slots[slot] = (run, _start(run, slot, options))
            if stop.signal_name and not passed_on:
                for _, process in slots.values():
                    process.terminate()
                passed_on = True
            for slot, (run, process) in list(slots.items()):
                if process.poll() is not None:
                    del slots[slot]
                    if in_bucket(run.workdir):
                        write_atomically(run.workdir / OUTPUT, _output(run).read_bytes())
                    if process.returncode and not stop.signal_name:
                        failed.append(run)
                        print(f"failed   {run.name}: {_last_line(run)}", file=sys.stderr)
                    elif not process.returncode:
                        print(f"finished {run.name}", file=sys.stderr)
            time.sleep(POLL)
    if failed:
        logs = ", ".join(str(_output(run)) for run in failed)
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: see {logs}")
    return not stop.signal_name


def submit_to_slurm(runs: Sequence[PlannedRun], options: LaunchOptions) -> bool:
    """Submits each run through `launch/slurm.sh`, which passes over those that are queued or running.

    Returns:
      False: the runs are not at their end.

    Raises:
      UserError: a job is refused.
    """
    for run in runs:
        command = [str(_slurm_script()), *options.slurm, "--", *run.arguments]
        if subprocess.run(command, env={"DIFFUSION_JAX": _program(), **os.environ}, check=False).returncode:
            raise UserError(f"run '{run.name}': launch/slurm.sh could not submit it (above)")
    return False


def print_commands(runs: Sequence[PlannedRun], options: LaunchOptions) -> bool:
    """Prints the command of each run as a line of shell, for whatever starts programs on the user's machines.

    Returns:
      False: the runs are not at their end.
    """
    for run in runs:
        print(shlex.join(["diffusion-jax", "train", *run.arguments]))
    return False


LAUNCHERS: Mapping[str, Callable[[Sequence[PlannedRun], LaunchOptions], bool]] = {
    "local": launch_locally,
    "slurm": submit_to_slurm,
    "print": print_commands,
}
"""Ways to start runs, by their names on the command line."""


def _start(run: PlannedRun, slot: int, options: LaunchOptions) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if options.gpus_per_run:
        first = slot * options.gpus_per_run
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(first, first + options.gpus_per_run)))
    make_folder(run.workdir)
    make_folder(_output(run).parent)
    with open(_output(run), "ab") as output:
        # A session of its own: Ctrl-C is to reach the runs once, through this process.
        return subprocess.Popen(
            run.command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )


def _last_line(run: PlannedRun) -> str:
    lines = _output(run).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _output(run: PlannedRun) -> pathlib.Path:
    """The file on this host to which a run's process writes."""
    if in_bucket(run.workdir):
        return cache_folder() / "sweeps" / str(run.workdir).replace("://", "/") / OUTPUT
    return pathlib.Path(run.workdir) / OUTPUT


def _program() -> str:
    return shlex.join([sys.executable, "-m", "diffusion_jax"])


def _slurm_script() -> pathlib.Path:
    script = pathlib.Path(diffusion_jax.__file__).parents[1] / "launch" / "slurm.sh"
    if not script.exists():
        raise UserError(f"--launcher slurm: there is no {script}; run from a clone, installed with pip install -e")
    return script
