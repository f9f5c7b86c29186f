"""Training with representation alignment, on batches that carry features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import complete
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training.diffusion_state import abstract_state, new_state
from diffusion_jax.training.diffusion_step import make_train_step, training_loss


def make_system(alignment=None, model=None, data=None, loss=None, **train):
    config = {
        "data": {"name": "digits", "image_size": 8, "channels": 1, **(data or {})},
        "conditioner": {"name": "class"},
        "autoencoder": {"name": "identity"},
        "model": {"name": "dit", "depth": 2, "width": 16, "heads": 2, "patch_size": 4, **(model or {})},
        "path": {"name": "linear"},
        "prediction": {"kind": "velocity"},
        "loss": loss or {"name": "flow_matching"},
        "alignment": alignment or {"name": "repa", "weight": 0.5},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "ema": {"name": "constant"},
        "train": {"steps": 30, "batch_size": 8, **train},
        "sampler": {"name": "probability_flow", "steps": 2},
        "guidance": {"name": "cfg"},
    }
    return DiffusionSystem(complete(config, DIFFUSION_SCHEMA), DatasetFacts(10, tuple("0123456789"), "random pixels"))


REPA = {"repa_depth": 1, "repa_width": 6, "repa_hidden": 12, "rope": True}


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (8, 8, 8, 1)), jnp.uint8),
        "label": jnp.arange(8, dtype=jnp.int32),
        "features": jnp.asarray(np.tile(rng.normal(size=(4, 6)), (8, 1, 1)), jnp.float32),
    }


def train(system, steps):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer, _ = system.build("optimizer")
    state = new_state(system, optimizer, abstract_state(system, optimizer, mesh))
    step, metrics = jax.jit(make_train_step(system, optimizer, mesh)), []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, values = step(state, system.load_frozen(), batch())
            metrics.append(jax.device_get(values))
    return metrics


def test_the_tokens_come_to_agree_with_the_features():
    metrics = train(make_system(model=REPA, microbatches=2), 20)
    assert abs(metrics[0]["alignment"]) < 0.4
    assert metrics[-1]["alignment"] < metrics[0]["alignment"] - 0.5


class Network:
    """Stands in for a model."""

    def __call__(self, x, timestep, cond):
        return x * timestep[:, None, None, None]

    def project(self, x, timestep, cond):
        return self(x, timestep, cond), x.reshape(8, 4, 16)[..., :6]


def test_times_and_noises_are_those_of_a_run_without_alignment():
    aligned, alone = make_system(model=REPA), make_system(alignment={"name": "none"}, model=REPA)
    x0, features = jax.random.normal(jax.random.key(0), (8, 8, 8, 1)), batch()["features"]
    (loss, aux), (plain, parts) = (
        training_loss(system, Network(), x0, None, jnp.int32(3), jnp.arange(8), None, features)
        for system in (aligned, alone)
    )
    np.testing.assert_allclose(loss, plain + 0.5 * aux["alignment"], rtol=1e-5)
    np.testing.assert_array_equal(aux["time"], parts["time"])
    assert "alignment" not in parts


def test_what_cannot_be_aligned_is_named():
    with pytest.raises(
        UserError, match=r"'repa' needs a model with a projector: take model 'dit' and set model\.repa_depth"
    ):
        make_system()
    with pytest.raises(UserError, match=r"features of the images as they are: set data\.flip=False"):
        make_system(model=REPA, data={"flip": True})
    with pytest.raises(UserError, match=r"does not go with loss\.learned_uncertainty"):
        make_system(model=REPA, loss={"name": "edm", "learned_uncertainty": True})
    system = make_system(model=REPA)
    row = jnp.arange(8)
    with pytest.raises(UserError, match=r"alignment 'repa' needs batches with 'features' \[B, N, Z\]"):
        training_loss(system, None, jnp.zeros((8, 8, 8, 1)), None, jnp.int32(0), row, None)
