"""Muon: which parameters it takes for matrices, what it does to them, and that a mesh does not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.config import complete
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.models.backbones import abstract_backbone
from diffusion_jax.models.conditioning.parts import ConditioningSpec
from diffusion_jax.optim.hidden_matrices import hidden_matrices
from diffusion_jax.optim.optimizer import OPTIMIZERS
from diffusion_jax.parallel.create import shardings_of
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh, replicated, to_global
from diffusion_jax.parallel.partition import path_name
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.smoke import tiny_options
from diffusion_jax.training.diffusion_state import abstract_state, new_state
from diffusion_jax.training.diffusion_step import make_train_step

LABELS, NOTHING = ConditioningSpec(num_classes=10), ConditioningSpec()

# (independent matrices, rows, columns) of each kernel; 0 where AdamW has it.
EXPECTED = {
    ("dit", "blocks/attn/qkv/kernel"): (2 * 3, 32, 32),
    ("dit", "blocks/attn/proj/kernel"): (2, 32, 32),
    ("dit", "blocks/mlp/fc1/kernel"): (2, 32, 128),
    ("dit", "blocks/mlp/fc2/kernel"): (2, 128, 32),
    ("dit", "blocks/modulation/kernel"): (2, 32, 192),
    ("dit", "final/modulation/kernel"): 0,
    ("dit", "blocks/attn/qkv/bias"): 0,
    ("dit", "patch_embed/kernel"): 0,
    ("dit", "final/linear/kernel"): 0,
    ("dit", "label_embed/table/embedding"): 0,
    ("dit", "time_embed/fc2/kernel"): 0,
    ("unet", "encoder/conv_in/kernel"): 0,
    ("unet", "decoder/conv_out/kernel"): 0,
    ("unet", "encoder/levels/0/blocks/0/res/conv1/kernel"): (1, 9 * 16, 16),
    ("unet", "encoder/levels/0/blocks/0/res/embedding/kernel"): 0,
    ("unet", "encoder/levels/0/downsampler/conv/kernel"): (1, 9 * 16, 16),
    ("unet", "encoder/levels/1/blocks/0/res/shortcut/kernel"): (1, 16, 32),
    ("unet", "encoder/mid1/attention/attn/qkv/kernel"): (3, 32, 32),
    ("unet", "encoder/mid1/attention/attn/proj/kernel"): (1, 32, 32),
    ("uvit", "trunk/up/skip/kernel"): (1, 64, 32),
    ("uvit", "trunk/middle/attn/qkv/kernel"): (3, 32, 32),
    ("uvit", "trunk/down/attn/qkv/kernel"): (3, 32, 32),
    ("uvit", "head/linear/kernel"): 0,
    ("iuvit", "trunk/middle/ffn/depthwise/kernel"): 0,
    ("iuvit", "trunk/down/ffn/fc2/kernel"): (1, 128, 32),
    ("ascend", "encoder/0/stack/shifted/attn/attn/qkv/kernel"): (3, 32, 32),
    ("ascend", "encoder/0/stack/regular/attn/relative_bias"): 0,
    ("ascend", "middle/block1/conv2/kernel"): (1, 9 * 32, 32),
    ("ascend", "downsamplers/0/layer/linear/kernel"): (1, 128, 32),
}


@pytest.fixture(scope="module")
def shapes():
    """Shapes of all parameters and their axes, by (backbone, name)."""
    found = {}
    for backbone in ("dit", "unet", "uvit", "iuvit", "ascend"):
        conditioning = NOTHING if backbone in ("iuvit", "ascend") else LABELS
        options = tiny_options(backbone)
        model = abstract_backbone(backbone, input_shape=(8, 8, 1), out_channels=1, conditioning=conditioning, **options)

        def note(path, leaf, numbers, backbone=backbone):
            found[backbone, path_name(path)] = leaf.shape, numbers

        jax.tree_util.tree_map_with_path(note, model, hidden_matrices(model))
    return found


@pytest.mark.parametrize("where", EXPECTED, ids="/".join)
def test_the_axes_of_a_matrix(shapes, where):
    shape, numbers = shapes[where]
    if not EXPECTED[where]:
        assert numbers is None
        return
    rows, columns = (np.prod([shape[a] for a in axes]) for axes in numbers)
    assert (np.prod(shape) // (rows * columns), rows, columns) == EXPECTED[where]
    assert max(numbers.reduction_axis) < min(numbers.output_axis), "what is summed over comes first"


def test_gates_are_matrices_of_their_own():
    options = tiny_options("dit") | {"mlp": "swiglu"}
    model = abstract_backbone("dit", input_shape=(8, 8, 1), out_channels=1, conditioning=LABELS, **options)
    numbers = hidden_matrices(model).blocks.mlp.w12.kernel.get_value()
    assert (numbers.reduction_axis, numbers.output_axis) == ((1,), (3,))


def singular_values(update, numbers):
    """Of each independent matrix, [matrices, min(rows, columns)]."""
    batch = [a for a in range(update.ndim) if a not in (*numbers.reduction_axis, *numbers.output_axis)]
    moved = np.transpose(update, (*batch, *numbers.reduction_axis, *numbers.output_axis))
    rows, columns = (int(np.prod([update.shape[a] for a in axes])) for axes in numbers)
    return np.linalg.svd(moved.reshape(-1, rows, columns))


@pytest.mark.parametrize("shape", [(3, 3, 4, 16), (24, 40), (2, 16, 3, 2, 8)], ids=str)
def test_the_first_step_is_the_orthogonal_factor_of_the_gradient(shape):
    name = "qkv" if len(shape) == 5 else "conv1"
    params = {name: {"kernel": jnp.zeros(shape)}, "other": {"bias": jnp.zeros(3)}}
    gradient = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.ndim), leaf.shape), params)
    optimizer, rate = OPTIMIZERS["muon"](lr=2e-3)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    numbers = hidden_matrices(params)[name]["kernel"]
    u, scale, v = singular_values(np.asarray(updates[name]["kernel"]), numbers)
    want_u, _, want_v = singular_values(np.asarray(gradient[name]["kernel"]), numbers)
    rows, columns = want_u.shape[-1], want_v.shape[-1]
    rank = min(rows, columns)
    factor = want_u[..., :rank] @ want_v[:, :rank]
    ours = (u[..., :rank] * scale[:, None]) @ v[:, :rank] / (-0.2 * np.sqrt(max(rows, columns)) * rate(0))
    # Five iterations take singular values to 0.7 … 1.2, not to 1.
    cosine = (ours * factor).sum((1, 2)) / np.linalg.norm(ours, axis=(1, 2)) / np.linalg.norm(factor, axis=(1, 2))
    assert cosine.min() > 0.97
    assert (scale / (0.2 * np.sqrt(max(rows, columns)) * rate(0))).min() > 0.6
    assert (scale / (0.2 * np.sqrt(max(rows, columns)) * rate(0))).max() < 1.3
    # The bias gets the first step of AdamW with Nesterov's momentum (Dozat 2016), of β₁ = 0.9.
    nesterov = 0.9 * (1 - 0.9) / (1 - 0.9**2) + 1
    np.testing.assert_allclose(
        updates["other"]["bias"], -2e-3 * nesterov * np.sign(gradient["other"]["bias"]), rtol=1e-4
    )


def test_a_usual_entry_moves_as_far_as_adamw_moves_it():
    params = {"conv1": {"kernel": jnp.zeros((64, 256))}}
    gradient = {"conv1": {"kernel": jax.random.normal(jax.random.key(0), (64, 256))}}
    optimizer, _ = OPTIMIZERS["muon"](lr=1.0)
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    assert np.sqrt(np.mean(np.square(update["conv1"]["kernel"]))) == pytest.approx(0.2, rel=0.15)


def train(mesh, steps=6, **optimizer_options):
    """Losses of a tiny DiT on random pixels, and its parameters."""
    config = {
        "data": {"name": "digits", "image_size": 8, "channels": 1},
        "conditioner": {"name": "class", "label_drop": 0.1},
        "autoencoder": {"name": "identity"},
        "model": {"name": "dit", **tiny_options("dit")},
        "path": {"name": "linear"},
        "prediction": {"kind": "velocity"},
        "loss": {"name": "flow_matching"},
        "ema": {"name": "constant", "max_decay": 0.9},
        "optimizer": {"name": "muon", "lr": 3e-3, **optimizer_options},
        "train": {"steps": steps, "batch_size": 16},
        "sampler": {"name": "ddim"},
        "guidance": {"name": "cfg"},
    }
    system = DiffusionSystem(complete(config, DIFFUSION_SCHEMA), DatasetFacts(10, tuple("0123456789"), "random pixels"))
    optimizer, _ = system.build("optimizer")
    abstract = abstract_state(system, optimizer, mesh)
    state = new_state(system, optimizer, abstract)
    step = jax.jit(make_train_step(system, optimizer, mesh), out_shardings=(shardings_of(abstract), replicated(mesh)))
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8),
        "label": generator.integers(0, 10, 16, dtype=np.int32),
    }
    losses = []
    with jax.set_mesh(mesh):
        batch = to_global(mesh, 16, batch)
        for _ in range(steps):
            state, metrics = step(state, system.load_frozen(), batch)
            losses.append(float(metrics["loss"]))
    return np.array(losses), state


@pytest.fixture(scope="module")
def alone():
    return train(make_mesh(MeshConfig(), jax.devices()[:1]))


def test_eight_devices_equal_one(alone):
    losses, state = train(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    models = jax.device_get((state.model, alone[1].model))
    for ours, want in zip(*map(jax.tree.leaves, models), strict=True):
        assert np.linalg.norm(ours - want) <= 1e-4 * max(np.linalg.norm(want), 1.0)
    momenta = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer)
        if path_name(path).endswith("mu/blocks/mlp/fc1/kernel")
    ]
    assert [leaf.addressable_shards[0].data.size * 4 for leaf in momenta] == [momenta[0].size], "split like the kernel"


def test_matrices_decay_as_the_rest_does():
    zero = jax.tree.map(jnp.zeros_like, params := {"conv1": {"kernel": jnp.ones((4, 4))}, "bias": jnp.ones(4)})
    optimizer, _ = OPTIMIZERS["muon"](lr=0.1, weight_decay=0.5)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["conv1"]["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["bias"], 0.95, rtol=1e-6)


def second_update(gradients, **options):
    """The update of a matrix and a bias by the second of two gradients."""
    params = jax.tree.map(jnp.zeros_like, gradients[0])
    optimizer, _ = OPTIMIZERS["muon"](lr=1.0, **options)
    _, state = optimizer.update(gradients[0], optimizer.init(params), params)
    return optimizer.update(gradients[1], state, params)[0]


@pytest.fixture(scope="module")
def two_gradients():
    def draw(seed, size):
        keys = jax.random.split(jax.random.key(seed))
        return {"kernel": size * jax.random.normal(keys[0], (24, 40)), "bias": size * jax.random.normal(keys[1], (5,))}

    return draw(0, 1.0), draw(1, 3.0)


def test_without_momentum_only_the_last_gradient_counts(two_gradients):
    alone = second_update((two_gradients[1], two_gradients[1]), momentum=0.0)["kernel"]
    np.testing.assert_allclose(second_update(two_gradients, momentum=0.0)["kernel"], alone, atol=1e-4)
    assert np.abs(second_update(two_gradients)["kernel"] - alone).max() > 0.1


def test_fewer_iterations_leave_singular_values_wider_apart(two_gradients):
    spreads = []
    for steps in (1, 5):
        scale = np.linalg.svd(second_update(two_gradients, newton_schulz_steps=steps)["kernel"], compute_uv=False)
        spreads.append(scale.max() / scale.min())
    assert spreads[0] > 2 * spreads[1]


def test_the_rest_moves_by_nadam(two_gradients):
    biases = [{"bias": gradient["bias"]} for gradient in two_gradients]
    reference = optax.nadamw(1.0, b1=0.8, b2=0.7, eps=1e-3, weight_decay=0.0)
    with jax.numpy_dtype_promotion("standard"):
        _, state = reference.update(biases[0], reference.init(biases[0]), biases[0])
        want, _ = reference.update(biases[1], state, biases[0])
    ours = second_update(two_gradients, b1=0.8, b2=0.7, eps=1e-3)
    np.testing.assert_allclose(ours["bias"], want["bias"], rtol=1e-6)


def test_gradients_are_clipped_before_all_else(two_gradients):
    clipped = [optax.tree.scale(1 / optax.tree.norm(gradient), gradient) for gradient in two_gradients]
    ours, want = second_update(two_gradients, clip_norm=1.0), second_update(clipped)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(ours[name], want[name], rtol=1e-3, atol=1e-4)
    assert np.abs(ours["bias"] - second_update(two_gradients)["bias"]).max() > 0.01


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"^optimizer\.lr=-1\.0: must be at least 0$"),
        ({"warmup_steps": -1}, r"^optimizer\.warmup_steps=-1: must be at least 0$"),
        ({"b1": 1.0}, r"^optimizer\.b1=1\.0: must be at least 0 and below 1$"),
        ({"b2": -0.1}, r"^optimizer\.b2=-0\.1: must be at least 0 and below 1$"),
        ({"eps": -1e-8}, r"^optimizer\.eps=-1e-08: must be at least 0$"),
        ({"weight_decay": -0.1}, r"^optimizer\.weight_decay=-0\.1: must be at least 0$"),
        ({"clip_norm": 0.0}, r"^optimizer\.clip_norm=0\.0: must be positive, or None to clip nothing$"),
    ],
)
def test_values_with_which_nothing_descends_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        OPTIMIZERS[name](**options)


def test_values_of_muon_alone_are_in_range_too():
    for options in ({"momentum": 1.0}, {"newton_schulz_steps": 0}):
        with pytest.raises(UserError, match=rf"^optimizer\.{next(iter(options))}="):
            OPTIMIZERS["muon"](**options)
