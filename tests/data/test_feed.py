"""The feed: order, what is counted as waiting, and the warning."""

import contextlib
import threading
import time

import numpy as np
import pytest

from diffusion_jax.data.feed import JUDGED_SECONDS, PLACED_AHEAD, WAITING_SHARE, Feed, slow_input
from diffusion_jax.errors import UserError


class Reader:
    """Batches 0, 1, …; number i comes once `wait(i)` has returned."""

    def __init__(self, wait=lambda number: None, fail_at=None):
        self.wait, self.fail_at, self.number, self.closed = wait, fail_at, -1, False

    def __next__(self):
        self.number += 1
        self.wait(self.number)
        if self.number == self.fail_at:
            raise UserError("image 3: cannot be read")
        return {"image": np.full((4, 1), self.number), "label": np.zeros(4), "bad_images": 2, "read_seconds": 0.5}

    def close(self):
        self.closed = True


@pytest.fixture
def feed_of():
    """Makes feeds, and closes them although a test fails: their threads would be those of the next test."""
    with contextlib.ExitStack() as stack:

        def make(reader, place=lambda batch: batch["image"][0, 0]):
            feed = Feed(reader, place, num_threads=8, num_workers=0)
            stack.callback(feed.close)
            return feed

        yield make


def nothing():
    pass


def test_batches_keep_their_order_and_lose_their_counts(feed_of):
    placed = []
    feed = feed_of(Reader(), place=lambda batch: placed.append(batch.keys()) or batch["image"][0, 0])
    assert [feed.take(nothing) for _ in range(5)] == list(range(5))
    assert all(keys == {"image", "label"} for keys in placed)
    assert feed.summary(5, 1.0)["bad_images"] == 10


def test_the_next_batches_are_placed_before_they_are_asked_for(feed_of):
    placed = threading.Semaphore(0)
    feed_of(Reader(), place=lambda batch: placed.release())
    assert all(placed.acquire(timeout=20) for _ in range(PLACED_AHEAD))


def test_waiting_counts_from_the_moment_the_devices_are_idle(feed_of):
    """Batch 2 is late by 0.3 s, for the first 0.2 s of which the devices still compute."""
    late = threading.Event()
    feed = feed_of(Reader(wait=lambda number: number == 2 and late.wait(timeout=20)))
    for _ in range(2):
        feed.take(nothing)
    feed.restart()  # these two may have come a little late
    idle_since = []

    def finish():
        time.sleep(0.2)
        idle_since.append(time.perf_counter())

    timer = threading.Timer(0.3, late.set)
    timer.start()
    feed.take(finish)
    idle = time.perf_counter() - idle_since[0]
    waited = feed.summary(steps=1, seconds=1.0)["input_seconds_per_step"]
    assert 0 < waited <= idle
    assert feed.summary(steps=1, seconds=1.0)["input_seconds_per_step"] == 0


def test_devices_are_not_disturbed_when_the_batch_is_there(feed_of):
    ready = threading.Event()
    feed = feed_of(Reader(wait=lambda number: number == 1 and ready.set()))
    assert ready.wait(timeout=20)  # so batch 0 is placed
    feed.take(lambda: pytest.fail("the devices were waited for"))
    assert feed.summary(1, 1.0)["input_seconds_per_step"] == 0


def test_images_per_second_per_core(feed_of):
    feed = feed_of(Reader())
    for _ in range(3):
        feed.take(nothing)
    assert feed.summary(3, 1.0)["input_images_per_second_per_core"] == 4 / 0.5


def test_a_restart_forgets_the_first_wait(feed_of):
    feed = feed_of(Reader(wait=lambda number: time.sleep(0.05)))
    feed.take(nothing)
    feed.restart()
    assert feed.summary(1, 1.0)["input_seconds_per_step"] == 0


def test_an_unreadable_image_arrives_in_its_turn_and_closing_ends_the_thread(feed_of):
    reader = Reader(fail_at=3)
    feed = feed_of(reader)
    assert [feed.take(nothing) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="image 3"):
        feed.take(nothing)
    feed.close()
    assert reader.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.parametrize(
    ("share", "seconds", "warned"),
    [(WAITING_SHARE * 1.2, JUDGED_SECONDS, True), (WAITING_SHARE * 0.8, JUDGED_SECONDS, False), (0.9, 1.0, False)],
)
def test_the_warning_comes_once_and_only_after_a_while_of_waiting(feed_of, capsys, monkeypatch, share, seconds, warned):
    feed = feed_of(Reader())
    for _ in range(3):
        feed.take(nothing)
        monkeypatch.setattr(feed, "_waited", share * seconds)
        feed.summary(1, seconds)
    error = capsys.readouterr().err
    assert error.count("input: steps wait") == warned and error.count("\n") == warned


def test_short_intervals_are_judged_together(feed_of, capsys, monkeypatch):
    feed = feed_of(Reader())
    for _ in range(12):
        feed.take(nothing)
        monkeypatch.setattr(feed, "_waited", 0.5)
        feed.summary(1, 1.0)
    assert "wait 50% of their time" in capsys.readouterr().err


def test_good_times_do_not_hide_later_bad_ones(feed_of, capsys, monkeypatch):
    feed = feed_of(Reader())
    for waited in [0.0] * 20 + [1.0] * 2:
        feed.take(nothing)
        monkeypatch.setattr(feed, "_waited", waited)
        feed.summary(1, JUDGED_SECONDS)
    assert "wait 10% of their time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("threads", "workers", "cores", "remedy"),
    [
        (1, 0, 16, "set data.num_threads=8 (now 1)"),
        (8, 0, 16, "set data.num_workers=8 (now 0)"),
        (8, 4, 16, "set data.num_workers=8 (now 4)"),
        (8, 12, 16, "set data.num_workers=13 (now 12)"),
        (8, 0, 4, "encode the images once (diffusion-jax encode)"),
    ],
)
def test_the_remedy_follows_from_the_numbers(threads, workers, cores, remedy):
    """4,000 images in 10 s of which 5 s were waits: steps could take 800 a second; 100 a core makes 8 cores."""
    text = slow_input(waited=5.0, seconds=10.0, images=4000, read=40.0, threads=threads, workers=workers, cores=cores)
    assert "wait 50% of their time" in text and "could take 800 images/s and get 400" in text
    assert f"a core reads 100, so about 8 of this host's {cores} cores are needed" in text
    assert remedy in text and "\n" not in text
