"""The cache folder, and files that are whole or absent."""

import os
import pathlib

import pytest

from diffusion_jax.files import cache_folder, write_atomically


def test_the_cache_folder_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "diffusion_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "diffusion_jax"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"

    def interrupted(source, target):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(OSError, match="disk on fire"):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]
