"""Running the command line in processes of its own, as a user does."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


class CommandLine:
    """Starts `python -m diffusion_jax …` in the repository's root, with a compilation cache shared by the session."""

    def __init__(self, cache: pathlib.Path):
        self.cache = cache

    root = ROOT

    def start(self, *arguments, devices: int = 1, launcher: tuple = ()) -> subprocess.Popen:
        """Starts the program, or a script of launch/ that starts it."""
        program = (sys.executable, "-m", "diffusion_jax")
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(self.cache),
            "DIFFUSION_JAX": " ".join(program),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        return subprocess.Popen(
            [*map(str, launcher or program), *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, devices: int = 1, status: int = 0) -> tuple[str, str]:
        """Runs to the end, checks the exit status, and returns what was printed to stdout and stderr."""
        process = self.start(*arguments, devices=devices)
        out, error = process.communicate(timeout=400)
        assert process.returncode == status, error
        return out, error

    @staticmethod
    def losses(workdir: pathlib.Path) -> dict[int, float]:
        """Step to loss, from metrics.jsonl; each step at most once."""
        losses: dict[int, float] = {}
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            entry = json.loads(line)
            assert entry["step"] not in losses
            losses[entry["step"]] = entry["loss"]
        return losses

    @staticmethod
    def wait_for_step(process: subprocess.Popen, workdir: pathlib.Path, step: int, checkpoint: bool) -> None:
        """Returns when the log of a running process has reached a step and, if asked, a checkpoint is whole."""
        log, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            saved = checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())
            if log.exists() and log.read_text().count("\n") >= step and (saved or not checkpoint):
                return
            time.sleep(0.02)
        raise TimeoutError(f"{workdir} did not reach step {step}")


@pytest.fixture(scope="session")
def command_line(tmp_path_factory):
    return CommandLine(tmp_path_factory.mktemp("cache"))
