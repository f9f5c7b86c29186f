"""Loss curves of one run in float32 and in bfloat16: the same data, noise, timesteps and initial weights.

    python benchmarks/precision.py
    python benchmarks/precision.py --steps 1000 --set model.width=128

The run is the demo's (`configs/digits.py`) with a smaller network. Prints the mean loss of each tenth of the steps.
"""

import argparse

import jax
import numpy as np

from diffusion_jax.config import load_config
from diffusion_jax.data import batches, open_source
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.parallel.create import shardings_of
from diffusion_jax.parallel.hardware import prepare_cpu
from diffusion_jax.parallel.mesh import make_mesh, replicated
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training.diffusion_state import abstract_state, new_state
from diffusion_jax.training.diffusion_step import make_train_step

SMALL = ["model.depth=4", "model.width=64", "model.heads=4", "train.batch_size=64", "optimizer.lr=1e-3"]
PARTS = 10


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--set", nargs="*", default=[], help="keys of the config, as model.width=128")
    options = parser.parse_args()
    single = losses([*SMALL, *options.set], options.steps)
    half = losses([*SMALL, *options.set, "model.dtype=bfloat16"], options.steps)
    streams = losses([*SMALL, *options.set, "model.dtype=bfloat16", "model.residual_dtype=bfloat16"], options.steps)
    print(f"{'steps':>12}{'float32':>10}{'bfloat16':>10}{'ratio':>8}{'and residual':>14}{'ratio':>8}")
    for part in np.array_split(np.arange(options.steps), PARTS):
        a, b, c = (curve[part].mean() for curve in (single, half, streams))
        print(f"{part[0] + 1:>6}-{part[-1] + 1:<5}{a:>10.4f}{b:>10.4f}{b / a:>8.4f}{c:>14.4f}{c / a:>8.4f}")


def losses(words: list[str], steps: int) -> np.ndarray:
    """[steps] losses of a run of `configs/digits.py` with some keys changed."""
    config = load_config("configs/digits.py", [f"--config.{word}" for word in words], DIFFUSION_SCHEMA)
    source = open_source(DIFFUSION_SCHEMA["data"].build("data", config.data))
    system = DiffusionSystem(config, DatasetFacts.of(source))
    mesh, (optimizer, _) = make_mesh(system.build("mesh")), system.build("optimizer")
    abstract = abstract_state(system, optimizer, mesh)
    state, frozen = new_state(system, optimizer, abstract), system.load_frozen()
    step = jax.jit(
        make_train_step(system, optimizer, mesh),
        donate_argnums=0,
        out_shardings=(shardings_of(abstract), replicated(mesh)),
    )
    size = system.train.batch_size
    reader = batches(source, seed=system.train.seed, batch_size=size, rows=list(range(size)), num_threads=1)
    found = []
    for _ in range(steps):
        batch = next(reader)
        state, metrics = step(state, frozen, {"image": batch["image"], "label": batch["label"]})
        found.append(metrics["loss"])
    reader.close()
    return np.array(jax.device_get(found))


if __name__ == "__main__":
    prepare_cpu()
    main()
