"""Importance sampling of timesteps.

Run as a program, `test_importance_sampling.py HOST:PORT NUMBER`, this file is one of two processes.
"""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.importance_sampling import LossSecondMoment
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.errors import UserError

PATH = DiscretePath(num_timesteps=8, schedule="cosine")
TIME = np.arange(1, 9, dtype=np.float32) / 8  # of NumPy: a process joins the others before it uses JAX


def warm(law, loss, rounds=10):
    state = law.init(PATH)
    update = jax.jit(law.update)
    for _ in range(rounds):
        state = update(state, TIME, loss)
    return state


def test_uniform_until_every_history_is_full():
    law = LossSecondMoment(history=3)
    loss = jnp.arange(1.0, 9.0)
    for rounds in (0, 2):
        np.testing.assert_allclose(law.probabilities(warm(law, loss, rounds)), 1 / 8)
    assert np.ptp(np.asarray(law.probabilities(warm(law, loss, 3)))) > 0.01


def test_probabilities_follow_the_second_moment():
    law = LossSecondMoment()
    loss = jnp.array([4.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    p = np.asarray(law.probabilities(warm(law, loss)))
    np.testing.assert_allclose(p, 0.999 * np.asarray(loss) / 10 + 0.001 / 8, rtol=1e-5)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)


def test_weights_average_to_one_and_keep_the_loss_unbiased():
    law, loss = LossSecondMoment(), jnp.array([4.0, 1.0, 2.0, 1.0, 0.5, 1.0, 3.0, 1.0])
    state = warm(law, loss)
    p = np.asarray(law.probabilities(state), np.float64)
    np.testing.assert_allclose(np.sum(p * (1 / (8 * p))), 1)  # E[weight] under p
    time, weight = jax.jit(law.draw)(state, jax.random.key(0), jnp.arange(4000))
    n = np.round(np.asarray(time) * 8).astype(int) - 1
    np.testing.assert_allclose(weight, 1 / (8 * p[n]), rtol=1e-5)
    assert np.all(np.abs(np.bincount(n, minlength=8) - 4000 * p) < 5 * np.sqrt(4000 * p))
    np.testing.assert_allclose(np.mean(np.asarray(weight) * np.asarray(loss)[n]), float(loss.mean()), rtol=0.05)


def test_history_is_a_ring_and_takes_repeated_timesteps_in_order():
    law = LossSecondMoment(history=2)
    state = law.update(law.init(PATH), jnp.array([3, 3, 5, 3]) / 8, jnp.array([1.0, 2.0, 7.0, 3.0]))
    assert state.counts.tolist() == [0, 0, 3, 0, 1, 0, 0, 0]
    assert state.losses[2].tolist() == [3.0, 2.0] and state.losses[4].tolist() == [7.0, 0.0]


def test_sharded_losses_give_the_same_history():
    """Under jit on a mesh the update sees the losses of all devices."""
    law, loss = LossSecondMoment(history=2), jnp.arange(1.0, 9.0)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    update = jax.jit(law.update)
    single = update(law.init(PATH), TIME, loss)
    sharded = update(law.init(PATH), jax.device_put(TIME, rows), jax.device_put(loss, rows))
    for a, b in zip(single, sharded, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_two_processes_remember_the_losses_of_both():
    """Each process has the losses of its own devices; both end with the history that one process has."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, address, str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    want = two_rounds(np.arange(len(TIME)), jax.devices()[:1])
    try:
        for process in started:
            out, error = process.communicate()
            assert process.returncode == 0, error
            assert json.loads(out.splitlines()[-1]) == want
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert want[1] == [2] * len(TIME)


def two_rounds(rows, devices):
    """Losses and counts of the history after two batches of which this process has `rows`, and what is then drawn."""
    law = LossSecondMoment(history=2)
    split, whole = (
        jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), ("data",)), jax.sharding.PartitionSpec(*axes))
        for axes in (("data",), ())
    )
    update = jax.jit(law.update, out_shardings=whole)
    state = jax.device_put(law.init(PATH), whole)
    for factor in (1, 3):
        values = (TIME[rows], factor * np.arange(1.0, 9.0, dtype=np.float32)[rows])
        state = update(state, *(jax.make_array_from_process_local_data(split, value) for value in values))
    time, weight = jax.jit(law.draw, out_shardings=whole)(state, jax.random.key(0), jnp.arange(8))
    return [leaf.tolist() for leaf in (*state, time, weight)]


def main() -> None:
    """Prints the history that this process has, beside the other process."""
    number = int(sys.argv[2])
    jax.distributed.initialize(sys.argv[1], 2, number)
    print(json.dumps(two_rounds(np.arange(4 * number, 4 * number + 4), jax.devices())))


def test_draws_depend_on_the_sample_alone():
    law = LossSecondMoment()
    state = law.init(PATH)
    whole, _ = law.draw(state, jax.random.key(0), jnp.arange(8))
    part, _ = law.draw(state, jax.random.key(0), jnp.array([6, 1]))
    np.testing.assert_array_equal(np.asarray(whole)[[6, 1]], np.asarray(part))


def test_bad_options():
    with pytest.raises(UserError, match="need history ≥ 1"):
        LossSecondMoment(history=0)


if __name__ == "__main__":
    main()
