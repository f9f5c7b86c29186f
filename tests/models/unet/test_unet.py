"""The UNet against the official code, the published figures and its own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.interop.backbones import load_backbone
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.interop.unet import unet_entries
from diffusion_jax.models.backbones import abstract_backbone
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec
from diffusion_jax.models.unet.attention import AttentionBlock
from diffusion_jax.models.unet.blocks import Context, Resampler, UNetLayout
from diffusion_jax.models.unet.residual_block import ResBlock
from diffusion_jax.models.unet.unet import UNet
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.parallel.partition import make_shardings, path_name

GOLDEN = ("ldm_unet_xattn", "ldm_unet_attn", "ldm_unet_class")
TINY = {
    "model_channels": 32,
    "channel_mult": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (1,),
    "num_heads": 2,
    "norm_groups": 8,  # With 32 a bias before a norm would change nothing.
}


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def assert_close(ours, theirs, tolerance=1e-4):
    theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * max(1.0, theirs.std())


def from_golden(data, **more):
    """The model of a golden file with its weights, and the inputs of its call."""
    kw = dict(data["config"]["kwargs"])
    x = nhwc(data["in/x"])
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    tokens = jnp.asarray(data["in/context"]) if "in/context" in data else None
    label = jnp.asarray(data["in/y"], jnp.int32) if "in/y" in data else None
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in kw.items()
        if key not in ("image_size", "in_channels", "out_channels", "context_dim", "num_classes")
        and key != "use_spatial_transformer"
    }
    model = load_backbone(
        "unet",
        weights,
        input_shape=x.shape[1:],
        out_channels=kw["out_channels"],
        conditioning=ConditioningSpec(
            num_classes=kw.get("num_classes", 0),
            token_length=0 if tokens is None else tokens.shape[1],
            token_width=kw.get("context_dim", 0),
        ),
        **options,
        **more,
    )
    timestep = jnp.asarray(data["in/timesteps"], jnp.float32)
    return model, (x, timestep, Conditioning(label=label, tokens=tokens)), weights


@jax.jit
def activations(model, x, timestep, cond):
    """The outputs of the official modules, under their names."""
    context = model.context(timestep, cond)
    h, skips = model.encoder(x, context)
    mid1 = model.encoder.mid1
    found = {f"input_blocks.{i}": skip for i, skip in enumerate(skips)}
    found |= {
        "time_embed": model.time_embed(timestep),
        "middle_block.0": mid1.res(skips[-1], context.embedding),
        "middle_block.1": mid1(skips[-1], context),
        "middle_block": h,
    }
    number = 0
    for level in reversed(model.decoder.levels):
        for block in level.blocks:
            h = block(jnp.concatenate([h, skips.pop()], axis=-1), context)
            if level.upsampler is not None and block is level.blocks[-1]:
                h = level.upsampler(h, context)
            found[f"output_blocks.{number}"] = h
            number += 1
    return found | {"forward": model(x, timestep, cond)}


@pytest.mark.parametrize("name", GOLDEN)
def test_forward_agrees_with_the_official_code(golden, name):
    data = golden(name)
    model, inputs, weights = from_golden(data)
    found = activations(model, *inputs)
    assert_close(found["forward"], data["out/forward"])
    for act in data["config"]["acts"]:
        assert_close(found[act][:1], data[f"out/act/{act}"])
    ours = dump_state_dict(model, unet_entries(model))
    assert ours.keys() == weights.keys()
    assert all(np.array_equal(ours[key], weights[key]) for key in ours)


@pytest.fixture(scope="module")
def attn(golden):
    return from_golden(golden("ldm_unet_attn"))


def test_the_other_order_of_qkv_is_another_reading_of_the_same_weights(attn):
    model, _, weights = attn
    name = "middle_block.1.qkv.weight"
    heads = model.encoder.mid1.attention.attn.qkv.kernel.shape[2]
    other = dump_state_dict(model, unet_entries(model, qkv_first=True))
    want = weights[name].reshape(heads, 3, -1, 64).swapaxes(0, 1).reshape(weights[name].shape)
    assert heads == 2 and np.array_equal(other[name], want)


def tiny(conditioning=UNCONDITIONAL, **options):
    return {"input_shape": (8, 8, 1), "out_channels": 1, "conditioning": conditioning, **TINY, **options}


def filled(key=0, **options):
    """A model of arbitrary numbers; those of `key` do not depend on options that change no shape."""
    leaves, structure = jax.tree.flatten(abstract_backbone("unet", **options))
    rng = np.random.default_rng(key)
    values = [rng.standard_normal(leaf.shape, np.float32) / max(leaf.size, 9) ** 0.25 for leaf in leaves]
    return jax.tree.unflatten(structure, [jnp.asarray(value, jnp.float32) for value in values])


HYBRID = ConditioningSpec(3, null_class=True, vector_width=4, token_length=4, token_width=6, image_channels=2)


@pytest.fixture(scope="module")
def hybrid():
    """A small model, told everything it can be told, and the arguments of a call."""
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    tokens, mask = normal(2, 4, 6), jnp.ones((2, 4), bool)
    label, vector, image = jnp.array([0, 3]), normal(2, 4), normal(2, 8, 8, 2)
    cond = Conditioning(label=label, vector=vector, tokens=tokens, token_mask=mask, image=image)
    return filled(**tiny(HYBRID)), (normal(2, 8, 8, 1), jnp.array([3.0, 500.0]), cond)


@jax.jit
def forward(model, *inputs):
    return model(*inputs)


def test_every_part_of_the_condition_is_heard(hybrid):
    model, (x, timestep, cond) = hybrid
    out = forward(model, x, timestep, cond)
    for changed in (
        cond._replace(label=jnp.array([1, 2])),
        cond._replace(vector=cond.vector + 1),
        cond._replace(tokens=cond.tokens + 1),
        cond._replace(image=cond.image + 1),
    ):
        assert np.all(np.abs(forward(model, x, timestep, changed) - out).max((1, 2, 3)) > 1e-3)
    assert np.abs(forward(model, x, timestep + 1, cond) - out).max() > 1e-3
    half = cond._replace(token_mask=cond.token_mask.at[:, 2:].set(False))
    masked = forward(model, x, timestep, half)
    assert np.abs(masked - out).max() > 1e-3
    unseen = forward(model, x, timestep, half._replace(tokens=cond.tokens.at[:, 2:].set(9)))
    np.testing.assert_allclose(masked, unseen, atol=1e-6)
    with pytest.raises(ValueError, match=r"without cond\.tokens"):
        model(x, timestep, cond._replace(tokens=None))


def test_rematerialisation_changes_no_gradient(hybrid):
    model, (x, timestep, cond) = hybrid
    context = jax.jit(lambda model: model.backbone.context(timestep, cond))(model)
    h = jnp.concatenate([x, cond.image] * 11, axis=-1)[..., :32]

    def gradient(model):
        block = model.backbone.encoder.mid1
        return jax.tree.leaves(jax.jit(jax.grad(lambda block: jnp.mean(block(h, context) ** 2)))(block))

    want, got = gradient(model), gradient(filled(**tiny(HYBRID, remat="full")))
    scale = max(np.abs(leaf).max() for leaf in want)
    assert scale > 0
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(hybrid):
    model, inputs = hybrid
    half = filled(**tiny(HYBRID, dtype="bfloat16", residual_dtype="bfloat16"))
    leaves = jax.tree.leaves(abstract_backbone("unet", **tiny(HYBRID, dtype="bfloat16", residual_dtype="bfloat16")))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    x, timestep, cond = inputs
    x, unet = jnp.concatenate([x, cond.image], axis=-1), half.backbone
    _, skips = jax.eval_shape(lambda *inputs: unet.encoder(x, unet.context(*inputs)), timestep, cond)
    assert {skip.dtype for skip in skips} == {jnp.dtype("bfloat16")}
    out, want = forward(half, *inputs), forward(model, *inputs)
    assert out.dtype == jnp.float32
    assert 1e-4 < np.abs(out - want).max() / np.std(want) < 0.1


UNIFORM = {  # parameter: fan-in
    "encoder/levels/0/blocks/0/res/conv1/kernel": 9 * 32,
    "encoder/levels/0/blocks/0/res/conv1/bias": 9 * 32,
    "encoder/mid1/attention/blocks/attn2/kv/kernel": 6,
    "encoder/mid1/attention/blocks/attn1/proj/bias": 32,
    "encoder/mid1/attention/blocks/mlp/fc2/kernel": 128,
    "time_embed/fc2/kernel": 128,
}
ZERO = (
    "encoder/mid2/res/conv2/kernel",
    "encoder/mid2/res/conv2/bias",
    "encoder/mid1/attention/proj_out/kernel",
    "encoder/mid1/attention/proj_out/bias",
    "decoder/conv_out/kernel",
    "decoder/conv_out/bias",
)


def test_initialisation():
    @jax.jit  # Of what is not returned nothing is computed.
    def chosen(key):
        leaves = jax.tree.leaves_with_path(UNet(**tiny(HYBRID.without_image()), rngs=nnx.Rngs(key)))
        found = {path_name(path): leaf for path, leaf in leaves}
        return {name: found[name] for name in (*UNIFORM, *ZERO, "label_embed/table/embedding")}

    found = chosen(jax.random.key(0))
    for name, fan_in in UNIFORM.items():
        assert 0.85 < np.abs(found[name]).max() * fan_in**0.5 <= 1
    assert not any(np.any(found[name]) for name in ZERO)
    assert np.std(found["label_embed/table/embedding"]) == pytest.approx(1, rel=0.1)


def test_attention_blocks_start_as_the_identity():
    block = AttentionBlock(32, 2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 32))
    assert np.array_equal(block(x), x)


def test_the_same_weights_take_another_size(hybrid):
    model, (x, timestep, cond) = hybrid
    wide = jnp.concatenate([x, x], axis=2)
    image = jnp.concatenate([cond.image, cond.image], axis=2)
    assert jax.eval_shape(model, wide, timestep, cond._replace(image=image)).shape == (2, 8, 16, 1)


def test_ddpm_pads_below_and_to_the_right():
    for padding, corner in (("symmetric", 4 / 9), ("after", 1.0)):
        layout = UNetLayout(
            model_channels=2,
            channel_mult=(1, 1),
            num_res_blocks=1,
            attention_resolutions=(),
            num_heads=1,
            num_head_channels=None,
            use_scale_shift_norm=False,
            resblock_updown=False,
            downsample_padding=padding,
        )
        step = Resampler(2, layout, resample="down", rngs=nnx.Rngs(0))
        step.conv.kernel[...], step.conv.bias[...] = jnp.full((3, 3, 2, 2), 1 / 18), jnp.zeros(2)
        out = step(jnp.ones((1, 4, 4, 2)), Context(jnp.zeros((1, 8))))
        assert out.shape == (1, 2, 2, 2)
        np.testing.assert_allclose(out[0, 0, 0, 0], corner, rtol=1e-6)


def test_the_longest_sequence_is_that_of_the_largest_attention():
    def tokens(**options):
        return abstract_backbone("unet", **tiny(**options)).sequence_length

    assert tokens() == 64
    assert tokens(attention_resolutions=(2,), channel_mult=(1, 1, 1)) == 16
    assert tokens(attention_resolutions=(32,), channel_mult=(1, 1, 1)) == 4


@pytest.mark.parametrize("spec", [UNCONDITIONAL, HYBRID.without_image()], ids=["plain", "hybrid"])
def test_every_large_parameter_is_split_over_the_mesh(spec):
    model = abstract_backbone("unet", **tiny(spec, channel_mult=(1, 2)))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = jax.tree.leaves_with_path(make_shardings(model, UNet.partition_rules, mesh))
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(model)}
    whole = {path_name(path) for path, sharding in shardings if not any(sharding.spec)}
    assert not [name for name in whole if name.endswith(("kernel", "embedding"))]
    specs = {path_name(path): sharding.spec for path, sharding in shardings}
    assert specs["encoder/mid1/res/conv1/kernel"] == PartitionSpec(None, None, "fsdp", "tensor")
    assert all(len(spec) <= len(shapes[name]) for name, spec in specs.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": None}, "num_heads=None, model.num_head_channels=None: set one of them"),
        ({"num_head_channels": 8}, "num_heads=2, model.num_head_channels=8: set one of them"),
        ({"num_heads": 3}, "choose a divisor of the 32 channels"),
        ({"input_shape": (8, 9, 1), "channel_mult": (1, 1)}, "an input of 8×9 does not divide by 2"),
        ({"model_channels": 36}, "36 channels do not divide into 8 norm groups"),
        ({"conditioning": ConditioningSpec(second_time=True)}, "model 'unet' takes only label, tokens, vector"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(UserError, match=message):
        abstract_backbone("unet", **tiny(**options))


def test_dropout_is_a_matter_of_training_and_differs_from_block_to_block_and_sample_to_sample():
    model = filled(**tiny(dropout=0.5))
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(3), (1, 8, 8, 1)), (3, 8, 8, 1))
    timestep = jnp.full(3, 100.0)
    keys = jax.random.split(jax.random.key(4), 2)[jnp.array([0, 1, 0])]
    call = jax.jit(lambda cond: model(x, timestep, cond))
    dropped, kept = np.asarray(call(Conditioning(dropout_keys=keys))), np.asarray(call(Conditioning()))
    assert np.array_equal(dropped[0], dropped[2]) and not np.allclose(dropped[0], dropped[1])
    assert not np.allclose(dropped, kept) and np.array_equal(kept[0], kept[1])
    blocks = [module for _, module in nnx.iter_modules(model) if isinstance(module, ResBlock)]
    assert len({block.dropout_stream for block in blocks}) == len(blocks) > 3
