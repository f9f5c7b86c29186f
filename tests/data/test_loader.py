import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import DataConfig, all_records, batches, open_source
from diffusion_jax.data.order import record_indices
from diffusion_jax.data.sources import BadImage, SkipBadImages
from diffusion_jax.errors import UserError
from diffusion_jax.records import Field, image_records


class Numbers:
    """Record i is an image full of i with label i; `bad` ones cannot be read; reading it first calls `wait(i)`."""

    num_classes, class_names, image_shape = 1, ("number",), (2, 2, 1)
    record_spec = {**image_records((2, 2, 1)), "caption": Field((3,), "int64")}  # noqa: RUF012

    def __init__(self, count, bad=(), wait=lambda index: None):
        self.count, self.bad, self.wait = count, bad, wait
        self.identity = f"numbers images={count}"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.wait(index)
        if index in self.bad:
            raise BadImage.of(f"image {index}", "it is bad")
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": np.int32(index), "caption": np.arange(3) + index}


def take(count, *args, **kwargs):
    with_close = batches(*args, **kwargs)
    result = list(itertools.islice(with_close, count))
    with_close.close()
    return result


def labels(parts):
    return [part["label"].tolist() for part in parts]


def test_a_batch_is_the_next_stretch_of_the_order():
    """Three batches of 4 over 5 records: the second and third run on into the next epochs."""
    got = take(3, Numbers(5), seed=7, batch_size=4)
    np.testing.assert_array_equal(np.concatenate(labels(got)), record_indices(7, np.arange(12), 5))
    assert sorted(np.concatenate(labels(got))[:5]) == list(range(5))
    first = got[0]
    assert (first["image"].shape, first["image"].dtype) == ((4, 2, 2, 1), np.uint8)
    assert (first["label"].shape, first["label"].dtype) == ((4,), np.int32)
    assert first["caption"].shape == (4, 3)
    np.testing.assert_array_equal(first["image"][:, 1, 1, 0], first["label"])
    assert first["bad_images"] == 0


def test_resumed_equals_unbroken():
    whole = take(6, Numbers(100), seed=1, batch_size=32)
    resumed = take(2, Numbers(100), seed=1, batch_size=32, start_step=4)
    assert labels(whole[4:]) == labels(resumed)


def test_processes_read_their_rows_of_the_same_batch():
    whole = take(3, Numbers(50), seed=2, batch_size=8)
    halves = [take(3, Numbers(50), seed=2, batch_size=8, rows=rows) for rows in ([0, 1, 2, 5], [3, 4, 6, 7])]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(batch["image"][[0, 1, 2, 5]], halves[0][step]["image"])
        np.testing.assert_array_equal(batch["image"][[3, 4, 6, 7]], halves[1][step]["image"])


@pytest.mark.parametrize("num_threads", [1, 3, 16])
def test_threads_and_their_timing_change_nothing(num_threads):
    slow = Numbers(100, wait=lambda index: time.sleep(0.004 * (index % 4 == 0)))
    got = take(5, slow, seed=3, batch_size=7, num_threads=num_threads, prefetch=3)
    np.testing.assert_array_equal(np.concatenate(labels(got)), record_indices(3, np.arange(35), 100))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 11])
def test_all_records_come_once_in_order(batch_size):
    got = list(all_records(Numbers(10), batch_size, num_threads=2))
    sizes = [len(part["label"]) for part in got]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1) and 0 < sizes[-1] <= batch_size
    np.testing.assert_array_equal(np.concatenate(labels(got)), np.arange(10))


def test_records_are_read_in_parallel():
    """No record comes before four are being read."""
    four = threading.Barrier(4)
    source = Numbers(64, wait=lambda index: four.wait(timeout=20))
    assert len(take(3, source, seed=0, batch_size=4, num_threads=4)) == 3
    four.abort()  # releases whoever reads ahead


def test_bad_image_arrives_from_its_thread():
    iterator = batches(Numbers(8, bad=[5]), seed=0, batch_size=8)
    with pytest.raises(BadImage) as caught:
        next(iterator)
    assert not reading_threads()  # although the traceback still holds the iterator
    assert str(caught.value).startswith("image 5: cannot be read")


@pytest.mark.parametrize("num_threads", [1, 4])
def test_reading_is_timed_by_the_processor_not_by_the_clock(num_threads):
    def work(index):
        time.sleep(0.02)
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass

    (batch,) = take(1, Numbers(8, wait=work), seed=0, batch_size=8, num_threads=num_threads)
    assert 8 * 0.005 <= batch["read_seconds"] < 8 * 0.02


def test_skipped_images_are_counted():
    source = SkipBadImages(Numbers(8, bad=[5, 6]))
    (batch,) = take(1, source, seed=0, batch_size=8)
    assert batch["bad_images"] == 3  # 5 passes over two, 6 over one
    assert sorted(batch["label"]) == [0, 1, 2, 3, 4, 7, 7, 7]


@pytest.mark.parametrize("rows", [[], [1, 1], [2, 1], [-1, 0], [3, 4]])
def test_rows_must_be_ascending_rows_of_the_batch(rows):
    with pytest.raises(UserError, match="must be ascending and within 0 … 3"):
        batches(Numbers(8), seed=0, batch_size=4, rows=rows)


def reading_threads():
    """Prefetching threads still alive after two seconds' grace."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        alive = [thread for thread in threading.enumerate() if thread.name.startswith("grain")]
        if not alive:
            break
        time.sleep(0.01)
    return alive


@pytest.mark.parametrize("end", ["close", "drop"])
def test_threads_end_with_the_iterator(end):
    iterator = batches(Numbers(8), seed=0, batch_size=4)
    next(iterator)
    assert any(thread.name.startswith("grain") for thread in threading.enumerate())
    if end == "close":
        iterator.close()
    else:
        del iterator
        gc.collect()
    assert not reading_threads()


def test_closing_gives_up_what_is_not_yet_read():
    read = []

    def wait(index):
        read.append(index)
        time.sleep(0.005)

    iterator = batches(Numbers(200, wait=wait), seed=0, batch_size=1, num_threads=1, prefetch=100)
    next(iterator)
    iterator.close()
    assert not reading_threads()
    assert len(read) < 50


@pytest.fixture
def photos(tmp_path):
    for number in range(10):
        Image.new("RGB", (4, 4), (number,) * 3).save(tmp_path / f"{number}.png")
    return tmp_path


def test_workers_change_nothing_ignore_signals_and_end(photos):
    source = open_source(DataConfig(name=f"folder:{photos}", image_size=4))
    alone = take(5, source, seed=4, batch_size=6)
    together = batches(source, seed=4, batch_size=6, num_threads=1, num_workers=2)
    for expected, got in zip(alone, together, strict=False):
        np.testing.assert_array_equal(got["image"], expected["image"])
        np.testing.assert_array_equal(got["label"], expected["label"])
        assert type(got["bad_images"]) is int
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
    assert len(multiprocessing.active_children()) == 2
    together.close()
    assert not multiprocessing.active_children()


def test_workers_die_with_their_parent(photos):
    code = (
        "import os, signal\n"
        "from diffusion_jax.data import DataConfig, batches, open_source\n"
        "if __name__ == '__main__':\n"
        f"    source = open_source(DataConfig(name='folder:{photos}', image_size=4))\n"
        "    iterator = batches(source, seed=0, batch_size=2, num_workers=1)\n"
        "    next(iterator)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The worker holds the other end of the pipe, so reading it to the end waits for the worker's death.
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert result.returncode == -signal.SIGKILL


def test_bad_image_arrives_from_its_worker(photos):
    (photos / "3.png").write_bytes(b"damaged")
    source = open_source(DataConfig(name=f"folder:{photos}", image_size=4))
    with pytest.raises(BadImage, match=r"/3\.png: cannot be read \(not a JPEG"):
        list(all_records(source, 5, num_workers=1))
    assert not multiprocessing.active_children()
