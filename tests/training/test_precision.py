"""The mixed-precision policy: a run in bfloat16 learns as the same run in float32 does."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import load_config
from diffusion_jax.data import open_source
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.parallel.mesh import make_mesh
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training.diffusion_state import abstract_state, new_state
from diffusion_jax.training.diffusion_step import make_train_step

STEPS, BATCH = 60, 32
WORDS = ["model.depth=2", "model.width=32", "model.heads=2", f"train.batch_size={BATCH}"]
WORDS += ["optimizer.lr=3e-3", "optimizer.schedule=constant", "optimizer.warmup_steps=0"]


def curve(*words):
    """[STEPS] losses, and the dtypes of the weights after them."""
    config = load_config("configs/digits.py", [f"--config.{word}" for word in (*WORDS, *words)], DIFFUSION_SCHEMA)
    source = open_source(DIFFUSION_SCHEMA["data"].build("data", config.data))
    system = DiffusionSystem(config, DatasetFacts.of(source))
    mesh, (optimizer, _) = make_mesh(system.build("mesh"), jax.devices()[:1]), system.build("optimizer")
    state = new_state(system, optimizer, abstract_state(system, optimizer, mesh))
    step = jax.jit(make_train_step(system, optimizer, mesh), compiler_options={"xla_backend_optimization_level": 0})
    frozen = system.load_frozen()
    records = [source[i] for i in range(STEPS * BATCH % len(source) + BATCH)]
    images, labels = (np.stack([record[name] for record in records]) for name in ("image", "label"))
    losses = []
    with jax.set_mesh(mesh):
        for number in range(STEPS):
            rows = np.arange(number * BATCH, (number + 1) * BATCH) % len(images)
            state, metrics = step(state, frozen, {"image": images[rows], "label": labels[rows].astype(np.int32)})
            losses.append(metrics["loss"])
    return np.array(jax.device_get(losses)), {leaf.dtype for leaf in jax.tree.leaves(state.model)}


def test_the_loss_curve_of_bfloat16_is_that_of_float32():
    """Within 1 % at every step, and 0.2 % in the mean of ten."""
    single, _ = curve()
    half, dtypes = curve("model.dtype=bfloat16")
    assert dtypes == {jnp.dtype("float32")}
    assert single[-10:].mean() < 0.65 * single[:3].mean()
    difference = half / single - 1
    assert 1e-5 < np.abs(difference).max() < 0.01
    assert np.abs(difference.reshape(-1, 10).mean(1)).max() < 0.002
