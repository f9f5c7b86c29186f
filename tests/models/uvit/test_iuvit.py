"""IU-ViT: published counts, its ablation down to U-ViT, the head, the two routes of the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.interop.mapping import parameter_paths
from diffusion_jax.models.backbones import abstract_backbone
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec
from diffusion_jax.models.conditioning.text_features import Text
from diffusion_jax.models.presets import preset
from diffusion_jax.models.presets.preset import Preset
from diffusion_jax.models.uvit.iuvit import RearrangeFirstHead
from diffusion_jax.models.uvit.uvit import UViT
from diffusion_jax.parallel.partition import path_name

PUBLISHED = {  # preset: parameters with affine norms in the feed-forward, and without
    "iuvit-cifar10": (45_150_595, 45_044_099),
    "iuvit-celeba64": (45_166_435, 45_059_939),
    "iuvit-celeba128": (442_337_877, 441_954_901),
    "iuvit-lsun-church256": (527_081_637, 526_663_845),
    "iuvit-lsun-church256-wide": (935_559_387, 935_002_331),
    "iuvit-text64": (307_716_803, 307_438_275),
}


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def with_options(name, **options):
    model = preset(name)
    return Preset(
        model.backbone, {**model.options, **options}, model.input_shape, model.out_channels, model.conditioning
    ).abstract()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_and_tokens(name):
    affine, plain = PUBLISHED[name]
    model = preset(name).abstract()
    assert count(model) == affine
    assert count(with_options(name, ffn_norm_affine=False)) == plain
    assert model.embed.grid == (16, 16)
    # The paper prints whole millions: cut with affine norms, rounded without.
    assert preset(name).published == f"{affine // 10**6} M" == f"{round(plain / 1e6)} M"


def test_smaller_patches_make_more_tokens_of_the_same_weights():
    model = preset("iuvit-lsun-church256-patch8").abstract()
    assert model.embed.grid == (32, 32) and model.sequence_length == 1025 and count(model) == 527_377_035


def test_the_ablation_leads_from_uvit_to_iuvit():
    changes = {
        "time_mlp_ratio": (1.0, 525_312),
        "ffn": ("dwconv", 372_736),
        "head": ("rearrange", -2_781),
    }
    options = {"time_mlp_ratio": 0.0, "ffn": "mlp", "head": "linear"}
    parameters = count(with_options("iuvit-cifar10", **options))
    assert parameters == 44_255_328
    for key, (value, difference) in changes.items():
        options[key] = value
        parameters += difference
        assert count(with_options("iuvit-cifar10", **options)) == parameters
    assert parameters == 45_150_595


def test_wide_text_features_are_projected_first():
    t5 = preset("iuvit-text64")
    wide = Preset(t5.backbone, t5.options, t5.input_shape, 3, t5.conditioning._replace(token_width=4096))
    assert count(wide.abstract()) - 307_716_803 == 4096 * 1024 + 1024


SIZES = {"depth": 3, "width": 32, "heads": 2, "patch_size": 2}
TEXT = ConditioningSpec(token_length=5, token_width=12)


def make(conditioning=UNCONDITIONAL, **options):
    """A small model with no parameter at its starting value."""
    model = abstract_backbone(
        "iuvit", input_shape=(8, 8, 3), out_channels=3, conditioning=conditioning, **{**SIZES, **options}
    )
    rng = np.random.default_rng(5)

    def draw(path, leaf):
        values = 0.15 * rng.normal(size=leaf.shape) + (path_name(path).endswith("scale"))
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, model)


X = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
TIMESTEP = np.array([3.0, 500.0, 900.5], np.float32)


def test_without_its_improvements_it_computes_what_uvit_does():
    labels = ConditioningSpec(num_classes=4)
    ours = make(labels, head="linear", ffn="mlp", time_mlp_ratio=0.0)
    abstract = abstract_backbone("uvit", input_shape=(8, 8, 3), out_channels=3, conditioning=labels, **SIZES)
    leaves = parameter_paths(ours)
    uvit: UViT = jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], abstract)
    arguments = (X, TIMESTEP, Conditioning(label=jnp.arange(3)))
    out, want = jax.jit(lambda a, b: (a(*arguments), b(*arguments)))(ours, uvit)
    np.testing.assert_allclose(out, want, atol=1e-5)


def test_a_pixel_comes_from_the_token_it_lies_in():
    """With the centre of the kernel alone, a pixel is D/p² of its own token's features."""
    grid, patch = (3, 4), 2
    head = RearrangeFirstHead(grid, 8, patch, 3, rngs=nnx.Rngs(0))
    centre = jax.random.normal(jax.random.key(1), (2, 3))
    head.conv.kernel[...] = jnp.zeros((3, 3, 2, 3)).at[1, 1].set(centre)
    tokens = jax.random.normal(jax.random.key(2), (2, 1 + 12, 8))
    image, normed = head(tokens), np.asarray(head.norm(tokens))[:, 1:]
    assert image.shape == (2, 6, 8, 3)
    for row, column in np.ndindex(6, 8):
        token = normed[:, row // patch * grid[1] + column // patch].reshape(2, patch, patch, 2)
        want = token[:, row % patch, column % patch] @ centre + head.conv.bias[...]
        np.testing.assert_allclose(image[:, row, column], want, atol=1e-6)


@pytest.fixture(scope="module")
def text_model():
    return make(TEXT, text_width=8)


@pytest.fixture(scope="module")
def run():
    return jax.jit(lambda model, cond: model(X, TIMESTEP, cond))


@pytest.fixture(scope="module")
def cond():
    """Texts of 5, 2 and no tokens, padded by zeros."""
    mask = np.arange(5) < np.array([[5], [2], [0]])
    tokens = np.random.default_rng(1).normal(size=(3, 5, 12)).astype(np.float32) * mask[..., None]
    return Conditioning(tokens=jnp.asarray(tokens), token_mask=jnp.asarray(mask))


def difference(a, b):
    """The largest difference of each sample."""
    return np.abs(np.asarray(a) - np.asarray(b)).max((1, 2, 3))


def test_a_block_attends_to_the_image_then_to_the_text(text_model):
    block = text_model.trunk.middle
    x = jax.random.normal(jax.random.key(1), (2, 17, 32))
    text = jax.random.normal(jax.random.key(2), (2, 5, 8))

    def by_hand(block):
        y = x + block.attn(block.norm1(x))
        y = y + block.cross(block.norm_cross(y), text)
        return y + block.ffn(block.norm2(y))

    out, want, still = jax.jit(lambda b: (b(x, Text(text, None)), by_hand(b), b(x, Text(2 * text, None))))(block)
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert np.abs(out - still).max() > 1e-2


def test_the_text_reaches_time_token_and_blocks(text_model, cond):
    embed, text = text_model.embed, text_model.text

    def by_hand(model):
        time, routed = model.text(embed.time(TIMESTEP, cond), cond)
        tokens = model.embed(X, time, cond)
        x = jax.tree.map(lambda leaf: leaf[0], model.trunk.down)(tokens, routed)
        x, skip = model.trunk.middle(x, routed), x
        x = jax.tree.map(lambda leaf: leaf[0], model.trunk.up)(x, skip, routed)
        return model.head(x), tokens[:, 0]

    out, (want, time_token) = jax.jit(lambda model: (model(X, TIMESTEP, cond), by_hand(model)))(text_model)
    np.testing.assert_allclose(out, want, atol=1e-5)
    halves = time_token - embed.positions[...][0]
    np.testing.assert_allclose(halves[:, :16], text.time_half(embed.time(TIMESTEP, cond)), atol=1e-5)


def test_a_sample_without_text_is_blind_to_its_tokens(text_model, run, cond):
    out = run(text_model, cond)
    other = run(text_model, cond._replace(tokens=cond.tokens + jnp.arange(12.0)))
    assert (difference(out, other) > [1e-2, 1e-2, -1]).all() and difference(out, other)[2] == 0
    null = run(text_model, cond._replace(token_mask=jnp.zeros((3, 5), bool)))
    assert (difference(out, null)[:2] > 1e-2).all() and difference(out, null)[2] < 1e-5


def test_padding_takes_part_unless_it_is_masked(text_model, run, cond):
    out = run(text_model, cond)
    whole = cond._replace(token_mask=None)
    assert difference(out, run(text_model, whole))[:2].max() < 1e-5 < 1e-2 < difference(out, run(text_model, whole))[2]

    masking = make(TEXT, text_width=8, text_mask_padding=True)
    masked = run(masking, cond)
    gap = difference(masked, out)
    assert gap[0] < 1e-5 and gap[2] < 1e-5 and gap[1] > 1e-2
    padded = jnp.where(cond.token_mask[..., None], cond.tokens, 7.0)
    assert difference(masked, run(masking, cond._replace(tokens=padded))).max() < 1e-5


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(text_model, run, cond):
    half = make(TEXT, text_width=8, dtype="bfloat16", residual_dtype="bfloat16")
    abstract = abstract_backbone(
        "iuvit", input_shape=(8, 8, 3), out_channels=3, conditioning=TEXT, **SIZES, dtype="bfloat16"
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    out, want = run(half, cond), run(text_model, cond)
    assert out.dtype == jnp.float32
    assert 1e-4 < np.abs(out - want).max() / np.std(want) < 0.2


def test_mistakes_are_named(text_model):
    context = {"input_shape": (16, 16, 3), "out_channels": 3, "conditioning": UNCONDITIONAL}
    with pytest.raises(UserError, match=r"model\.width=72 must be divisible by 16, .* model\.head='linear'"):
        abstract_backbone("iuvit", **context, width=72, heads=4, patch_size=4)
    abstract_backbone("iuvit", **context, width=72, heads=4, patch_size=4, head="linear")
    with pytest.raises(UserError, match=r"model\.width=72 must be even and divisible by model\.heads=7"):
        abstract_backbone("iuvit", **context, width=72, heads=7)
    with pytest.raises(UserError, match=r"model\.depth=4 must be odd"):
        abstract_backbone("iuvit", **context, depth=4)
    with pytest.raises(
        UserError, match="model 'iuvit' takes only label, tokens, vector, the conditioner provides second_time"
    ):
        abstract_backbone("iuvit", **{**context, "conditioning": ConditioningSpec(second_time=True)})
    with pytest.raises(ValueError, match=r"a model of tokens was called without cond\.tokens"):
        text_model(X, TIMESTEP, Conditioning())
