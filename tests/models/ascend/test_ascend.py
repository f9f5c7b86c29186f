"""ASCEND: published counts, its wiring written out again, the ablation's variants, the text, precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax import keys
from diffusion_jax.errors import UserError
from diffusion_jax.models.ascend.ascend import ASCEND
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec
from diffusion_jax.models.presets import PRESETS
from diffusion_jax.models.unet.residual_block import ResBlock
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.parallel.partition import make_shardings, path_name

TEXT = ConditioningSpec(token_length=3, token_width=6)
TINY = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "enc_depths": (2, 1),
    "dec_blocks": (1, 2),
    "attention_resolutions": (4,),
    "num_head_channels": 16,
    "window_size": 4,
}
ADM = {"skips": "block", "dec_blocks": (3, 2)}


# Compiling takes nearly all of the time of these tests.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def build(conditioning=UNCONDITIONAL, shape=(8, 8, 2), seed=0, **options):
    rngs = nnx.Rngs(seed)
    return ASCEND(input_shape=shape, out_channels=2, conditioning=conditioning, **{**TINY, **options}, rngs=rngs)


def abstract(**options):
    return jax.eval_shape(functools.partial(build, **options))


def make(conditioning=UNCONDITIONAL, **options):
    """A model whose parameters are random throughout, none at its special initial value."""
    leaves, structure = jax.tree.flatten(abstract(conditioning=conditioning, **options))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [jnp.float32(0.1 * rng.standard_normal(leaf.shape)) for leaf in leaves])


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def inputs(shape=(8, 8, 2)):
    rng = np.random.default_rng(1)
    cond = Conditioning(tokens=jnp.float32(rng.standard_normal((2, 3, 6))))
    return jnp.float32(rng.standard_normal((2, *shape))), jnp.array([30.0, 700.0]), cond


@jit
def apply(model, x, timestep, cond):
    return model(x, timestep, cond)


@jit
def gradient(model, x, timestep, cond):
    return jax.grad(lambda model: jnp.sum(jnp.sin(model(x, timestep, cond))))(model)


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [
        ("ascend-t2i-128", 590_296_259, [412.5, 50.4, 124.1]),
        pytest.param("ascend-t2i-128-adm", 592_206_819, [197.7, 50.4, 340.7], marks=pytest.mark.slow),
    ],
)
def test_reconstructed_models_of_text_have_the_specified_parameters(name, parameters, millions):
    model = PRESETS[name].abstract()
    assert count(model) == parameters
    parts = (model.conv_in, model.encoder, model.downsamplers), model.middle, (model.decoder, model.upsamplers)
    assert [round(count(part) / 1e6, 1) for part in parts] == millions
    assert model.sequence_length == 32 * 32


def test_the_convolutional_twin_is_the_unet_of_improved_ddpm():
    options = PRESETS["ascend-cifar10-adm"].options
    twin = abstract(**{**options, "encoder": "conv", "resampling": "conv"}, shape=(32, 32, 3))
    # Our twin here maps 3 channels to 2; the released model maps 3 to 6, with the learned variance.
    assert count(twin) + 4 * (9 * 128 + 1) == 52_546_438


@pytest.fixture(scope="module")
def text_model():
    return make(TEXT)


def test_the_head_starts_at_zero_and_the_attentions_add_nothing():
    @jit
    def initial():
        model = build()
        return model.conv_out, model.middle.attention.pixels.attn.proj, model.encoder[0].stack.regular.mlp.fc1.kernel

    head, projection, stacked = initial()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((head, projection)))
    assert np.std(stacked[...]) == pytest.approx(0.02, rel=0.1)
    assert not np.array_equal(stacked[0], stacked[1])


def stack_wiring(model, x, timestep, cond, *, every_block):
    """The forward pass with one flat stack of skips, as ADM keeps them."""
    context = model.context(timestep, cond)
    x = model.conv_in(x)
    stack = [x] if every_block else []
    for i, level in enumerate(model.encoder):
        depth = jax.tree.leaves(level.stack)[0].shape[0]
        for j in range(depth):
            block = jax.tree.map(lambda leaf, j=j: leaf[j], level.stack)
            x = block(x, context.embedding, context.text)
            if every_block or j == depth - 1:
                stack.append(x)
        if i + 1 < len(model.encoder):
            x = model.downsamplers[i](x)
            stack += [x] if every_block else []
    x = model.middle(x, context)
    for i in (1, 0):
        for j, block in enumerate(model.decoder[i].blocks):
            if every_block or j == 0:
                x = jnp.concatenate([x, stack.pop()], axis=-1)
            x = block(x, context)
        x = model.upsamplers[0](x) if i else x
    assert not stack
    return model.conv_out(jax.nn.silu(model.norm_out(x)))


@pytest.mark.parametrize("every_block", [False, True])
def test_the_last_feature_map_in_is_the_first_out(text_model, every_block):
    model = make(**ADM) if every_block else text_model
    x, timestep, cond = inputs()
    expected = jit(functools.partial(stack_wiring, every_block=every_block))(model, x, timestep, cond)
    np.testing.assert_allclose(apply(model, x, timestep, cond), expected, atol=1e-4 * np.std(expected))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"encoder": "conv", "decoder": "swin", "resampling": "conv"},
    ],
    ids=str,
)
def test_every_parameter_is_used_and_rematerialisation_changes_no_gradient(options):
    plain = gradient(make(TEXT, **options), *inputs())
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    assert not [path_name(path) for path, leaf in leaves if not np.any(leaf)]
    if not options:
        again = gradient(make(TEXT, remat="full"), *inputs())
        for (_, a), b in zip(leaves, jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max() + 1e-5)


@pytest.mark.parametrize("encoder", ["swin", "conv"])
@pytest.mark.parametrize("decoder", ["swin", "conv"])
@pytest.mark.parametrize("rest", [{"skips": "none"}, {"resampling": "conv", **ADM}], ids=["none-patch", "block-conv"])
def test_the_ablation_has_the_shapes_of_its_parts(encoder, decoder, rest):
    def out(key):
        model = build(TEXT, (8, 16, 2), key, encoder=encoder, decoder=decoder, **rest)
        return model(*inputs((8, 16, 2)))

    assert jax.eval_shape(out, jax.random.key(0)).shape == (2, 8, 16, 2)


def test_skips_carry_what_the_middle_does_not():
    """Without the output of the middle the decoder still sees the image if, and only if, there are skips."""
    x, timestep, cond = inputs()

    def depends(skips):
        model = make(skips=skips, encoder="conv", enc_depths=(1, 1), dec_blocks=(1, 1), attention_resolutions=())
        model.middle = lambda x, context: jnp.zeros_like(x)
        call = jit(lambda x: model(x, timestep, cond))
        return bool(np.any(call(x) != call(x[::-1])))

    assert depends("level") and not depends("none")


def test_the_text_acts_through_both_routes_and_not_when_dropped(text_model):
    x, timestep, cond = inputs()
    out = apply(text_model, x, timestep, cond)
    embedding = text_model.context(timestep, cond).embedding
    other = cond._replace(tokens=cond.tokens[::-1])
    assert np.abs(text_model.context(timestep, other).embedding - embedding).max() > 1e-2

    def from_attention(model, tokens):
        """The output where only the tokens attended to change."""
        context = model.context(timestep, cond)
        model.context = lambda *_: context._replace(text=context.text._replace(tokens=tokens))
        return model(x, timestep, cond)

    attended = jit(from_attention)
    tokens = text_model.context(timestep, cond).text.tokens
    assert np.abs(attended(text_model, tokens) - attended(text_model, tokens[::-1])).max() > 1e-3

    dropped = jnp.zeros((2, 3), bool)
    null = apply(text_model, x, timestep, cond._replace(token_mask=dropped))
    assert np.array_equal(null, apply(text_model, x, timestep, other._replace(token_mask=dropped)))
    assert np.abs(null - out).max() > 1e-3


def test_padding_can_be_kept_out_of_every_attention():
    x, timestep, cond = inputs()
    small = {"encoder": "conv", "enc_depths": (1, 1), "dec_blocks": (1, 1)}
    model = make(TEXT, mask_padding=True, text_width=4, **small)
    mask = jnp.array([[True, True, False], [True, False, False]])
    out = apply(model, x, timestep, cond._replace(token_mask=mask))
    changed = cond.tokens + jnp.where(mask[..., None], 0.0, cond.tokens**2)
    again = apply(model, x, timestep, cond._replace(token_mask=mask, tokens=changed))
    np.testing.assert_allclose(again, out, atol=1e-5 * np.std(out))


def test_dropout_has_a_key_for_each_sample_and_block(monkeypatch):
    model = make(dropout=0.5)
    draws = keys.sample_keys(jax.random.key(0), jnp.arange(2))
    seen = []

    def record(block, h, keys):
        seen.append(jax.random.key_data(keys))
        return h

    monkeypatch.setattr(ResBlock, "_drop", record)

    @jit
    def drawn(draws):
        seen.clear()
        model(*inputs()[:2], Conditioning(dropout_keys=draws))
        return jnp.stack(seen)

    blocks = drawn(draws)  # [blocks, B, 2]
    assert blocks.shape[0] == 5
    assert len({tuple(np.asarray(key)) for key in blocks.reshape(10, -1)}) == 10
    assert np.array_equal(drawn(draws[::-1]), blocks[:, ::-1])


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(text_model):
    half = make(TEXT, dtype="bfloat16", residual_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(dtype="bfloat16"))} == {jnp.dtype("float32")}
    out, want = apply(half, *inputs()), apply(text_model, *inputs())
    assert out.dtype == jnp.float32
    error = np.abs(out - want).max() / np.std(want)
    assert 1e-4 < error < 0.2


def test_large_parameters_are_split():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for options in ({}, {"encoder": "conv", "decoder": "swin", "resampling": "conv"}):
        model = abstract(conditioning=TEXT, **options)
        shardings = make_shardings(model, ASCEND.partition_rules, mesh)
        leaves = zip(jax.tree_util.tree_leaves_with_path(model), jax.tree.leaves(shardings), strict=True)
        whole = {path_name(path) for (path, leaf), sharding in leaves if leaf.size > 1024 and not any(sharding.spec)}
        assert not whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enc_depths": (1,)}, r"model\.enc_depths=\(1,\): give a number of at least 1 for each of the 2 levels"),
        ({"skips": "block"}, r"dec_blocks=\(1, 2\): with model\.skips='block'"),
        ({"num_head_channels": 48}, r"num_head_channels=48 must divide the widths \(32, 64\)"),
        ({"shape": (7, 8, 2)}, "the input of 7×8 does not divide by 2"),
        ({"attention_resolutions": (16,)}, r"attention_resolutions has 16, but the levels are \[8, 4\] pixels high"),
        ({"window_size": 3}, "window_size=3 does not divide a feature map of 8"),
        ({"dropout": 1.0}, r"model\.dropout=1.0"),
        ({"model_channels": 48}, "144 channels do not divide into 32 norm groups"),
        ({"conditioning": ConditioningSpec(second_time=True)}, "model 'ascend' takes only label, tokens, vector"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        abstract(**options)
