"""The SpatialTransformer against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.interop.mapping import dump_state_dict, load_state_dict
from diffusion_jax.interop.unet import spatial_transformer_entries
from diffusion_jax.models.unet.spatial_transformer import GEGLU, SpatialTransformer

FLOAT32 = jnp.dtype("float32")


def from_golden(data):
    kw = data["config"]["kwargs"]
    model = jax.eval_shape(
        lambda: SpatialTransformer(
            kw["in_channels"],
            kw["n_heads"],
            depth=kw["depth"],
            context_width=kw["context_dim"],
            dtype=FLOAT32,
            rngs=nnx.Rngs(0),
        )
    )
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    return load_state_dict(model, weights, spatial_transformer_entries(model)), weights


@jax.jit
def activations(model, x, context):
    """The outputs of the official modules, under their names."""
    normed = model.norm(x)
    tokens = model.proj_in(normed)
    flat = tokens.reshape(len(x), -1, x.shape[-1])
    block = jax.tree.map(lambda leaf: leaf[0], model.blocks)
    after1 = flat + block.attn1(block.norm1(flat))
    second = block.norm2(after1) if context is None else (block.norm2(after1), context)
    attn2 = block.attn2(second) if context is None else block.attn2(*second)
    return {
        "norm": normed,
        "proj_in": tokens,
        "transformer_blocks.0": block(flat, context),
        "transformer_blocks.0.attn1": block.attn1(block.norm1(flat)),
        "transformer_blocks.0.attn2": attn2,
        "transformer_blocks.0.ff": block.mlp(block.norm3(after1 + attn2)),
        "forward": model(x, context),
    }


@pytest.mark.parametrize("name", ["spatial_transformer", "spatial_transformer_self"])
def test_agrees_with_the_official_code(golden, name):
    data = golden(name)
    model, weights = from_golden(data)
    context = jnp.asarray(data["in/context"]) if "in/context" in data else None
    found = activations(model, jnp.asarray(np.moveaxis(data["in/x"], 1, -1)), context)
    for act in ("forward", *(f"act/{act}" for act in data["config"]["acts"])):
        theirs = data[f"out/{act}"]
        theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 else theirs
        ours = np.asarray(found[act.removeprefix("act/")])[: len(theirs)]
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-4 * max(1.0, theirs.std()), act
    ours = dump_state_dict(model, spatial_transformer_entries(model))
    assert ours.keys() == weights.keys()
    assert all(np.array_equal(ours[key], weights[key]) for key in ours)


def test_geglu_gates_the_first_half_by_the_exact_gelu_of_the_second():
    mlp = GEGLU(1, dtype=FLOAT32, rngs=nnx.Rngs(0))
    mlp.fc1.kernel[...] = jnp.array([[[1.0] * 4, [2.0] * 4]])
    mlp.fc2.kernel[...] = jnp.full((4, 1), 0.25)
    mlp.fc1.bias[...], mlp.fc2.bias[...] = jnp.zeros((2, 4)), jnp.zeros(1)
    # x · GELU(2x) at x = 1: Φ(2) = 0.97724987.
    np.testing.assert_allclose(mlp(jnp.ones((1, 1)))[0, 0], 2 * 0.97724987, rtol=1e-6)


def test_blocks_of_a_deeper_one_follow_each_other(golden):
    model, _ = from_golden(golden("spatial_transformer_self"))
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 32))
    deeper = jax.tree.unflatten(
        jax.tree.structure(model),
        [
            jnp.concatenate([leaf, 2 * leaf]) if "blocks" in jax.tree_util.keystr(path) else leaf
            for path, leaf in jax.tree.leaves_with_path(model)
        ],
    )

    @jax.jit
    def by_hand(model, x):
        tokens = model.proj_in(model.norm(x)).reshape(1, 16, 32)
        for i in range(2):
            tokens = jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks)(tokens, None)
        return x + model.proj_out(tokens).reshape(x.shape)

    np.testing.assert_allclose(jax.jit(lambda model, x: model(x))(deeper, x), by_hand(deeper, x), atol=1e-5)
