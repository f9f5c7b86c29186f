"""The page on backbones of one's own: its class is saved, trained and sampled from as the page says."""

import os
import pathlib
import re
import shlex

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new_backbone.md").read_text()


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The page's commands, with `mixer.py` saved where PYTHONPATH points and runs kept apart."""
    (tmp_path / "mixer.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    script = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].replace("\\\n", " ").replace("runs/", f"{tmp_path}/")
    words = [shlex.split(line) for line in script.splitlines()]
    assert all(line[:2] == ["PYTHONPATH=.", "diffusion-jax"] for line in words)
    return [line[2:] for line in words]


def test_the_page_runs(command_line, commands, tmp_path):
    train, sample = commands
    _, log = command_line.run(*train)
    assert "starting at step 0 of 10" in log and (tmp_path / "mixer" / "checkpoints" / "10").is_dir()

    command_line.run(*sample)
    with np.load(tmp_path / "mixer" / "samples" / "samples.npz") as archive:
        assert archive["arr_0"].shape == (20, 8, 8, 3) and np.ptp(archive["arr_0"]) > 0


def test_the_example_is_short():
    assert len(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()) < 60
