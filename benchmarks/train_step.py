"""Seconds per training step of a DiT, beside a large matrix product in the same run.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --variant B/2 --batch-size 32 --dtype bfloat16

One step is forward, backward, AdamW and EMA of class-conditional DiT on 32×32×4 latents with the published recipe
(hybrid loss, learned-range variance). FLOPs are counted as three forward passes of two FLOPs a multiply-add.
"""

import argparse
import statistics

import jax
from trained import TrainingStep

from diffusion_jax.models.dit.dit import dit_config
from diffusion_jax.parallel.hardware import prepare_cpu
from diffusion_jax.parallel.peak import matmul_flops_per_second


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="S/2", help="DiT size and patch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=8, help="timed steps")
    options = parser.parse_args()

    model = {"name": "dit", **dit_config(options.variant), "dtype": options.dtype}
    recipe = {"prediction": {"kind": "epsilon", "variance": "learned_range"}, "loss": {"name": "hybrid"}}
    step = TrainingStep(model, (32, 32, 4), options.batch_size, recipe)
    peak = matmul_flops_per_second(4096, options.dtype)
    seconds = step.seconds(options.steps)
    median = statistics.median(seconds)
    peak = max(peak, matmul_flops_per_second(4096, options.dtype))
    speed = step.flops() / median
    device = f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"
    print(f"DiT-{options.variant}, batch {options.batch_size}, {options.dtype}, {device}")
    print(f"compilation       {step.compile_seconds:8.2f} s")
    print(f"train step        {median:8.3f} s   (fastest {min(seconds):.3f} s)")
    print(f"images            {options.batch_size / median:8.2f} /s")
    print(f"achieved          {speed / 1e9:8.1f} GFLOP/s")
    print(f"4096³ product     {peak / 1e9:8.1f} GFLOP/s")
    print(f"ratio             {speed / peak:8.3f}")


if __name__ == "__main__":
    prepare_cpu()
    main()
