"""DiT against the official code, the published figures and its own initialisation rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.interop.backbones import fill_backbone
from diffusion_jax.interop.dit import dit_entries
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.models.backbones import backbone_macs
from diffusion_jax.models.conditioning import Conditioning, ConditioningSpec
from diffusion_jax.models.dit import DiT, dit_config
from diffusion_jax.models.embeddings import sincos_2d, timestep_features

IMAGENET = ConditioningSpec(num_classes=1000, null_class=True)

PUBLISHED = {  # variant: (parameters, Gflops as published, one multiply-add each)
    "S/8": (33_142_016, 0.36),
    "S/4": (32_920_448, 1.41),
    "S/2": (32_865_056, 6.06),
    "B/8": (130_869_248, 1.42),
    "B/4": (130_426_496, 5.56),
    "B/2": (130_315_808, 23.01),
    "L/8": (458_578_432, 5.01),
    "L/4": (457_988_224, 19.70),
    "L/2": (457_840_672, 80.71),
    "XL/8": (675_664_640, 7.39),
    "XL/4": (675_000_704, 29.05),
    "XL/2": (674_834_720, 118.64),
}


def abstract(side=32, seed=0, **kwargs):
    return jax.eval_shape(
        lambda key: DiT(
            input_shape=(side, side, 4), out_channels=8, conditioning=IMAGENET, rngs=nnx.Rngs(key), **kwargs
        ),
        jax.random.key(seed),
    )


def macs(model, side=32):
    return backbone_macs(model, (side, side, 4), IMAGENET)


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_parameters_and_flops(variant):
    parameters, gflops = PUBLISHED[variant]
    model = abstract(**dit_config(variant))
    assert count(model) == parameters
    # The paper prints two decimals, so half a unit of the last one cannot be resolved.
    assert abs(macs(model) / 1e9 - gflops) <= max(1e-3 * gflops, 0.005 + 1e-6)


def test_512_pixels_has_the_same_parameters_and_the_published_flops():
    model = abstract(side=64, **dit_config("XL/2"))
    assert count(model) == 674_834_720
    assert macs(model, side=64) / 1e9 == pytest.approx(524.60, rel=1e-3)


def from_golden(data):
    """The model of a golden file with its weights."""
    kw = data["config"]["kwargs"]
    side, channels = kw["input_size"], kw["in_channels"]
    model = jax.eval_shape(
        lambda: DiT(
            input_shape=(side, side, channels),
            out_channels=2 * channels if kw["learn_sigma"] else channels,
            conditioning=ConditioningSpec(num_classes=kw["num_classes"], null_class=kw["class_dropout_prob"] > 0),
            depth=kw["depth"],
            width=kw["hidden_size"],
            heads=kw["num_heads"],
            patch_size=kw["patch_size"],
            mlp_ratio=kw["mlp_ratio"],
            rngs=nnx.Rngs(0),
        )
    )
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    return fill_backbone("dit", model, weights), weights


def nhwc(x):
    return jnp.asarray(x).transpose(0, 2, 3, 1)


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * max(1.0, theirs.std())


@pytest.mark.parametrize("name", ["dit_p2", "dit_p4", "dit_nosigma"])
def test_forward_agrees_with_the_official_code(golden, name):
    data = golden(name)
    model, _ = from_golden(data)
    x, t, y = nhwc(data["in/x"]), jnp.asarray(data["in/t"], jnp.float32), jnp.asarray(data["in/y"], jnp.int32)
    out = jax.jit(model.__call__)(x, t, Conditioning(label=y))
    assert_close(out, np.moveaxis(data["out/forward"], 1, -1))

    tokens, c = model.embed(x, t, Conditioning(label=y))
    positions = sincos_2d(*model.grid, model.width)
    assert_close(tokens[:1] - positions, data["out/act/x_embedder"])
    assert_close(model.time_embed(t)[:1], data["out/act/t_embedder"])
    assert_close(model.label_embed(y)[:1], data["out/act/y_embedder"])
    for i in range(model.depth):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks)
        if i == 0:
            assert_close(block.modulation(c)[:1], data["out/act/blocks.0.adaLN_modulation"])
        tokens = block(tokens, c)
        if f"out/act/blocks.{i}" in data:
            assert_close(tokens[:1], data[f"out/act/blocks.{i}"])
    assert_close(model.final(tokens, c)[:1], data["out/act/final_layer"])


def test_official_names_round_trip_bit_for_bit(golden):
    model, weights = from_golden(golden("dit_p2"))
    ours = dump_state_dict(model, dit_entries(model))
    assert ours.keys() == weights.keys() - {"pos_embed"}
    assert all(np.array_equal(ours[name], weights[name]) for name in ours)


def test_a_learned_position_table_is_refused(golden):
    data = golden("dit_p2")
    data["w/pos_embed"] = data["w/pos_embed"] + 1e-3
    with pytest.raises(UserError, match="pos_embed is not the fixed sine-cosine table"):
        from_golden(data)


def test_position_and_time_features_have_the_specified_layout():
    table = sincos_2d(16, 16, 1152)
    np.testing.assert_allclose(table[1, [0, 1, 288, 576, 864]], [0.841471, 0.824051, 0.540302, 0, 1], atol=1e-6)
    np.testing.assert_allclose(table[16, [0, 288, 576, 577, 864]], [0, 1, 0.841471, 0.824051, 0.540302], atol=1e-6)
    features = timestep_features(jnp.ones(1), 256)[0]
    np.testing.assert_allclose(features[0], np.cos(1.0), rtol=1e-6)
    np.testing.assert_allclose(features[255], np.sin(10000 ** (-127 / 128)), rtol=1e-4)
    np.testing.assert_allclose(
        timestep_features(jnp.ones(1), 256, freq_denominator=127)[0, 255], np.sin(1e-4), rtol=1e-4
    )
    assert timestep_features(jnp.ones(1), 7).shape == (1, 7)


@pytest.fixture(scope="module")
def fresh():
    """A small DiT at initialisation."""
    return DiT(
        input_shape=(8, 8, 4),
        out_channels=8,
        conditioning=ConditioningSpec(num_classes=10, null_class=True),
        depth=3,
        width=64,
        heads=4,
        patch_size=2,
        rngs=nnx.Rngs(0),
    )


def test_output_is_zero_and_blocks_are_the_identity_at_the_start(fresh):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    cond = Conditioning(label=jnp.array([1, 10]))
    assert not np.any(fresh(x, jnp.array([3.0, 500.0]), cond))
    tokens, c = fresh.embed(x, jnp.array([3.0, 500.0]), cond)
    block = jax.tree.map(lambda leaf: leaf[1], fresh.blocks)
    assert np.array_equal(block(tokens, c), tokens)


def test_initialisation_has_the_specified_limits_and_spreads(fresh):
    width = 64
    limits = {
        "qkv": (fresh.blocks.attn.qkv.kernel, np.sqrt(6 / (4 * width))),
        "proj": (fresh.blocks.attn.proj.kernel, np.sqrt(6 / (2 * width))),
        "fc1": (fresh.blocks.mlp.fc1.kernel, np.sqrt(6 / (5 * width))),
        "fc2": (fresh.blocks.mlp.fc2.kernel, np.sqrt(6 / (5 * width))),
        "patch": (fresh.patch_embed.kernel, np.sqrt(6 / (2 * 2 * 4 + width))),
    }
    for name, (kernel, limit) in limits.items():
        largest = np.abs(kernel[...]).max()
        assert 0.97 * limit < largest <= limit, name
    for table in (fresh.time_embed.fc1.kernel, fresh.time_embed.fc2.kernel, fresh.label_embed.table.embedding):
        assert np.std(table[...]) == pytest.approx(0.02, rel=0.1)
    biases = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(fresh) if "bias" in jax.tree_util.keystr(path)]
    assert len(biases) == 10 and not any(np.any(bias) for bias in biases)
    assert not np.any(fresh.blocks.modulation.kernel) and not np.any(fresh.final.modulation.kernel)
    kernels = fresh.blocks.mlp.fc1.kernel[...]
    assert not np.array_equal(kernels[0], kernels[1])


def test_modulation_learns_only_after_the_head_has_moved(fresh):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    cond = Conditioning(label=jnp.array([1, 2]))

    def loss(model):
        return jnp.mean((model(x, jnp.array([3.0, 500.0]), cond)[..., :4] - x) ** 2)

    gradient = jax.grad(loss)(fresh)
    assert not np.any(gradient.blocks.modulation.kernel)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, fresh, gradient)
    assert np.any(jax.grad(loss)(moved).blocks.modulation.kernel)


@pytest.mark.parametrize("policy", ["dots", "full"])
def test_rematerialisation_changes_no_gradient(golden, policy):
    model, _ = from_golden(golden("dit_p2"))
    x, t = jnp.ones((2, 8, 8, 4)), jnp.array([10.0, 20.0])

    def gradient(model):
        return jax.jit(jax.grad(lambda m: jnp.mean(m(x, t, Conditioning(label=jnp.array([0, 1]))) ** 2)))(model)

    want = gradient(model)
    model.remat = policy
    got = gradient(model)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(golden):
    data = golden("dit_p2")
    model, _ = from_golden(data)
    args = (nhwc(data["in/x"]), jnp.asarray(data["in/t"], jnp.float32), Conditioning(label=jnp.asarray(data["in/y"])))
    half = DiT(
        input_shape=(8, 8, 4),
        out_channels=8,
        conditioning=ConditioningSpec(num_classes=10, null_class=True),
        depth=2,
        width=64,
        heads=4,
        dtype="bfloat16",
        residual_dtype="bfloat16",
        rngs=nnx.Rngs(0),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    half = jax.tree.unflatten(jax.tree.structure(half), jax.tree.leaves(model))
    assert half.embed(*args)[0].dtype == jnp.bfloat16
    out, want = half(*args), model(*args)
    assert out.dtype == jnp.float32
    error = np.abs(out - want).max() / np.std(want)
    assert 1e-4 < error < 0.1


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(UserError, match="patch_size=3 does not divide the input of 32×32"):
        abstract(patch_size=3)
    with pytest.raises(UserError, match=r"width=100 must be divisible by 4 and by model\.heads=16"):
        abstract(width=100)
    with pytest.raises(UserError, match="no DiT variant 'M/2'"):
        dit_config("M/2")
