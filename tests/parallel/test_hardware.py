"""What is concluded from device files, and that freed memory is used again."""

import importlib.util
import platform
import subprocess
import sys

import jax
import pytest

from diffusion_jax.parallel import hardware


@pytest.fixture
def told(monkeypatch):
    """What JAX was told, nothing at first, and whether memory is kept; nothing reaches JAX or the C library."""
    told = {"jax_platforms": None, "kept": False}
    monkeypatch.setattr(type(jax.config), "values", told, raising=False)
    monkeypatch.setattr(jax.config, "update", told.__setitem__, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(hardware, "keep_freed_memory", lambda: told.update(kept=True))
    return told


@pytest.mark.parametrize(
    ("file", "wanted"),
    [(None, "cpu"), ("vfio/vfio", "cpu"), ("accel0", None), ("vfio/0", None), ("nvidia0", None), ("kfd", None)],
)
def test_a_machine_without_accelerators_is_prepared(told, tmp_path, file, wanted):
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    hardware.prepare_cpu(tmp_path)
    assert told == {"jax_platforms": wanted, "kept": wanted == "cpu"}


@pytest.mark.parametrize(("choice", "kept"), [("tpu,cpu", False), ("cpu", True)])
def test_the_users_choice_stands(told, tmp_path, choice, kept):
    told["jax_platforms"] = choice
    (tmp_path / "nvidia0").touch()
    hardware.prepare_cpu(tmp_path)
    assert told == {"jax_platforms": choice, "kept": kept}


def test_without_libtpu_jax_is_told_nothing(told, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    hardware.prepare_cpu(tmp_path)
    assert told == {"jax_platforms": None, "kept": True}


PROGRAM = """
import resource, sys, threading
import numpy as np
from diffusion_jax.parallel.hardware import keep_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)
    np.empty(2**31 + 2**26, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
found = []
worker = threading.Thread(target=lambda: found.extend(faults() for _ in range(3)))
worker.start()
worker.join()
print(min(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc's malloc")
def test_freed_memory_is_used_again():
    """The 16,384 pages of 64 MiB, or 32 huge ones, are cleared each time they are allocated, or once.

    Freeing more than 2 GiB, which nobody touched, gives nothing back either.
    """
    cleared, kept = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, check=True).stdout)
        for words in ([], ["keep"])
    )
    assert cleared >= 32 and kept < cleared / 4, (cleared, kept)
