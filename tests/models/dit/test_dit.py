"""DiT against the official code, the published figures and its own initialisation rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.diffusion.denoiser import reversed_time
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.paths import LinearPath
from diffusion_jax.errors import UserError
from diffusion_jax.interop.backbones import fill_backbone
from diffusion_jax.interop.dit import dit_entries
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.interop.sit import sit_state_dict
from diffusion_jax.models.backbones import abstract_backbone, backbone_macs
from diffusion_jax.models.conditioning.parts import UNCONDITIONAL, Conditioning, ConditioningSpec
from diffusion_jax.models.dit.blocks import modulate
from diffusion_jax.models.dit.dit import DiT, dit_config
from diffusion_jax.models.layers.embeddings import sincos_2d, timestep_features
from diffusion_jax.models.presets import PRESETS

PUBLISHED = {  # preset: (parameters, Gflops as published, one multiply-add each)
    "dit-s/8": (33_142_016, 0.36),
    "dit-s/4": (32_920_448, 1.41),
    "dit-s/2": (32_865_056, 6.06),
    "dit-b/8": (130_869_248, 1.42),
    "dit-b/4": (130_426_496, 5.56),
    "dit-b/2": (130_315_808, 23.01),
    "dit-l/8": (458_578_432, 5.01),
    "dit-l/4": (457_988_224, 19.70),
    "dit-l/2": (457_840_672, 80.71),
    "dit-xl/8": (675_664_640, 7.39),
    "dit-xl/4": (675_000_704, 29.05),
    "dit-xl/2": (674_834_720, 118.64),
    "dit-xl/2-512": (674_834_720, 524.60),
    "dit-xl/2-in-context": (449_162_528, 119.37),
    "dit-xl/2-cross-attention": (597_991_712, 137.62),
    "dit-xl/2-adaln": (600_452_384, 118.56),
}


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_and_flops(name):
    parameters, gflops = PUBLISHED[name]
    preset = PRESETS[name]
    model = preset.abstract()
    assert count(model) == parameters
    macs = backbone_macs(model, preset.input_shape, preset.conditioning)
    # The paper prints two decimals, so half a unit of the last one cannot be resolved.
    assert abs(macs / 1e9 - gflops) <= max(1e-3 * gflops, 0.005 + 1e-6)


def test_models_with_a_velocity_head_have_the_size_of_dit():
    width, depth, head = 1152, 28, 72
    outputs = 4 * 4 * (width + 1)  # a DiT has as many again for its variance
    assert count(PRESETS["sit-xl/2"].abstract()) == 674_834_720 - outputs
    gains = (2 * depth + 1) * width
    biases = depth * 2 * (3072 - 2304)  # SwiGLU has 6144 + 1152 biases a block, the MLP 4608 + 1152
    assert count(PRESETS["lightningdit-xl/2"].abstract()) == 674_834_720 - outputs + gains + biases
    assert count(PRESETS["dit-modern-xl/2"].abstract()) == 674_834_720 - outputs + gains + biases + depth * 2 * head
    assert count(PRESETS["lightningdit-xl/1"].abstract()) == pytest.approx(675e6, rel=1e-3)


def abstract(**options):
    context = {"input_shape": (32, 32, 4), "out_channels": 8, "conditioning": UNCONDITIONAL}
    return abstract_backbone("dit", **context, **options)


def from_golden(data, **options):
    """The model of a golden file with its weights."""
    kw = data["config"]["kwargs"]
    side, channels = kw["input_size"], kw["in_channels"]
    options = {"out_channels": 2 * channels if kw["learn_sigma"] else channels, **options}
    model = jax.eval_shape(
        lambda: DiT(
            input_shape=(side, side, channels),
            conditioning=ConditioningSpec(num_classes=kw["num_classes"], null_class=kw["class_dropout_prob"] > 0),
            depth=kw["depth"],
            width=kw["hidden_size"],
            heads=kw["num_heads"],
            patch_size=kw["patch_size"],
            mlp_ratio=kw["mlp_ratio"],
            **options,
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
    out, acts = jax.jit(forward_with_activations)(model, x, t, Conditioning(label=y))
    assert_close(out, np.moveaxis(data["out/forward"], 1, -1))
    compared = {name for name in acts if f"out/act/{name}" in data}
    assert compared >= {"x_embedder", "t_embedder", "y_embedder", "blocks.0", "final_layer"}
    for name in compared:
        assert_close(acts[name][:1], data[f"out/act/{name}"])


def forward_with_activations(model, x, t, cond):
    """The output, and what the official modules of these names give on the way."""
    tokens, c = model.embed(x, t, cond)
    acts = {
        "x_embedder": tokens - sincos_2d(*model.grid, model.width),
        "t_embedder": model.time_embed(t),
        "y_embedder": model.label_embed(cond.label),
    }
    for i in range(model.depth):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks)
        acts[f"blocks.{i}.adaLN_modulation"] = block.modulation(c)
        shift, scale, *_ = jnp.split(block.modulation(c), 6, axis=-1)
        acts[f"blocks.{i}.attn"] = block.attn(modulate(block.norm1(tokens), shift, scale))
        tokens = acts[f"blocks.{i}"] = block(tokens, c)
    acts["final_layer"] = model.final(tokens, c)
    return model(x, t, cond), acts


@pytest.mark.parametrize("name", ["dit_p2", "sit_model"])
def test_guidance_agrees_with_the_official_code(golden, name):
    data = golden(name)
    model, _ = from_golden(data)
    half = len(data["in/cfg_x"]) // 2
    x, t, y = nhwc(data["in/cfg_x"])[:half], data["in/cfg_t"][:half], data["in/cfg_y"].astype(np.int32)
    point = LinearPath().point(jnp.zeros(half))._replace(timestep=jnp.asarray(t, jnp.float32))
    plain = jax.jit(model.__call__)(x, point.timestep, Conditioning(label=y[:half]))
    for scale in data["config"]["cfg_scales"]:
        guidance = ClassifierFreeGuidance(scale, guided_channels="first3")
        guided = guidance(jax.jit(model.__call__), Conditioning(label=y[:half]), Conditioning(label=y[half:]))
        out, theirs = guided(x, point), np.moveaxis(data[f"out/forward_with_cfg/{scale}"][:half], 1, -1)
        # SiT guides with all its channels and then drops those beyond the velocity.
        assert_close(out[..., : theirs.shape[-1]], theirs)
        np.testing.assert_allclose(out[..., 3:], plain[..., 3:], atol=1e-5)


def test_sit_agrees_with_the_official_code(golden):
    data = golden("sit_model")
    model, weights = from_golden(data)
    x, t, y = nhwc(data["in/x"]), jnp.asarray(data["in/t"]), jnp.asarray(data["in/y"], jnp.int32)
    theirs = np.moveaxis(data["out/forward"], 1, -1)
    assert_close(jax.jit(model.__call__)(x, t, Conditioning(label=y))[..., :4], theirs)

    ours, _ = from_golden({**data, **{f"w/{k}": v for k, v in sit_state_dict(weights).items()}}, out_channels=4)
    assert_close(-ours(x, 1 - t, Conditioning(label=y)), theirs)
    want = reversed_time(lambda *arguments: model(*arguments)[..., :4])
    assert_close(ours(x, t, Conditioning(label=y)), np.asarray(want(x, t, Conditioning(label=y))))


def test_official_names_round_trip_bit_for_bit(golden):
    model, weights = from_golden(golden("dit_p2"))
    ours = dump_state_dict(model, dit_entries(model))
    assert ours.keys() == weights.keys() - {"pos_embed"}
    assert all(np.array_equal(ours[name], weights[name]) for name in ours)


def test_weights_of_another_grid_load_with_its_positions(golden):
    data = golden("dit_p2")
    small, _ = from_golden(data)
    data["config"]["kwargs"]["input_size"] = 16
    with pytest.raises(UserError, match=r"set model\.base_grid to the grid of the weights"):
        from_golden(data)
    large, _ = from_golden(data, base_grid=(4, 4))
    x, cond = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32), Conditioning(label=np.ones(1, int))
    patches = []
    for model, image in ((small, x), (large, np.tile(x, (1, 2, 2, 1)))):
        tokens, _ = model.embed(image, np.ones(1), cond)
        patches.append((tokens - sincos_2d(*model.grid, 64, (4, 4))).reshape(*model.grid, 64))
    np.testing.assert_allclose(np.tile(patches[0], (2, 2, 1)), patches[1], atol=1e-5)


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

    @jax.jit
    def init():
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

    return init()


def test_output_is_zero_and_blocks_are_the_identity_at_the_start(fresh):
    @jax.jit
    def run(model, x, t, cond):
        tokens, c = model.embed(x, t, cond)
        return model(x, t, cond), tokens, jax.tree.map(lambda leaf: leaf[1], model.blocks)(tokens, c)

    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    out, before, after = run(fresh, x, jnp.array([3.0, 500.0]), Conditioning(label=jnp.array([1, 10])))
    assert not np.any(out)
    assert np.array_equal(before, after)


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


def test_class_embeddings_start_as_wide_as_asked(fresh):
    options = {"depth": 1, "width": 64, "heads": 4, "patch_size": 2, "label_std": 1.0}
    spec = ConditioningSpec(num_classes=10, null_class=True)
    model = DiT(input_shape=(8, 8, 4), out_channels=4, conditioning=spec, **options, rngs=nnx.Rngs(0))
    wide, official = (model.label_embed.table.embedding[...] for model in (model, fresh))
    assert np.std(wide) == pytest.approx(1.0, rel=0.1)
    np.testing.assert_allclose(wide, official * 50, rtol=1e-5, err_msg="the same draw")


def test_modulation_learns_only_after_the_head_has_moved(fresh):
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    cond = Conditioning(label=jnp.array([1, 2]))

    @jax.jit
    @jax.grad
    def slope(model):
        return jnp.mean((model(x, jnp.array([3.0, 500.0]), cond)[..., :4] - x) ** 2)

    gradient = slope(fresh)
    assert not np.any(gradient.blocks.modulation.kernel)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, fresh, gradient)
    assert np.any(slope(moved).blocks.modulation.kernel)


def test_rematerialisation_changes_no_gradient(golden):
    model, _ = from_golden(golden("dit_p2"))
    x, t = jnp.ones((2, 8, 8, 4)), jnp.array([10.0, 20.0])

    def gradient(model):
        return jax.jit(jax.grad(lambda m: jnp.mean(m(x, t, Conditioning(label=jnp.array([0, 1]))) ** 2)))(model)

    want = gradient(model)
    for policy in ("dots", "full"):
        model.remat = policy
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(gradient(model)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters(golden):
    data = golden("dit_p2")
    model, _ = from_golden(data)
    args = (nhwc(data["in/x"]), jnp.asarray(data["in/t"], jnp.float32), Conditioning(label=jnp.asarray(data["in/y"])))
    half = abstract_backbone(
        "dit",
        input_shape=(8, 8, 4),
        out_channels=8,
        conditioning=ConditioningSpec(num_classes=10, null_class=True),
        depth=2,
        width=64,
        heads=4,
        dtype="bfloat16",
        residual_dtype="bfloat16",
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    half = jax.tree.unflatten(jax.tree.structure(half), jax.tree.leaves(model))
    assert half.embed(*args)[0].dtype == jnp.bfloat16
    run = jax.jit(lambda model, *args: model(*args))
    out, want = run(half, *args), run(model, *args)
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
    with pytest.raises(UserError, match="rope needs heads of a width divisible by 4, not 6"):
        abstract(width=96, heads=16, rope=True)
    with pytest.raises(UserError, match=r"base_grid=\(0, 4\): rows and columns"):
        abstract(base_grid=(0, 4))
    with pytest.raises(UserError, match=r"repa_depth=29: must be 0 \(none\) or one of the 28 blocks"):
        abstract(repa_depth=29)
    with pytest.raises(UserError, match=r"modulation_shift=False: block 'in_context' has no modulation"):
        abstract(block="in_context", modulation_shift=False)
