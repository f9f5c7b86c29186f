"""Compilation, forward pass and training step of every backbone at a small size, beside a large matrix product.

    python benchmarks/backbones.py
    python benchmarks/backbones.py --only dit,unet --batch-size 16
    python benchmarks/backbones.py --preset dit-xl/2

FLOPs are counted from the trace: two a multiply-add, three forward passes a training step. The second form compiles the
training step of one published model, at its own size, and stops there.
"""

import argparse
import functools
import statistics

import jax
import jax.numpy as jnp
from trained import TrainingStep, median_seconds

from diffusion_jax.models.conditioning.parts import Conditioning
from diffusion_jax.models.presets import preset
from diffusion_jax.parallel.hardware import prepare_cpu
from diffusion_jax.parallel.peak import matmul_flops_per_second

PIXELS, LATENTS = (32, 32, 3), (32, 32, 4)
UNCONDITIONAL = {"conditioner": {"name": "none"}}
# At 25 to 33 M parameters; the ASCEND is its published CIFAR-10 model with half the blocks.
SMALL = {
    "ascend": (
        PIXELS,
        {"model_channels": 128, "enc_depths": (2, 2, 2, 2), "dec_blocks": (1, 1, 1, 1), "num_head_channels": 64},
        UNCONDITIONAL,
    ),
    "dit": (LATENTS, {"depth": 12, "width": 384, "heads": 6, "patch_size": 2}, {}),
    "uvit": (PIXELS, {"depth": 13, "width": 384, "heads": 6, "patch_size": 2}, {}),
    "iuvit": (PIXELS, {"depth": 13, "width": 384, "heads": 6, "patch_size": 2}, UNCONDITIONAL),
    "ldm_transformer": (LATENTS, {"depth": 6, "width": 384, "heads": 6, "patch_size": 2}, {}),
    "unet": (
        LATENTS,
        {"model_channels": 96, "channel_mult": (1, 2, 4), "attention_resolutions": (4, 2), "num_head_channels": 32},
        {},
    ),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SMALL), help="backbones, separated by commas")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="timed steps")
    parser.add_argument("--preset", help="compile the training step of this published model instead")
    options = parser.parse_args()
    print(f"batch {options.batch_size}, {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    if options.preset:
        published = preset(options.preset)
        step = TrainingStep(published.section(), published.input_shape, options.batch_size)
        print(f"{options.preset}: training step compiled in {step.compile_seconds:.1f} s")
        return
    peak = functools.partial(matmul_flops_per_second, 4096)
    before = peak()
    columns = ("backbone", "M params", "compile s", "forward s", "step s", "GFLOP/s", "ratio")
    print(f"{columns[0]:<16}" + "".join(f"{column:>11}" for column in columns[1:]))
    for name in options.only.split(","):
        shape, model, sections = SMALL[name]
        step = TrainingStep({"name": name, **model}, shape, options.batch_size, sections)
        forward = forward_seconds(step, options.batch_size, options.steps)
        seconds = statistics.median(step.seconds(options.steps))
        speed = step.flops() / seconds
        parameters = sum(leaf.size for leaf in jax.tree.leaves(step.state.model)) / 1e6
        row = (parameters, step.compile_seconds, forward, seconds, speed / 1e9, speed / max(before, peak()))
        print(f"{name:<16}" + "".join(f"{value:>11.3f}" for value in row), flush=True)
    print(f"4096³ product: {max(before, peak()) / 1e9:.1f} GFLOP/s")


def forward_seconds(step: TrainingStep, batch_size: int, repeats: int) -> float:
    """The median time of one forward pass."""
    x = jnp.zeros((batch_size, *step.system.latent_shape))
    label = jnp.zeros(batch_size, jnp.int32)
    cond = step.system.conditioner(label) if step.system.conditioner.spec.parts else Conditioning()
    forward = jax.jit(lambda model: model(x, jnp.full(batch_size, 500.0), cond))
    model = step.state.model
    return median_seconds(lambda: forward(model), repeats)


if __name__ == "__main__":
    prepare_cpu()
    main()
