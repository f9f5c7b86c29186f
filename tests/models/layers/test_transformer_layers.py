"""The options of the shared transformer layers: rotary positions, RMSNorm, QK-norm, SwiGLU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh

from diffusion_jax.models.layers.embeddings import sincos_2d
from diffusion_jax.models.layers.norms import LayerNorm, RMSNorm
from diffusion_jax.models.layers.rotary import rotary_2d, rotate
from diffusion_jax.models.layers.swiglu import SwiGLU
from diffusion_jax.models.layers.transformer import Linear, SelfAttention
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh


def test_rotary_angles_have_the_specified_layout():
    angles = rotary_2d(3, 5, 8)
    assert angles.shape == (15, 4)
    np.testing.assert_allclose(angles[5 * 2 + 3], [2, 0.02, 3, 0.03], rtol=1e-6)  # row 2, column 3


def test_rotation_turns_neighbouring_pairs():
    x = jnp.asarray([[[[1.0, 0.0, 0.0, 2.0]]]])
    turned = rotate(x, np.float32([[np.pi / 2, np.pi / 6]]))[0, 0, 0]
    np.testing.assert_allclose(turned, [0, 1, -1, np.sqrt(3)], atol=1e-6)


def test_rotated_products_depend_on_the_displacement_only():
    q, k = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    height, width = 4, 6
    angles = rotary_2d(height, width, 8)
    everywhere = [rotate(jnp.broadcast_to(v, (1, height * width, 1, 8)), angles)[0, :, 0] for v in (q, k)]
    products = np.asarray(everywhere[0] @ everywhere[1].T).reshape(height, width, height, width)
    assert products[0, 0, 2, 1] == pytest.approx(products[1, 4, 3, 5], abs=1e-5)
    assert abs(products[0, 0, 2, 1] - products[0, 0, 1, 2]) > 1e-3
    assert abs(products[0, 0, 2, 1] - products[2, 1, 0, 0]) > 1e-3


@pytest.mark.parametrize("table", [sincos_2d, rotary_2d])
def test_a_finer_grid_covers_the_positions_of_its_base(table):
    base, fine = table(4, 3, 16).reshape(4, 3, -1), table(8, 9, 16, base=(4, 3)).reshape(8, 9, -1)
    np.testing.assert_allclose(fine[::2, ::3], base, atol=1e-6)
    assert np.array_equal(table(4, 3, 16, base=(4, 3)).reshape(4, 3, -1), base)


def test_rms_norm_and_plain_layer_norm():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]], jnp.bfloat16)
    norm = RMSNorm(2, eps=0.5)
    norm.scale[...] = jnp.asarray([1.0, 2.0])
    np.testing.assert_allclose(norm(x), [[3 / np.sqrt(13), 8 / np.sqrt(13)], [0, 0]], rtol=1e-6)
    assert norm(x).dtype == jnp.float32
    plain = LayerNorm(2, eps=0.75, affine=False)
    assert not jax.tree.leaves(plain)
    np.testing.assert_allclose(plain(x), [[-0.5, 0.5], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_qk_norm_takes_the_scale_of_queries_and_keys_away(kind):
    layer = SelfAttention(16, 2, qkv_bias=False, qk_norm=kind, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert layer.q_norm.scale.shape == (8,)
    x = jax.random.normal(jax.random.key(0), (1, 5, 16))
    want = layer(x)
    layer.qkv.kernel[...] = layer.qkv.kernel[...].at[:, :2].multiply(100.0)
    np.testing.assert_allclose(layer(x), want, atol=1e-4)
    layer.q_norm.scale[...] = 3 * layer.q_norm.scale[...]
    assert np.abs(layer(x) - want).max() > 1e-3


def test_swiglu_gates_the_second_half_by_the_first():
    layer = SwiGLU(6, 10, dtype=jnp.float32, rngs=nnx.Rngs(0))
    w12 = np.asarray(layer.w12.kernel).reshape(6, 20)
    limit = np.sqrt(6 / (6 + 20))  # of the fused matrix
    assert 0.9 * limit < np.abs(w12).max() <= limit
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    a, b = np.split(x @ w12, 2, axis=-1)
    np.testing.assert_allclose(layer(x), (a / (1 + np.exp(-a)) * b) @ np.asarray(layer.w3.kernel), atol=1e-5)


@pytest.fixture
def fused():
    """A bfloat16 layer of three features' axes, and rows [B, N, in] for it."""
    layer = Linear(4, (3, 2, 5), bias_init=nnx.initializers.normal(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    return layer, jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 4)), jnp.bfloat16)


@pytest.mark.parametrize(("platform", "devices", "axes"), [("cpu", 1, 2), ("cpu", 2, 4), ("tpu", 1, 4)])
def test_several_features_are_the_columns_of_one_matrix_on_one_cpu(fused, platform, devices, axes):
    device = AbstractDevice(device_kind="", num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((devices,), ("tensor",), abstract_device=device)):
        found = jax.make_jaxpr(lambda layer, x: layer(x))(*fused)
    (product,) = [equation for equation in found.eqns if equation.primitive.name == "dot_general"]
    assert product.invars[1].aval.ndim == axes


@pytest.mark.parametrize("devices", [1, 2])
def test_the_matrix_of_several_features_gives_what_the_features_give(fused, devices):
    layer, x = fused
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:devices])):
        out = jax.jit(lambda layer, x: layer(x))(layer, x)  # [B, N, 3, heads, d]
    wanted = jnp.einsum("bni,ithd->bnthd", x, layer.kernel[...].astype(x.dtype)) + layer.bias[...].astype(x.dtype)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(out), np.float32(wanted))
