"""A stack of blocks: the blocks in order, with the same gradients in a loop and without, and where there is a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from diffusion_jax.models.layers.scan_blocks import scan_blocks

WIDTH = 4


def loss(weights, x, policy):
    def body(x, weight):
        x = jnp.tanh(x @ weight)  # [B, D]
        return x, x.mean()

    out, means = scan_blocks(body, x, weights, policy)
    return (out**2).sum() + (means * jnp.arange(1.0, len(means) + 1)).sum()


def arguments(depth=3):
    return jax.random.normal(jax.random.key(0), (depth, WIDTH, WIDTH)), jax.random.normal(jax.random.key(1), (2, WIDTH))


def written_out(weights, x):
    total = 0.0
    for number, weight in enumerate(weights, 1):
        x = jnp.tanh(x @ weight)  # [B, D]
        total += number * x.mean()
    return total + (x**2).sum()


@pytest.mark.parametrize("policy", ["none", "dots", "full"])
@pytest.mark.parametrize("looped", [False, True])
def test_blocks_run_in_order_and_gradients_are_those_of_the_blocks_written_out(policy, looped, monkeypatch):
    monkeypatch.setattr("diffusion_jax.models.layers.scan_blocks.on_one_cpu", lambda: not looped)
    found = jax.value_and_grad(loss, argnums=(0, 1))(*arguments(), policy)
    expected = jax.value_and_grad(written_out, argnums=(0, 1))(*arguments())
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "devices", "policy", "depth", "at_once"),
    [
        ("cpu", 1, "none", 12, 12),
        ("cpu", 1, "none", 13, 1),
        ("cpu", 1, "dots", 3, 1),
        ("cpu", 1, "full", 3, 1),
        ("cpu", 2, "none", 3, 1),
        ("tpu", 1, "none", 3, 1),
    ],
)
def test_the_blocks_are_a_loop_except_few_on_one_cpu_that_keeps_everything(platform, devices, policy, depth, at_once):
    device = AbstractDevice(device_kind="", num_cores=1, platform=platform)
    shapes = jax.eval_shape(lambda: arguments(depth))
    with jax.sharding.use_abstract_mesh(AbstractMesh((devices,), ("data",), abstract_device=device)):
        traced = jax.make_jaxpr(lambda weights, x: loss(weights, x, policy))(*shapes)
    (scan,) = (equation for equation in traced.eqns if equation.primitive.name == "scan")
    assert scan.params["unroll"] == at_once
    assert ("remat" in str(scan.params["jaxpr"])) == (policy != "none")
