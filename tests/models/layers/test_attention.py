"""The kernels of attention: which is chosen for what, and that the Pallas kernel, interpreted, agrees with XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers import attention_kernels
from diffusion_jax.models.layers.attention import attention
from diffusion_jax.models.layers.attention_kernels import attention_kernel, choose, platform_kernel, scaled
from diffusion_jax.models.macs import count_macs
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.parallel.platform import platform

# Compiling is nearly all that these tests do.
QUICK = {"xla_backend_optimization_level": 0}


def operands(batch, queries, keys, heads, d, dtype="float32"):
    shapes = [(batch, queries, heads, d), (batch, keys, heads, d), (batch, keys, heads, d), (batch, queries, heads, d)]
    draw = np.random.default_rng(0).standard_normal
    return [jnp.asarray(draw(shape), dtype) for shape in shapes]


def seen(batch, keys):
    """A mask that leaves other keys out in every row, and in the last row all."""
    mask = np.random.default_rng(1).random((batch, keys)) < 0.6
    mask[:, keys // 2], mask[-1] = True, False
    assert len(np.unique(mask, axis=0)) == batch
    return jnp.asarray(mask)


def value_and_gradients(kernel, q, k, v, weights, mask):
    def total(q, k, v):
        out = attention(q, k, v, mask)
        return (out * weights).sum(), out

    with attention_kernel(kernel):
        differentiated = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True), compiler_options=QUICK)
        gradients, out = differentiated(q, k, v)
    return jax.device_get((out, *gradients))


@pytest.mark.parametrize(("queries", "keys", "d", "masked"), [(200, 200, 72, True), (130, 385, 64, False)])
def test_pallas_agrees_with_xla_where_blocks_do_not_divide(queries, keys, d, masked):
    arguments = (*operands(2, queries, keys, 2, d), seen(2, keys) if masked else None)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        with attention_kernel("pallas"):
            assert choose(*arguments[:2], arguments[-1], None) == "pallas"
        ours, want = (value_and_gradients(kernel, *arguments) for kernel in ("pallas", "xla"))
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6 * np.abs(b).max())


def test_pallas_runs_on_every_device_of_a_mesh_on_its_images_and_heads():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    *arrays, mask = *operands(4, 128, 128, 2, 8), seen(4, 128)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    spread = [jax.device_put(array, rows) for array in arrays]
    with jax.set_mesh(mesh):
        ours = value_and_gradients("pallas", *spread, mask)
        with attention_kernel("pallas"):
            program = str(jax.make_jaxpr(attention)(*spread[:3], mask))
    assert "shard_map" in program and "f32[1,1,128,8]" in program  # one image and one head a device
    for a, b in zip(ours, value_and_gradients("xla", *arrays, mask), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6 * np.abs(b).max())


def chosen(monkeypatch, platform, shape, dtype="bfloat16", *, keys=None, mask=False, bias=False, mesh=None):
    monkeypatch.setattr(attention_kernels, "platform", lambda: platform)
    monkeypatch.setattr(attention_kernels, "_cudnn_runs", lambda: True)
    q = jax.ShapeDtypeStruct(shape, dtype)
    k = jax.ShapeDtypeStruct((shape[0], keys or shape[1], *shape[2:]), dtype)
    with jax.set_mesh(mesh or make_mesh(MeshConfig(), jax.devices()[:1])):
        return choose(q, k, jnp.ones((shape[0], k.shape[1]), bool) if mask else None, jnp.ones(1) if bias else None)


@pytest.mark.parametrize(
    ("platform", "shape", "options", "kernel"),
    [
        ("cpu", (8, 256, 16, 72), {}, "xla"),
        ("tpu", (8, 256, 16, 72), {}, "pallas"),
        ("tpu", (8, 256, 16, 72), {"dtype": "float32", "mask": True}, "pallas"),
        ("tpu", (8, 256, 16, 72), {"bias": True}, "xla"),
        ("tpu", (8, 256, 16, 72), {"keys": 2}, "xla"),
        ("tpu", (8, 1024, 1, 512), {}, "xla"),
        ("gpu", (8, 256, 16, 72), {}, "cudnn"),
        ("gpu", (8, 257, 16, 72), {}, "cudnn"),
        ("gpu", (8, 256, 16, 72), {"mask": True}, "cudnn"),
        ("gpu", (8, 257, 16, 72), {"mask": True}, "xla"),
        ("gpu", (8, 256, 16, 72), {"dtype": "float32"}, "xla"),
        ("gpu", (8, 256, 16, 72), {"bias": True}, "xla"),
        ("gpu", (8, 256, 16, 36), {}, "xla"),
        ("gpu", (8, 256, 16, 136), {}, "xla"),
        ("gpu", (8, 16, 16, 72), {}, "xla"),
    ],
)
def test_the_kernel_is_the_platforms_where_it_takes_the_operands(monkeypatch, platform, shape, options, kernel):
    assert chosen(monkeypatch, platform, shape, **options) == kernel
    with attention_kernel("xla"):
        assert chosen(monkeypatch, platform, shape, **options) == "xla"


def test_pallas_needs_a_batch_and_heads_that_divide_over_the_mesh(monkeypatch):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert chosen(monkeypatch, "tpu", (4, 256, 2, 64), mesh=mesh) == "pallas"
    assert chosen(monkeypatch, "tpu", (2, 256, 2, 64), mesh=mesh) == "xla"
    assert chosen(monkeypatch, "tpu", (4, 256, 3, 64), mesh=mesh) == "xla"
    q = jax.ShapeDtypeStruct((8, 256, 8, 64), "bfloat16")
    assert choose(q, q, None, None) == "xla"  # eight devices, and no mesh that says how the batch lies on them


def test_the_devices_of_the_mesh_decide_and_not_those_at_hand():
    device = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]).abstract_mesh.update(abstract_device=device)
    assert platform() == "cpu"
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"


def test_choices_of_the_user():
    assert platform_kernel("auto", "cpu") == "xla" and platform_kernel("auto", "tpu") == "pallas"
    assert platform_kernel("xla", "tpu") == "xla" and platform_kernel("pallas", "cpu") == "pallas"
    with pytest.raises(UserError, match=r"mesh\.attention='cudnn' needs an NVIDIA GPU .* use mesh\.attention='auto'"):
        platform_kernel("cudnn", "cpu")


def test_multiply_adds_are_counted_whatever_the_kernel():
    q = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.float32)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])), attention_kernel("pallas"):
        assert count_macs(attention, q, q, q) == 2 * 2 * 128 * 128 * 64


def test_bfloat16_queries_are_scaled_without_rounding_the_factor():
    q = jnp.asarray(np.random.default_rng(0).standard_normal(4096), jnp.bfloat16)
    ratio = np.asarray(scaled(q, 72), np.float64) * 72**0.5 / np.asarray(q, np.float64)
    assert abs(ratio.mean() - 1) < 2e-4 and np.abs(ratio - 1).max() <= 2**-8
