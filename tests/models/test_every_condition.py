"""Every backbone with every condition it takes: it is heard, masks hold, and what a backbone lacks is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.backbones import BACKBONES, abstract_backbone
from diffusion_jax.models.conditioning.conditioners import ClassTokenConditioner
from diffusion_jax.models.conditioning.encoders import Conditioned, conditioned
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.parallel.partition import make_shardings, path_name

SHAPE, CLASSES = (8, 8, 1), 3
SPECS = {
    "label": ConditioningSpec(num_classes=CLASSES, null_class=True),
    "vector": ConditioningSpec(vector_width=5),
    "tokens": ConditioningSpec(token_length=4, token_width=6),
    "image": ConditioningSpec(image_channels=2),
}
ALL = ConditioningSpec(CLASSES, True, vector_width=5, token_length=4, token_width=6, image_channels=2)
NO_TOKENS = ALL._replace(token_length=0, token_width=0)

VIT = {"depth": 3, "width": 32, "heads": 2, "patch_size": 4}
SMALLEST = {
    "ascend": {
        "model_channels": 32,
        "channel_mult": (1,),
        "enc_depths": (1,),
        "dec_blocks": (1,),
        "attention_resolutions": (),
        "num_head_channels": 16,
        "window_size": 4,
        "mask_padding": True,
    },
    "dit": {**VIT, "block": "adaln_zero"},
    "dit cross_attention": {**VIT, "block": "cross_attention"},
    "dit in_context": {**VIT, "block": "in_context", "rope": True},
    "iuvit": {**VIT, "text_width": 8, "text_mask_padding": True},
    "ldm_transformer": {**VIT, "depth": 1, "decoder_width": 16},
    "ldm_transformer added": {**VIT, "depth": 1, "time_mode": "add", "class_mode": "with_time"},
    "unet": {
        "model_channels": 8,
        "channel_mult": (1,),
        "num_res_blocks": 1,
        "attention_resolutions": (),
        "num_heads": 2,
        "norm_groups": 2,
    },
    "uvit": VIT,
}
EVERY = pytest.mark.parametrize("case", SMALLEST)


def takes(case):
    """All that the backbone of a case can be told."""
    return NO_TOKENS if case == "dit" else ALL


def abstract(case, spec, **options):
    context = {"input_shape": SHAPE, "out_channels": 2, "conditioning": spec}
    return abstract_backbone(case.split()[0], **context, **SMALLEST[case], **options)


def arbitrary(model):
    """A model of shapes, with arbitrary weights."""
    rng = np.random.default_rng(0)

    def weights(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) / max(leaf.size, 9) ** 0.25, jnp.float32)

    return jax.tree.map(weights, model)


@functools.cache
def told(case):
    """A model of arbitrary weights that is told all it can be, its call, and the arguments of one."""
    spec, rng = takes(case), np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    model = arbitrary(abstract(case, spec))
    cond = Conditioning(label=jnp.array([0, CLASSES]), vector=normal(2, 5), image=normal(2, 8, 8, 2))
    if spec.token_length:
        mask = jnp.array([[True, True, False, False], [True, True, True, False]])
        cond = cond._replace(tokens=normal(2, 4, 6), token_mask=mask)
    x, timestep = normal(2, *SHAPE), jnp.array([3.0, 500.0])
    return model, jax.jit(lambda cond: model(x, timestep, cond)), cond


def test_every_backbone_is_covered():
    assert {case.split()[0] for case in SMALLEST} == BACKBONES.keys()


@EVERY
def test_every_part_is_heard(case):
    _, call, cond = told(case)
    out = call(cond)
    assert out.shape == (2, 8, 8, 2) and out.dtype == jnp.float32 and np.all(np.isfinite(out))
    for part in takes(case).parts:
        value = getattr(cond, part)
        changed = jnp.array([1, 2]) if part == "label" else value.at[:, 0].multiply(-1)
        moved = np.abs(call(cond._replace(**{part: changed})) - out).max((1, 2, 3))
        assert np.all(moved > 1e-4), (part, moved)


@EVERY
def test_each_part_alone_is_built_and_called(case):
    for part, spec in SPECS.items():
        if part in takes(case).parts:
            x, timestep = jax.ShapeDtypeStruct((2, *SHAPE), "float32"), jax.ShapeDtypeStruct((2,), "float32")
            call = functools.partial(jax.eval_shape, lambda model, *inputs: model(*inputs), abstract(case, spec))
            assert call(x, timestep, spec.example(2, 8, 8)).shape == (2, 8, 8, 2)
            if part != "image":
                with pytest.raises(ValueError, match=rf"without cond\.{part}"):
                    call(x, timestep, Conditioning())


@pytest.mark.parametrize("case", [case for case in SMALLEST if "tokens" in takes(case).parts])
def test_masked_tokens_have_no_influence(case):
    _, call, cond = told(case)
    hidden = cond._replace(tokens=jnp.where(cond.token_mask[..., None], cond.tokens, 9 * cond.tokens[::-1]))
    np.testing.assert_allclose(call(hidden), call(cond), atol=1e-5)
    everything = call(cond._replace(token_mask=jnp.ones((2, 4), bool)))
    assert np.all(np.abs(everything - call(cond)).max((1, 2, 3)) > 1e-4)
    np.testing.assert_allclose(everything, call(cond._replace(token_mask=None)), atol=1e-5)
    # A row all False is the null condition of a text: nothing of the tokens is left, and all is finite.
    null = call(cond._replace(token_mask=jnp.zeros((2, 4), bool)))
    other = call(cond._replace(token_mask=jnp.zeros((2, 4), bool), tokens=9 * cond.tokens[::-1]))
    assert np.all(np.isfinite(null)) and np.all(np.abs(null - call(cond)).max((1, 2, 3)) > 1e-4)
    np.testing.assert_allclose(null, other, atol=1e-5)


@EVERY
def test_what_is_lacked_is_refused_when_it_is_built(case):
    with pytest.raises(UserError, match=r"takes only label, tokens, vector, the conditioner provides second_time: "):
        abstract(case, ConditioningSpec(second_time=True, image_channels=2))


@pytest.mark.parametrize("block", ["adaln_zero", "adaln"])
def test_designs_without_a_sequence_name_those_that_take_tokens(block):
    message = (
        rf"^model\.block='{block}' cannot take the tokens .* set model\.block to 'cross_attention' or 'in_context'"
    )
    context = {"input_shape": SHAPE, "out_channels": 2, "conditioning": SPECS["tokens"]}
    with pytest.raises(UserError, match=message):
        abstract_backbone("dit", **context, **VIT, block=block)


@EVERY
def test_what_embeds_the_condition_is_split_over_the_mesh(case):
    model = abstract(case, takes(case))
    rules = BACKBONES[case.split()[0]].partition_rules
    shardings = make_shardings(model, rules, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    specs = {path_name(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)}
    embedders = [name for name in specs if "_embed/" in name and name.endswith(("kernel", "embedding"))]
    assert any("vector_embed" in name for name in embedders) and any("label_embed" in name for name in embedders)
    whole = [name for name in embedders if specs[name] == PartitionSpec() and "patch_embed" not in name]
    assert not whole


def test_a_model_without_image_and_encoder_has_no_wrapper():
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract("dit", UNCONDITIONAL))]
    assert names and not [name for name in names if name.startswith("backbone/") or "context" in name]


class TwoTimes(nnx.Module):
    """A backbone of one's own that is told two times, as a flow map is."""

    sequence_length = 64

    def __init__(self, *, input_shape, out_channels, conditioning, rngs):
        conditioning.check("two_times", frozenset({"second_time"}))
        self.channels = input_shape[-1]
        self.linear = nnx.Linear(self.channels, out_channels, rngs=rngs)

    def __call__(self, x, timestep, cond):
        assert x.shape[-1] == self.channels and cond.image is None
        return self.linear(x) * (timestep - cond.second_time)[:, None, None, None]


def test_a_backbone_of_ones_own_gets_a_second_time_and_an_image():
    spec = ConditioningSpec(image_channels=2, second_time=True)
    assert spec.parts == {"image", "second_time"} and spec.example(3, 8, 8).second_time.shape == (3,)
    assert spec.backbone_shape(SHAPE) == (8, 8, 3)
    make = functools.partial(TwoTimes, out_channels=1, rngs=nnx.Rngs(0))
    model = conditioned(make, SHAPE, spec)
    assert isinstance(model, Conditioned) and model.encoder is None and model.sequence_length == 64
    x, image, time = jnp.ones((2, *SHAPE)), jnp.ones((2, 8, 8, 2)), jnp.array([1.0, 2.0])
    out = model(x, time, Conditioning(image=image, second_time=jnp.array([1.0, 0.5])))
    assert out.shape == (2, 8, 8, 1) and not np.any(out[0]) and np.any(out[1])
    assert isinstance(conditioned(make, SHAPE, ConditioningSpec(second_time=True)), TwoTimes)
    with pytest.raises(UserError, match="'two_times' takes only second_time, the conditioner provides label"):
        conditioned(make, SHAPE, spec._replace(num_classes=2))


def test_an_encoder_comes_before_the_concatenation():
    """Class tokens for a DiT that attends to them, beside an image, and its projector behind the wrapper."""
    conditioner = ClassTokenConditioner(CLASSES, width=6)
    spec = conditioner.spec._replace(image_channels=2)
    options = {**SMALLEST["dit cross_attention"], "depth": 1, "repa_depth": 1, "repa_width": 5, "repa_hidden": 8}

    def init(key):
        make = functools.partial(BACKBONES["dit"], out_channels=2, **options, rngs=nnx.Rngs(key))
        return conditioned(make, SHAPE, spec, conditioner.encoder(nnx.Rngs(key)))

    model = arbitrary(jax.eval_shape(init, jax.random.key(0)))
    names = {path_name(path).split("/")[0] for path, _ in jax.tree_util.tree_leaves_with_path(model)}
    assert names == {"backbone", "encoder"}
    cond = Conditioning(label=jnp.array([0, CLASSES]), image=jnp.ones((2, 8, 8, 2)))
    out, projected = jax.jit(model.project)(jnp.ones((2, *SHAPE)), jnp.ones(2), cond)
    assert out.shape == (2, 8, 8, 2) and projected.shape == (2, 4, 5)
    assert np.abs(projected[0] - projected[1]).max() > 0
