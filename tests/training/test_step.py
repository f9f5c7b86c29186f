"""The training step: equal to the official code, and to itself on any mesh and in any number of microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffusion_jax import keys
from diffusion_jax.config import complete, override
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.diffusion.losses import HybridLoss
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.interop.backbones import fill_backbone
from diffusion_jax.interop.dit import dit_entries
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.models.conditioning.conditioners import drop
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.models.dit.dit import DiT
from diffusion_jax.optim.ema_profiles import ema_update
from diffusion_jax.optim.optimizer import adamw
from diffusion_jax.parallel.create import shardings_of
from diffusion_jax.parallel.mesh import MeshConfig, local_rows, make_mesh, replicated, to_global
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training import diffusion_step
from diffusion_jax.training.diffusion_state import abstract_state, new_state
from diffusion_jax.training.diffusion_step import make_train_step, prepare

STEPS = 20


def test_three_steps_agree_with_the_official_code(golden):
    data = golden("dit_train_step")
    kw = data["config"]["kwargs"]
    model = jax.eval_shape(
        lambda: DiT(
            input_shape=(8, 8, 4),
            out_channels=8,
            conditioning=ConditioningSpec(num_classes=kw["num_classes"], null_class=True),
            depth=kw["depth"],
            width=kw["hidden_size"],
            heads=kw["num_heads"],
            patch_size=kw["patch_size"],
            rngs=nnx.Rngs(0),
        )
    )
    model = fill_backbone("dit", model, {key[2:]: value for key, value in data.items() if key.startswith("w/")})
    entries = dit_entries(model)
    loss, path, prediction = HybridLoss(), DiscretePath(), Prediction("epsilon", "learned_range")
    optimizer, _ = adamw(lr=data["config"]["lr"])

    @jax.jit
    def step(model, ema, state, x0, noise, time, label):
        def mean_loss(model):
            per_sample, aux = loss.at(model, path, prediction, x0, Conditioning(label=label), time, noise)
            return per_sample.mean(), {"loss": per_sample, **aux}

        gradient, aux = jax.grad(mean_loss, has_aux=True)(model)
        updates, state = optimizer.update(gradient, state, model)
        model = optax.apply_updates(model, updates)
        return model, ema_update(ema, model, data["config"]["ema_decay"]), state, gradient, aux

    ema, state = model, optimizer.init(model)
    for i in range(3):
        dropped = data["in/drop_uniform"][i] < kw["class_dropout_prob"]
        label = np.where(dropped, kw["num_classes"], data["in/y"][i]).astype(np.int32)
        x0, noise = (np.moveaxis(data[f"in/{name}"][i], 1, -1) for name in ("x", "noise"))
        time = ((data["in/t"][i] + 1) / 1000).astype(np.float32)
        model, ema, state, gradient, aux = step(model, ema, state, x0, noise, time, label)
        for name in ("loss", "mse", "vb"):
            np.testing.assert_allclose(aux[name], data[f"out/step{i}/{name}"], rtol=1e-5, atol=1e-8)
        if i == 0:
            for name, ours in dump_state_dict(gradient, entries).items():
                theirs = data[f"out/grad0/{name}"]
                assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), name
    width = kw["hidden_size"]
    for kind, tree in (("param", model), ("ema", ema)):
        for name, ours in dump_state_dict(tree, entries).items():
            difference = np.abs(ours - data[f"out/{kind}/{name}"])
            if name.endswith("qkv.bias"):
                difference[width : 2 * width] = 0  # keys: the true gradient is zero, AdamW amplifies its rounding
            assert difference.max() <= 2e-5, (kind, name)


def make_system(**train):
    """A tiny hybrid-loss system with everything random switched on."""
    config = {
        "data": {"name": "digits", "image_size": 8, "channels": 1, "flip": True},
        "conditioner": {"name": "class", "label_drop": 0.3},
        "autoencoder": {"name": "identity"},
        "model": {"name": "dit", "depth": 2, "width": 32, "heads": 4, "patch_size": 2},
        "path": {"name": "ddpm"},
        "prediction": {"kind": "epsilon", "variance": "learned_range"},
        "loss": {"name": "hybrid"},
        "ema": {"name": "constant", "max_decay": 0.9},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw", "lr": 1e-3, "clip_norm": 1.0},
        "train": {"steps": STEPS, "batch_size": 32, "seed": 3, **train},
        "sampler": {"name": "ddpm", "steps": 4},
        "guidance": {"name": "cfg", "cfg_scale": 2.0},
    }
    return DiffusionSystem(complete(config, DIFFUSION_SCHEMA), DatasetFacts(10, tuple("0123456789"), "random pixels"))


def run(mesh, **train):
    """Trains on random pixels; loss and gradient norm of every step, and the final state on host and mesh."""
    system = make_system(**train)
    optimizer, _ = system.build("optimizer")
    abstract = abstract_state(system, optimizer, mesh)
    state = new_state(system, optimizer, abstract)
    step = jax.jit(
        make_train_step(system, optimizer, mesh),
        donate_argnums=0,
        out_shardings=(shardings_of(abstract), replicated(mesh)),
    )
    generator = np.random.default_rng(0)
    curves = []
    with jax.set_mesh(mesh):
        for _ in range(STEPS):
            batch = {
                "image": generator.integers(0, 256, (32, 8, 8, 1), dtype=np.uint8),
                "label": generator.integers(0, 10, 32, dtype=np.int32),
            }
            rows = local_rows(mesh, 32)
            batch = to_global(mesh, 32, {name: value[rows] for name, value in batch.items()})
            state, metrics = step(state, system.load_frozen(), batch)
            curves.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(curves), jax.device_get(state), state


@pytest.fixture(scope="module")
def alone():
    return run(make_mesh(MeshConfig(), jax.devices()[:1]))


def assert_same_run(ours, want):
    np.testing.assert_allclose(ours[0], want[0], rtol=1e-5)
    for name in ("model", "ema"):
        for a, b in zip(jax.tree.leaves(getattr(ours[1], name)), jax.tree.leaves(getattr(want[1], name)), strict=True):
            if a.shape[1:2] == (3,):
                a, b = a[:, [0, 2]], b[:, [0, 2]]  # key biases have no true gradient
            assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1.0)


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=8), MeshConfig(data=1, fsdp=8), MeshConfig(data=1, fsdp=4, tensor=2), MeshConfig(2, 2, 2, dcn=2)],
    ids=str,
)
def test_eight_devices_equal_one(alone, mesh):
    devices = jax.devices()
    # Of two slices, each a mesh of its own, with the devices in another order.
    ours = run(make_mesh(mesh, devices[::-2] + devices[::2] if mesh.dcn else devices))
    assert_same_run(ours, alone)
    kernel = ours[2].optimizer[1][0].mu.blocks.mlp.fc1.kernel[...]
    assert kernel.addressable_shards[0].data.size == kernel.size // (mesh.fsdp * mesh.tensor)


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
def test_accumulated_equals_whole_batch(alone, mesh):
    assert_same_run(run(make_mesh(mesh), microbatches=4), alone)


def test_the_loss_falls_and_the_seed_matters(alone):
    losses = alone[0][:, 0]
    assert losses[0] == pytest.approx(1.0, abs=0.1)
    assert losses[-3:].mean() < losses[0]
    other = run(make_mesh(MeshConfig(data=8)), seed=4)[0][:, 0]
    assert not np.allclose(other, losses, rtol=1e-3)


def test_time_buckets_add_up_to_the_batch():
    mesh = make_mesh(MeshConfig())
    system = make_system()
    optimizer, _ = system.build("optimizer")
    state = new_state(system, optimizer, abstract_state(system, optimizer, mesh))
    batch = {"image": jnp.zeros((32, 8, 8, 1), jnp.uint8), "label": jnp.zeros(32, jnp.int32)}
    _, metrics = jax.jit(make_train_step(system, optimizer, mesh))(state, system.load_frozen(), batch)
    assert metrics["count"].sum() == 32 and (metrics["count"] > 0).all()
    assert float(metrics["loss_sum"].sum() / 32) == pytest.approx(float(metrics["loss"]), rel=1e-6)


def test_accumulation_keeps_the_order_of_the_batch():
    """Of losses at the same timestep the latest are remembered, so the order in which a batch comes back matters."""
    mesh = make_mesh(MeshConfig())
    histories = []
    for microbatches in (1, 4):
        overrides = ["--config.timesteps.name=loss_second_moment", "--config.timesteps.history=2"]
        overrides += ["--config.path.schedule=cosine", "--config.path.num_timesteps=4"]
        overrides += [f"--config.train.microbatches={microbatches}"]
        system = make_system()
        system = DiffusionSystem(override(system.config.to_dict(), overrides, DIFFUSION_SCHEMA), system.facts)
        optimizer, _ = system.build("optimizer")
        state = new_state(system, optimizer, abstract_state(system, optimizer, mesh))
        images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
        batch = to_global(mesh, 32, {"image": images, "label": np.zeros(32, np.int32)})
        state, _ = jax.jit(make_train_step(system, optimizer, mesh))(state, system.load_frozen(), batch)
        histories.append(state.timesteps)
    np.testing.assert_allclose(histories[0].losses, histories[1].losses, rtol=1e-5)
    assert int(histories[0].counts.sum()) == 32 and (histories[0].counts > 2).all()


def test_a_learned_uncertainty_is_trained_with_the_model():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    overrides = ["path.name=ve", "prediction.kind=edm", "prediction.variance=fixed_small"]
    overrides += ["loss.name=edm", "loss.learned_uncertainty=True"]
    system = make_system()
    words = [f"--config.{word}" for word in overrides]
    system = DiffusionSystem(override(system.config.to_dict(), words, DIFFUSION_SCHEMA), system.facts)
    optimizer, _ = system.build("optimizer")
    state = new_state(system, optimizer, abstract_state(system, optimizer, mesh))
    assert not np.any(state.model.weight)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.zeros(32, jnp.int32)}
    state, metrics = jax.jit(make_train_step(system, optimizer, mesh))(state, system.load_frozen(), batch)
    assert np.any(state.model.weight) and np.isfinite(metrics["loss"]) and "weighted_mse" in metrics


def test_flips_mirror_half_of_the_images_anew_at_every_step():
    system = make_system()
    images = np.random.default_rng(0).integers(0, 256, (512, 8, 8, 1), dtype=np.uint8)
    index = jnp.arange(512)

    def flipped(step):
        out = prepare(
            system, system.load_frozen().first_stage, {"image": jnp.asarray(images)}, jnp.asarray(step), index
        )
        plain = images.astype(np.float32) / 127.5 - 1
        same = np.isclose(out, plain, atol=1e-6).all((1, 2, 3))
        mirrored = np.isclose(out, plain[:, :, ::-1], atol=1e-6).all((1, 2, 3))
        assert (same ^ mirrored).all()
        return mirrored

    first, second = flipped(0), flipped(1)
    assert 0.4 < first.mean() < 0.6 and 0.4 < (first ^ second).mean() < 0.6


def test_labels_are_dropped_at_the_configured_rate():
    conditioner = make_system().conditioner
    index, label = jnp.arange(2000), jnp.arange(2000) % 10
    key = keys.purpose_key(0, "label_drop", 5)

    def dropped_labels(label, index):
        arrays = {"label": label}
        return np.asarray(drop(conditioner, conditioner(arrays), conditioner.null(arrays), key, index).label)

    dropped = dropped_labels(label, index)
    null = dropped == 10
    assert 0.27 < null.mean() < 0.33
    assert np.array_equal(dropped[~null], np.asarray(label)[~null])
    part = dropped_labels(label[5:9], index[5:9])
    assert np.array_equal(part, dropped[5:9])
    assert list(conditioner.null({"label": jnp.arange(3)}).label) == [10, 10, 10]


def test_the_model_is_given_a_dropout_key_for_every_sample(monkeypatch):
    mesh, system, seen = make_mesh(MeshConfig()), make_system(), []
    optimizer, _ = system.build("optimizer")

    def training_loss(system, model, x0, cond, *_):
        seen.append(cond.dropout_keys)
        return jnp.zeros(32), {"time": jnp.zeros(32)}

    monkeypatch.setattr(diffusion_step, "training_loss", training_loss)
    batch = {"image": jnp.zeros((32, 8, 8, 1), jnp.uint8), "label": jnp.zeros(32, jnp.int32)}
    state = abstract_state(system, optimizer, mesh)
    jax.eval_shape(make_train_step(system, optimizer, mesh), state, system.load_frozen(), batch)
    assert seen[0].shape == (32,) and jnp.issubdtype(seen[0].dtype, jax.dtypes.prng_key)
