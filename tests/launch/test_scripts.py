"""What all launchers have in common."""

import pathlib
import shutil
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
LAUNCHERS = ("gke.sh", "local.sh", "slurm.sh", "tpu.sh")


def test_shellcheck_has_nothing_to_say():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "shellcheck comes with the extra [test]"
    result = subprocess.run([program, "--external-sources", *SCRIPTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_is_the_head_of_the_script(launcher, name):
    out, error = launcher(name, "--help")
    assert f"launch/{name} " in out and "--dry-run" in out and "-- TRAIN ARGUMENTS" in out and error == ""
    for line in out.splitlines():
        assert not line or f"# {line}" in (FOLDER / name).read_text()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_option_that_is_read_is_explained(launcher, name):
    text = (FOLDER / name).read_text()
    read = [line for line in text.splitlines() if line.lstrip().startswith("--") and line.rstrip().endswith(")")]
    options = {word for line in read for word in line.strip(" )").split(" | ")}
    help_text, _ = launcher(name, "--help")
    assert all(f"{option} " in help_text for option in options), options


def test_all_launchers_are_known_here():
    assert {path.name for path in SCRIPTS} == {*LAUNCHERS, "common.sh", "slurm_job.sh"}
