"""LDM-Transformer against the counts of its specification, a forward pass written out in NumPy, and its acceptance
checks; no official code or weights exist."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.paths import PATHS
from diffusion_jax.errors import UserError
from diffusion_jax.models.backbones import backbone_macs
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec
from diffusion_jax.models.dit import ldm_transformer
from diffusion_jax.models.dit.ldm_transformer import LDMTransformer
from diffusion_jax.models.layers.embeddings import sincos_2d
from diffusion_jax.models.layers.patches import patchify, unpatchify
from diffusion_jax.models.presets import preset
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.parallel.partition import make_shardings, path_name

TEN = ConditioningSpec(num_classes=10, null_class=True)
IMAGENET = ConditioningSpec(num_classes=1000, null_class=True)
TINY = {"depth": 2, "width": 32, "heads": 2}

PRESETS = {  # name: (parameters, GMAC at p = 2)
    "ldm8-transformer": (407_290_896, 108.5),
    "ldm8-transformer-395m": (394_685_440, 105.2),
    "ldm8-transformer-mid": (311_995_280, 83.6),
    "ldm8-transformer-flops": (229_380_880, 61.9),
    "ldm8-transformer-small": (22_135_696, 6.1),
}


def make(seed=0, side=8, conditioning=TEN, **options):
    return LDMTransformer(
        input_shape=(side, side, 4),
        out_channels=4,
        conditioning=conditioning,
        rngs=nnx.Rngs(seed),
        **{**TINY, **options},
    )


def abstract(**options):
    return jax.eval_shape(lambda: make(**options))


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_specified_parameters_and_cost(name):
    parameters, gmac = PRESETS[name]
    model = preset(name).abstract()
    assert count(model) == parameters
    assert model.sequence_length == 258
    macs = backbone_macs(model, (32, 32, 4), IMAGENET)
    assert abs(macs / 1e9 - gmac) <= 0.05
    width, depth = preset(name).options["width"], preset(name).options["depth"]
    towers = 2 * depth * (12 * width**2 * 258 + 2 * 258**2 * width) + 258 * width**2
    assert 0 < macs - towers < 0.02e9


def test_variants_have_the_specified_parameters_and_cost():
    base = {"side": 32, "conditioning": IMAGENET, "depth": 16, "width": 1024, "heads": 16}
    four = {**base, "patch_size": 4}
    assert abs(backbone_macs(abstract(**four), (32, 32, 4), IMAGENET) / 1e9 - 26.9) <= 0.05
    assert abstract(**four).sequence_length == 66
    assert count(abstract(**base, bridge=False)) == 406_241_296
    assert count(abstract(**{**base, "width": 1008, "heads": 14}, bridge=False)) == 393_668_368
    assert count(abstract(**base, time_mode="add")) == count(abstract(**base, class_mode="with_time")) == 407_290_896
    assert count(abstract(depth=4, width=192, heads=3)) == 3_679_312


def test_defaults_are_those_of_the_largest_preset():
    model = jax.eval_shape(
        lambda: LDMTransformer(input_shape=(32, 32, 4), out_channels=4, conditioning=IMAGENET, rngs=nnx.Rngs(0))
    )
    want = preset("ldm8-transformer").abstract()
    assert jax.tree.structure(model) == jax.tree.structure(want)
    assert jax.tree.leaves(model) == jax.tree.leaves(want)


def randomised(**options):
    """A model with arbitrary parameters, so that no zero bias, unit scale or zero head hides a mistake."""
    draw = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0.1, 0.2, leaf.shape), jnp.float32), abstract(**options))


@jax.jit
def call(model, x, timestep, label):
    return model(x, timestep, Conditioning(label=label))


def with_head(model, head):
    """A copy of the model with another head."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.head = head
    return copy


@pytest.fixture(scope="module")
def fresh():
    """A small model at initialisation, its head included, with a decoder of another width."""
    return jax.jit(lambda: make(decoder_width=64, zero_head=False))()


@pytest.fixture(scope="module")
def inputs():
    """Two noisy images and their timesteps."""
    return jax.random.normal(jax.random.key(5), (2, 8, 8, 4)), jnp.array([20.0, 700.0])


def reference(model, x, timestep, label, *, time_mode, class_mode, heads, patch=2):
    """The forward pass of the specification (section 2.2) in float64, one token sequence at a time."""

    def value(parameter):
        return np.asarray(parameter[...], np.float64)

    def linear(layer, h):
        kernel = value(layer.kernel).reshape(h.shape[-1], -1)
        bias = 0 if layer.bias is None else value(layer.bias).reshape(-1)
        return h @ kernel + bias

    def norm(layer, h):
        centred = h - h.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * value(layer.scale) + value(layer.bias)

    def attend(layer, h):
        width = h.shape[-1]
        q, k, v = np.split(linear(layer.qkv, h), 3, axis=-1)
        out = np.empty_like(h)
        for part in np.split(np.arange(width), heads):
            logits = q[:, part] @ k[:, part].T / np.sqrt(len(part))
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
        return linear(layer.proj, out)

    def tower(vit, h):
        depth = len(value(vit.blocks.norm1.scale))
        for i in range(depth):
            block = jax.tree.map(lambda leaf, i=i: leaf[i], vit.blocks)
            h = h + attend(block.attn, norm(block.norm1, h))
            hidden = linear(block.mlp.fc1, norm(block.norm2, h))
            h = h + linear(block.mlp.fc2, hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
        return norm(vit.norm, h)

    def signals(embed, t, y):
        width = value(embed.time_embed.fc2.kernel).shape[1]
        angles = t * np.exp(-np.log(10000) * np.arange(width // 2) / (width // 2))
        hidden = linear(embed.time_embed.fc1, np.concatenate([np.cos(angles), np.sin(angles)]))
        time = linear(embed.time_embed.fc2, hidden / (1 + np.exp(-hidden)))
        label = value(embed.label_embed.table.embedding)[y]
        positions = sincos_2d(x.shape[1] // patch, x.shape[2] // patch, width).astype(np.float64)
        if class_mode == "with_time":
            time, before = time + label, []
        else:
            before = [label]
        if time_mode == "token":
            return np.stack([time, *before, *positions])
        return np.stack([*before, *positions]) + time

    out = np.empty(x.shape)
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    for image, t, y, result in zip(np.asarray(x, np.float64), timestep, label, out, strict=True):
        places = [(slice(patch * r, patch * (r + 1)), slice(patch * c, patch * (c + 1)))
                  for r in range(rows) for c in range(columns)]  # fmt: skip
        h = signals(model.embed, t, y)
        h[len(h) - len(places) :] += linear(model.patch_embed, np.stack([image[place].ravel() for place in places]))
        h = tower(model.encoder, h)
        if model.bridge is not None:
            h = linear(model.bridge, h)
        h = tower(model.decoder, h + signals(model.decoder_embed or model.embed, t, y))
        for place, patch_values in zip(places, linear(model.head, h[-len(places) :]), strict=True):
            result[place] = patch_values.reshape(patch, patch, -1)
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"time_mode": "add"},
        {"class_mode": "with_time"},
        {"time_mode": "add", "class_mode": "with_time", "bridge": False, "qkv_bias": False, "mlp_ratio": 2.0},
        {"decoder_width": 64, "decoder_depth": 1},
    ],
    ids=lambda options: " ".join(options) or "defaults",
)
def test_forward_is_the_specified_one(options, inputs):
    model = randomised(**options)
    out = call(model, *inputs, jnp.array([4, 10]))
    modes = {mode: options.get(mode, "token") for mode in ("time_mode", "class_mode")}
    want = reference(model, *map(np.asarray, inputs), [4, 10], heads=2, **modes)
    np.testing.assert_allclose(out, want, atol=1e-4 * want.std())


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 258),
        ({"time_mode": "add"}, 257),
        ({"class_mode": "with_time"}, 257),
        ({"time_mode": "add", "class_mode": "with_time"}, 256),
        ({"conditioning": UNCONDITIONAL}, 257),
    ],
    ids=lambda value: str(value),
)
def test_shapes_of_every_mode(options, tokens):
    model = abstract(side=32, **options)
    cond = options.get("conditioning", TEN).example(3, 32, 32)
    x, timestep = jax.ShapeDtypeStruct((3, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)
    out = jax.eval_shape(lambda model, *arguments: model(*arguments), model, x, timestep, cond)
    assert out.shape == (3, 32, 32, 4) and out.dtype == jnp.float32
    assert model.sequence_length == tokens


def test_output_is_zero_at_the_start_if_the_head_is(fresh, inputs):
    head = jax.jit(lambda: make(decoder_width=64).head)()
    label = jnp.array([1, 10])
    assert not np.any(call(with_head(fresh, head), *inputs, label))
    assert np.std(call(fresh, *inputs, label)) > 0.1


def test_null_and_real_label_differ_after_one_step_and_guidance_at_one_is_conditional(fresh, inputs):
    x, timestep = inputs
    label, null = jnp.array([1, 7]), jnp.array([10, 10])

    def loss(head):  # a zero head passes no gradient on, so the first step moves nothing else
        return jnp.mean((call(with_head(fresh, head), *inputs, label) - x) ** 2)

    zero = jax.tree.map(jnp.zeros_like, fresh.head)
    model = with_head(fresh, jax.tree.map(lambda g: -0.1 * g, jax.grad(loss)(zero)))
    conditional, unconditional = call(model, *inputs, label), call(model, *inputs, null)
    assert np.abs(conditional - unconditional).max() > 1e-4

    point = PATHS["ddpm"]().point(jnp.float32(0.5))._replace(timestep=timestep)
    network = lambda x, timestep, cond: call(model, x, timestep, cond.label)  # noqa: E731
    for scale in (1.0, 1.5):
        guidance = ClassifierFreeGuidance(cfg_scale=scale)
        guided = guidance(network, Conditioning(label=label), Conditioning(label=null))(x, point)
        np.testing.assert_allclose(guided, unconditional + scale * (conditional - unconditional), atol=1e-5)


def test_patchify_inverts_and_patches_are_told_apart_by_their_positions_only(inputs, monkeypatch):
    x, timestep = inputs
    model, label = randomised(), jnp.array([1, 10])
    np.testing.assert_array_equal(unpatchify(patchify(x, 2), (4, 4), 2), x)
    order = np.random.default_rng(0).permutation(16)
    shuffled = unpatchify(patchify(x, 2)[:, order], (4, 4), 2)
    plain, alone = (patchify(call(model, image, timestep, label), 2) for image in (x, shuffled))
    monkeypatch.setattr(ldm_transformer, "sincos_2d", lambda *shape: sincos_2d(*shape)[order])
    call.clear_cache()
    together = patchify(call(model, shuffled, timestep, label), 2)
    call.clear_cache()
    np.testing.assert_allclose(together, plain[:, order], atol=1e-4 * np.std(plain))
    assert np.abs(alone - plain[:, order]).max() > 0.1 * np.std(plain)


def test_initialisation_is_the_specified_one(fresh):
    limits = {
        "qkv": (fresh.encoder.blocks.attn.qkv.kernel, 32, 96),
        "proj": (fresh.encoder.blocks.attn.proj.kernel, 32, 32),
        "fc1": (fresh.decoder.blocks.mlp.fc1.kernel, 64, 256),
        "fc2": (fresh.decoder.blocks.mlp.fc2.kernel, 256, 64),
        "patch": (fresh.patch_embed.kernel, 16, 32),
        "bridge": (fresh.bridge.kernel, 32, 64),
        "head": (fresh.head.kernel, 64, 16),
    }
    for name, (kernel, fan_in, fan_out) in limits.items():
        limit = np.sqrt(6 / (fan_in + fan_out))
        assert 0.97 * limit < np.abs(kernel[...]).max() <= limit, name
    for embed in (fresh.embed, fresh.decoder_embed):
        for table in (embed.time_embed.fc1.kernel, embed.time_embed.fc2.kernel, embed.label_embed.table.embedding):
            assert np.std(table[...]) == pytest.approx(0.02, rel=0.15)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(fresh)}
    biases = [leaf for path, leaf in leaves.items() if "bias" in path]
    assert len(biases) == 21 and not any(np.any(bias) for bias in biases)
    scales = [leaf for path, leaf in leaves.items() if "scale" in path]
    assert len(scales) == 6 and all(np.all(np.asarray(scale) == 1) for scale in scales)
    kernels = fresh.encoder.blocks.mlp.fc1.kernel[...]
    assert not np.array_equal(kernels[0], kernels[1])


def test_rematerialisation_changes_no_gradient(inputs):
    x, timestep = inputs
    label = jnp.array([1, 10])

    def gradient(policy):
        model = randomised(remat=policy)
        return jax.jit(jax.grad(lambda x: jnp.mean(call(model, x, timestep, label) ** 2)))(x)

    want = gradient("none")
    np.testing.assert_allclose(gradient("full"), want, atol=1e-5 * np.abs(want).max())
    assert np.any(want)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(fresh, inputs):
    half = abstract(decoder_width=64, zero_head=False, dtype="bfloat16", residual_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    half = jax.tree.unflatten(jax.tree.structure(half), jax.tree.leaves(fresh))
    label = jnp.array([1, 10])
    out, want = call(half, *inputs, label), call(fresh, *inputs, label)
    assert out.dtype == jnp.float32
    assert 1e-4 < np.abs(out - want).max() / np.std(want) < 0.1


def test_every_matrix_of_the_blocks_is_split_both_ways():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    spec = ConditioningSpec(num_classes=1000, vector_width=8, token_length=4, token_width=8)
    model = dataclasses.replace(preset("ldm8-transformer"), conditioning=spec).abstract()
    shardings = make_shardings(model, LDMTransformer.partition_rules, mesh)
    specs = {path_name(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}
    blocks = {name: spec for name, spec in specs.items() if re.search(r"blocks/.*kernel", name)}
    assert len(blocks) == 8 and all({"fsdp", "tensor"} <= set(spec) for spec in blocks.values())
    for pattern, _ in LDMTransformer.partition_rules:
        assert any(re.search(pattern, name) for name in specs), pattern


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide the input of 8×8"),
        ({"width": 30}, r"model\.width=30 must be divisible by 4 and by model\.heads=2"),
        ({"decoder_heads": 5}, r"model\.decoder_width=32 must be divisible by 4 and by model\.decoder_heads=5"),
        ({"decoder_width": 16, "bridge": False}, r"model\.bridge=False needs one width"),
        ({"conditioning": ConditioningSpec(second_time=True)}, "'ldm_transformer' takes only label, tokens, vector"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        abstract(**options)
