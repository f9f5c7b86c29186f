"""Memory and time of a DiT's training step under each rematerialisation policy.

    python benchmarks/remat.py
    python benchmarks/remat.py --variant B/2 --batch-size 4 --steps 2

Memory is what the compiled step needs beside its arguments (weights, optimizer, EMA, batch), from XLA's own analysis;
it is known without running the step (`--steps 0`). `--clock cpu` counts the seconds of all cores instead of those on
the wall, for a machine that others use too.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
from trained import TrainingStep

from diffusion_jax.models.dit.dit import dit_config
from diffusion_jax.parallel.hardware import prepare_cpu

POLICIES = ("none", "dots", "full")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="S/2", help="DiT size and patch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    options = parser.parse_args()
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    device = f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"
    print(f"DiT-{options.variant}, batch {options.batch_size}, {options.dtype}, {device}")
    print(f"{'remat':<8}{'MiB':>10}{'of none':>10}{'s/step':>10}{'of none':>10}")
    first: tuple[float, float] | None = None
    for policy in POLICIES:
        model = {"name": "dit", **dit_config(options.variant), "dtype": options.dtype, "remat": policy}
        step = TrainingStep(model, (32, 32, 4), options.batch_size)
        memory = step.compiled.memory_analysis().temp_size_in_bytes / 2**20
        seconds = seconds_per_step(step, options.steps, clock) if options.steps else float("nan")
        first = first or (memory, seconds)
        row = (memory, memory / first[0], seconds, seconds / first[1])
        print(f"{policy:<8}{row[0]:>10.0f}{row[1]:>10.2f}{row[2]:>10.2f}{row[3]:>10.2f}", flush=True)


def seconds_per_step(step: TrainingStep, steps: int, clock: Callable[[], float]) -> float:
    """The median of `steps` steps, after one that does not count."""
    found = []
    for _ in range(steps + 1):
        start = clock()
        step.seconds(0)
        found.append(clock() - start)
    return statistics.median(found[1:])


if __name__ == "__main__":
    prepare_cpu()
    main()
