"""Arrays are born with the bits that any other compilation of their program gives them."""

import jax
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.models.autoencoder.autoencoder import AutoencoderKL
from diffusion_jax.parallel.create import create_sharded, sharded_shapes
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh


def weights():
    """Uniform and normal draws, as the networks make them."""
    normal = nnx.initializers.normal(0.02)(jax.random.key(1), (64, 64))
    truncated = nnx.initializers.lecun_normal()(jax.random.key(2), (64, 64))
    model = AutoencoderKL(
        ch=8,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=16,
        mid_attention=False,
        norm_groups=4,
        z_channels=4,
        embed_dim=4,
        rngs=nnx.Rngs(0),
    )
    return [normal, truncated, nnx.state(model, nnx.Param)]


@pytest.mark.parametrize("devices", [1, 2])
def test_quick_compilation_draws_the_same_bits(devices):
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    found = create_sharded(weights, sharded_shapes(weights, (), mesh))
    leaves = jax.tree.leaves(found)
    assert len(leaves) > 20
    for leaf, expected in zip(leaves, jax.tree.leaves(jax.jit(weights)()), strict=True):
        assert leaf.sharding.mesh.size == devices
        np.testing.assert_array_equal(leaf, expected)
