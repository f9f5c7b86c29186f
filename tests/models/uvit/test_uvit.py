"""U-ViT against the official code, the published counts and its own initialisation rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.interop.backbones import load_backbone
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.interop.uvit import uvit_entries
from diffusion_jax.models.backbones import abstract_backbone
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec
from diffusion_jax.models.layers.patches import patchify
from diffusion_jax.models.presets import preset
from diffusion_jax.models.uvit.uvit import UViT

GOLDEN = ["uvit_uncond", "uvit_class", "uvit_t2i"]


@pytest.mark.parametrize(("name", "parameters"), [("uvit-cifar10", 44_255_328), ("uvit-celeba64", 44_292_228)])
def test_published_parameters_and_tokens(name, parameters):
    model = preset(name).abstract()
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == parameters
    assert model.embed.grid == (16, 16) and model.sequence_length == 257


def options(data):
    """The arguments of `load_backbone` for a golden file."""
    kw = data["config"]["kwargs"]
    classes = max(kw.get("num_classes", -1), 0)
    return {
        "input_shape": (kw["img_size"], kw["img_size"], kw["in_chans"]),
        "out_channels": kw["in_chans"],
        "conditioning": ConditioningSpec(
            num_classes=max(classes - 1, 0),
            null_class=classes > 0,
            token_length=kw.get("num_clip_token", 0),
            token_width=kw.get("clip_dim", 0),
        ),
        "depth": kw["depth"] + 1,
        "width": kw["embed_dim"],
        "heads": kw["num_heads"],
        "patch_size": kw["patch_size"],
        "mlp_ratio": kw["mlp_ratio"],
        "qkv_bias": kw["qkv_bias"],
        "time_mlp_ratio": 4.0 if kw["mlp_time_embed"] else 0.0,
        "conv": kw["conv"],
    }


def from_golden(data, **changes):
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    return load_backbone("uvit", weights, **{**options(data), **changes}), weights


def inputs(data):
    label = jnp.asarray(data["in/y"], jnp.int32) if "in/y" in data else None
    context = jnp.asarray(data["in/context"]) if "in/context" in data else None
    x = jnp.asarray(data["in/x"]).transpose(0, 2, 3, 1)
    return x, jnp.asarray(data["in/timesteps"]), Conditioning(label=label, tokens=context)


def activations(model, x, timestep, cond):
    """What the official modules put out, by their names, one block after the other; norms and head on all tokens."""
    found = {"patch_embed": model.embed.patch_embed(patchify(x, 2)), "time_embed": model.embed.time(timestep, cond)}
    tokens, skips = model.embed(x, model.embed.time(timestep, cond), cond), []
    for i in range(2):
        tokens = jax.tree.map(lambda leaf, i=i: leaf[i], model.trunk.down)(tokens, None)
        skips.append(tokens)
        found[f"in_blocks.{i}"] = tokens
    tokens = found["mid_block"] = model.trunk.middle(tokens, None)
    for i in range(2):
        tokens = jax.tree.map(lambda leaf, i=i: leaf[i], model.trunk.up)(tokens, skips.pop(), None)
        found[f"out_blocks.{i}"] = tokens
    found["norm"] = model.head.norm(tokens)
    found["decoder_pred"] = model.head.linear(found["norm"])
    return found


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * max(1.0, theirs.std())


@pytest.mark.parametrize("name", GOLDEN)
def test_forward_and_activations_agree_with_the_official_code(golden, name):
    data = golden(name)
    model, _ = from_golden(data)
    arguments = inputs(data)
    assert model.sequence_length == data["w/pos_embed"].shape[1]
    out, found = jax.jit(lambda model, *arguments: (model(*arguments), activations(model, *arguments)))(
        model, *arguments
    )
    assert_close(out, np.moveaxis(data["out/forward"], 1, -1))
    for module in data["config"]["acts"]:
        assert_close(found[module][:1], data[f"out/act/{module}"])


@pytest.mark.parametrize("name", GOLDEN)
def test_official_names_round_trip_bit_for_bit(golden, name):
    model, weights = from_golden(golden(name))
    ours = dump_state_dict(model, uvit_entries(model))
    assert ours.keys() == weights.keys()
    assert all(np.array_equal(ours[key], weights[key]) for key in ours)


def test_weights_of_another_configuration_are_refused(golden):
    with pytest.raises(UserError, match=r"has unexpected 'time_embed\.0\.bias' and 3 more"):
        from_golden(golden("uvit_class"), time_mlp_ratio=0.0)
    with pytest.raises(UserError, match="has unexpected 'final_layer"):
        from_golden(golden("uvit_uncond"), conv=False)
    with pytest.raises(UserError, match=r"lacks 'in_blocks\.0\.attn\.qkv\.bias' and 4 more"):
        from_golden(golden("uvit_uncond"), qkv_bias=True)


def test_what_an_invalid_context_token_says_does_not_matter(golden):
    data = golden("uvit_t2i")
    model, _ = from_golden(data)
    x, timestep, cond = inputs(data)
    run = jax.jit(model.__call__)
    whole = run(x, timestep, cond._replace(token_mask=jnp.ones((3, 7), bool)))
    np.testing.assert_allclose(whole, run(x, timestep, cond), atol=1e-5)
    mask = jnp.arange(7) < jnp.array([[7], [3], [0]])
    masked = run(x, timestep, cond._replace(token_mask=mask))
    other = cond._replace(tokens=jnp.where(mask[..., None], cond.tokens, 9.0), token_mask=mask)
    np.testing.assert_allclose(run(x, timestep, other), masked, atol=1e-5)
    changed = np.abs(masked - whole).max((1, 2, 3))
    assert changed[0] < 1e-5 < 1e-2 < changed[1:].min()


@pytest.fixture(scope="module")
def fresh():
    """A small U-ViT of everything at initialisation."""

    def make():
        return UViT(
            input_shape=(8, 8, 3),
            out_channels=6,
            conditioning=ConditioningSpec(num_classes=200, token_length=3, token_width=40),
            depth=3,
            width=64,
            heads=2,
            patch_size=2,
            time_mlp_ratio=4.0,
            rngs=nnx.Rngs(0),
        )

    return jax.jit(make)()


def test_initialisation_is_that_of_the_released_code(fresh):
    embed, middle, head = fresh.embed, fresh.trunk.middle, fresh.head
    linears = [
        *(middle.attn.qkv, middle.attn.proj, middle.ffn.fc1, middle.ffn.fc2, fresh.trunk.up.skip),
        *(embed.time_embed.fc1, embed.time_embed.fc2, embed.context_embed, head.linear),
    ]
    for linear in linears:
        kernel = np.asarray(linear.kernel)
        assert kernel.std() == pytest.approx(0.02, rel=0.05) and np.abs(kernel).max() > 0.05
        assert linear.bias is None or not np.any(linear.bias)
    assert middle.attn.qkv.bias is None
    assert np.std(embed.positions) == pytest.approx(0.02, rel=0.1)
    assert np.std(embed.label_embed.table.embedding) == pytest.approx(1.0, rel=0.1)
    for layer, fan_in in ((embed.patch_embed, 2 * 2 * 3), (head.conv, 3 * 3 * 6)):
        for parameter in (layer.kernel, layer.bias):
            assert 0.8 / np.sqrt(fan_in) < np.abs(parameter[...]).max() <= 1 / np.sqrt(fan_in)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(golden):
    data = golden("uvit_t2i")
    model, _ = from_golden(data)
    half, _ = from_golden(data, dtype="bfloat16", residual_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    x, timestep, cond = inputs(data)
    assert half.embed(x, half.embed.time(timestep, cond), cond).dtype == jnp.bfloat16
    run = jax.jit(lambda model: model(x, timestep, cond))
    out, want = run(half), run(model)
    assert out.dtype == jnp.float32
    assert 1e-4 < np.abs(out - want).max() / np.std(want) < 0.15


def test_time_in_the_unit_interval_is_scaled(golden):
    data = golden("uvit_uncond")
    model, scaled = from_golden(data)[0], from_golden(data, time_scale=1000.0)[0]
    timestep = jnp.array([0.25, 0.5])
    np.testing.assert_array_equal(
        scaled.embed.time(timestep, Conditioning()), model.embed.time(1000 * timestep, Conditioning())
    )


def test_mistakes_are_named(fresh):
    context = {"input_shape": (8, 8, 3), "out_channels": 3, "conditioning": UNCONDITIONAL}
    with pytest.raises(UserError, match="patch_size=3 does not divide the input of 8×8"):
        abstract_backbone("uvit", **context, patch_size=3)
    with pytest.raises(UserError, match=r"model\.width=100 must be divisible by model\.heads=8"):
        abstract_backbone("uvit", **context, width=100)
    with pytest.raises(
        UserError, match="model 'uvit' takes only label, tokens, vector, the conditioner provides second_time"
    ):
        abstract_backbone("uvit", **{**context, "conditioning": ConditioningSpec(second_time=True)})
    with pytest.raises(ValueError, match=r"without cond\.tokens"):
        fresh(jnp.ones((1, 8, 8, 3)), jnp.ones(1), Conditioning(label=jnp.zeros(1, jnp.int32)))
