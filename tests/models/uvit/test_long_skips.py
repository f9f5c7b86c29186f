"""The long skips: which output joins which block, and how the parameters split over a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.interop.mapping import parameter_paths
from diffusion_jax.models.backbones import abstract_backbone
from diffusion_jax.models.conditioning.parts import ConditioningSpec
from diffusion_jax.models.layers.precision import Precision
from diffusion_jax.models.uvit.long_skips import LongSkips
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.parallel.partition import make_shardings

WIDTH = 4


class Add(nnx.Module):
    """A block that adds a number of its own, and one it is told."""

    def __init__(self, rngs: nnx.Rngs):
        self.number = nnx.Param(jax.random.normal(rngs.params(), ()))

    def __call__(self, x, told):
        return x + self.number[...] + told


@pytest.fixture(scope="module")
def trunk():
    return LongSkips(Add, 7, WIDTH, precision=Precision(), remat_policy="none", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("joined", range(3))
def test_the_last_output_on_the_way_down_joins_the_first_block_up(trunk, joined):
    """All blocks up pass x on but one, which takes its skip instead."""
    halves = np.zeros((3, 2 * WIDTH, WIDTH), np.float32)
    for i in range(3):
        halves[i, WIDTH * (i == joined) :][:WIDTH] = np.eye(WIDTH)
    trunk = jax.tree.map(lambda leaf: leaf, trunk)
    trunk.up.skip.kernel[...] = jnp.asarray(halves)
    x = jax.random.normal(jax.random.key(1), (2, 5, WIDTH))
    told = jnp.float32(10)
    numbers = [*trunk.down.number[...][: 3 - joined], *trunk.up.block.number[...][joined:]]
    np.testing.assert_allclose(jax.jit(trunk.__call__)(x, told), x + sum(n + told for n in numbers), rtol=1e-6)


def test_blocks_start_unlike_each_other(trunk):
    numbers = np.concatenate([trunk.down.number, trunk.middle.number[None], trunk.up.block.number])
    assert np.unique(numbers).size == 7
    assert np.std(trunk.up.skip.kernel) == pytest.approx(0.02, rel=0.2) and not np.any(trunk.up.skip.bias)


class Mix(nnx.Module):
    """A block with a matrix product and an activation."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.linear(x))


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_recomputes_and_changes_no_gradient(policy):
    trunk = LongSkips(Mix, 5, WIDTH, precision=Precision(), remat_policy="none", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, WIDTH))

    def gradient(trunk):
        return jax.grad(lambda trunk: jnp.mean(trunk(x) ** 2))(trunk)

    def tanhs(trunk):
        return str(jax.make_jaxpr(gradient)(trunk)).count("tanh")

    want, kept = jax.jit(gradient)(trunk), tanhs(trunk)
    trunk.remat = policy
    assert tanhs(trunk) == 2 * kept == 6
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(jax.jit(gradient)(trunk)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 4])
def test_a_depth_without_a_middle_is_refused(depth):
    with pytest.raises(UserError, match=rf"model\.depth={depth} must be odd and at least 3"):
        LongSkips(Add, depth, WIDTH, precision=Precision(), remat_policy="none", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["uvit", "iuvit"])
def test_every_matrix_of_the_blocks_is_split_over_both_axes(name):
    model = abstract_backbone(
        name,
        input_shape=(8, 8, 3),
        out_channels=3,
        conditioning=ConditioningSpec(token_length=4, token_width=16),
        depth=3,
        width=32,
        heads=2,
        qkv_bias=True,
        time_mlp_ratio=1.0,
    )
    mesh = make_mesh(MeshConfig(2, 2, 2))
    shardings = parameter_paths(make_shardings(model, model.partition_rules, mesh))
    kernels = {path: leaf.spec for path, leaf in shardings.items() if path.endswith("kernel") and "trunk" in path}
    assert len(kernels) == {"uvit": 3 * 4 + 1, "iuvit": 3 * 8 + 1}[name]
    for path, spec in kernels.items():
        assert "tensor" in spec and ("fsdp" in spec or "depthwise" in path), path
    biases = [leaf.spec for path, leaf in shardings.items() if path.endswith(("fc1/bias", "qkv/bias", "q/bias"))]
    assert sum("tensor" in spec for spec in biases) == {"uvit": 6, "iuvit": 9}[name]
