"""Seconds per training step of a DiT, beside a large matrix product in the same run.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --variant B/2 --batch-size 32 --dtype bfloat16

One step is forward, backward, AdamW and EMA of class-conditional DiT on 32×32×4 latents with the published recipe
(hybrid loss, learned-range variance). FLOPs are counted as three forward passes of two FLOPs a multiply-add.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from diffusion_jax.config import complete
from diffusion_jax.models.dit import dit_config
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from diffusion_jax.parallel.peak import matmul_flops_per_second
from diffusion_jax.training.setup import abstract_state, new_state, shardings_of
from diffusion_jax.training.step import make_train_step
from diffusion_jax.training.system import SCHEMA, DatasetFacts, System


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="S/2", help="DiT size and patch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    options = parser.parse_args()

    # A 32×32×4 "image" stands for the latent, so that the autoencoder is not part of the figure.
    config = {
        "data": {"name": "latents", "image_size": 32, "channels": 3},
        "conditioner": {"name": "class", "label_drop": 0.1},
        "autoencoder": {"name": "identity"},
        "model": {"name": "dit", **dit_config(options.variant), "dtype": options.dtype},
        "path": {"name": "ddpm"},
        "prediction": {"kind": "epsilon", "variance": "learned_range"},
        "loss": {"name": "hybrid"},
        "ema": {"name": "constant", "max_decay": 0.9},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw"},
        "train": {"steps": 1, "batch_size": options.batch_size},
        "sampler": {"name": "ddim"},
        "guidance": {"name": "cfg"},
    }
    system = System(complete(config, SCHEMA), DatasetFacts(1000, (), "random"))
    system.latent_shape = (32, 32, 4)
    mesh = make_mesh(MeshConfig())
    optimizer, _ = system.build("optimizer")
    abstract = abstract_state(system, optimizer, mesh)
    state = new_state(system, optimizer, abstract)
    first_stage = system.load_first_stage()
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(0, 256, (options.batch_size, *system.latent_shape), dtype=np.uint8),
        "label": generator.integers(0, 1000, options.batch_size, dtype=np.int32),
    }
    step = jax.jit(
        make_train_step(system, optimizer, mesh),
        donate_argnums=0,
        out_shardings=(shardings_of(abstract), replicated(mesh)),
    )

    start = time.perf_counter()
    compiled = step.lower(state, first_stage, batch).compile()
    compile_seconds = time.perf_counter() - start
    peak = matmul_flops_per_second(4096, options.dtype)
    seconds = []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, first_stage, batch)
        metrics["loss"].block_until_ready()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    peak = max(peak, matmul_flops_per_second(4096, options.dtype))
    speed = system.train_flops_per_image() * options.batch_size / median
    device = f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"
    print(f"DiT-{options.variant}, batch {options.batch_size}, {options.dtype}, {device}")
    print(f"compilation       {compile_seconds:8.2f} s")
    print(f"train step        {median:8.3f} s   (fastest {min(seconds[1:]):.3f} s)")
    print(f"images            {options.batch_size / median:8.2f} /s")
    print(f"achieved          {speed / 1e9:8.1f} GFLOP/s")
    print(f"4096³ product     {peak / 1e9:8.1f} GFLOP/s")
    print(f"ratio             {speed / peak:8.3f}")


if __name__ == "__main__":
    main()
