"""What is concluded from device files."""

import importlib.util

import jax
import pytest

from diffusion_jax.parallel.hardware import ignore_absent_tpu


@pytest.fixture
def platforms(monkeypatch):
    """The platforms that JAX was told to use, none at first; nothing reaches JAX itself."""
    told = {"jax_platforms": None}
    monkeypatch.setattr(type(jax.config), "values", told, raising=False)
    monkeypatch.setattr(jax.config, "update", told.__setitem__, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return told


@pytest.mark.parametrize(
    ("file", "wanted"),
    [(None, "cpu"), ("vfio/vfio", "cpu"), ("accel0", None), ("vfio/0", None), ("nvidia0", None), ("kfd", None)],
)
def test_only_a_machine_without_accelerators_is_told_so(platforms, tmp_path, file, wanted):
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    ignore_absent_tpu(tmp_path)
    assert platforms["jax_platforms"] == wanted


def test_the_users_choice_stands(platforms, tmp_path):
    platforms["jax_platforms"] = "tpu,cpu"
    ignore_absent_tpu(tmp_path)
    assert platforms["jax_platforms"] == "tpu,cpu"


def test_without_libtpu_nothing_is_changed(platforms, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ignore_absent_tpu(tmp_path)
    assert platforms["jax_platforms"] is None
