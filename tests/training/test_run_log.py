"""The log of a run: lines on a disk and in a bucket, and what is left of it after a kill."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax import files
from diffusion_jax.files import user_path
from diffusion_jax.training import run_log
from diffusion_jax.training.run_log import LOG, MetricWriter, write_parameter_table


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path):
    if request.param == "disk":
        return user_path(tmp_path)
    return user_path(request.getfixturevalue("bucket")) / tmp_path.name


def steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / LOG).read_text().splitlines()]


def test_what_was_flushed_outlives_a_kill_and_a_resumed_run_goes_on_behind_it(workdir):
    writer = MetricWriter(workdir, 0)
    assert writer.last is None
    for step in range(1, 5):
        writer.write(step, {"loss": step / 10})
    writer.flush()
    assert steps(workdir) == [1, 2, 3, 4]
    resumed = MetricWriter(workdir, 3)
    assert resumed.last["step"] == 3 and resumed.last["loss"] == 0.3 and steps(workdir) == [1, 2, 3]
    resumed.write(4, {"loss": 0.4})
    resumed.close()
    assert steps(workdir) == [1, 2, 3, 4]
    writer.close()


def test_a_line_that_a_kill_cut_off_is_dropped(workdir):
    files.write_atomically(workdir / LOG, b'{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    writer = MetricWriter(workdir, 9)
    writer.close()
    assert steps(workdir) == [1] and writer.last["step"] == 1


def test_a_bucket_gets_the_log_at_intervals_not_at_each_line(bucket, tmp_path, monkeypatch):
    """The first line at once, those that follow quickly together with a later one."""
    written, clock = [], [0.0]
    monkeypatch.setattr(run_log, "write_atomically", lambda path, data: written.append(data.count(b"\n")))
    monkeypatch.setattr(run_log.time, "monotonic", lambda: clock[0])
    writer = MetricWriter(user_path(bucket) / tmp_path.name, 0)
    for second in (0, 1, 2, run_log.SECONDS_BETWEEN_UPLOADS + 1, run_log.SECONDS_BETWEEN_UPLOADS + 2):
        clock[0] = second
        writer.write(int(second), {})
        if writer.writer.upload is not None:
            writer.writer.upload.result()
    assert written == [1, 4]
    writer.flush()
    writer.close()
    assert written == [1, 4, 5]


def test_an_upload_that_fails_is_made_up_for(bucket, tmp_path, monkeypatch, caplog):
    workdir = user_path(bucket) / tmp_path.name
    writer = MetricWriter(workdir, 0)
    with monkeypatch.context() as broken:

        def fail(path, data):
            raise OSError(5, "connection lost")

        broken.setattr(run_log, "write_atomically", fail)
        writer.write(1, {"loss": 1.0})
        writer.flush()
    assert "metrics.jsonl: cannot be written (connection lost)" in caplog.text and not (workdir / LOG).exists()
    writer.write(2, {"loss": 2.0})
    writer.close()
    assert steps(workdir) == [1, 2]


def test_the_parameters_of_a_run_are_listed(tmp_path):
    shape = jax.ShapeDtypeStruct((2, 3, 4), np.float32)
    write_parameter_table(user_path(tmp_path), {"blocks": {"kernel": shape}, "bias": np.zeros(5, np.float32)})
    text = (tmp_path / "parameters.txt").read_text()
    assert "| blocks/kernel | (2, 3, 4) | float32 | 24" in text and "Total: 29" in text
