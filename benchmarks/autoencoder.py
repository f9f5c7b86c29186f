"""Speed of a first stage beside the fastest convolution of this machine, and the memory of one large image.

    python benchmarks/autoencoder.py
    python benchmarks/autoencoder.py --preset sd-vae --batch-size 4 --dtype bfloat16
    python benchmarks/autoencoder.py --memory

FLOPs are counted from the trace, two a multiply-add. The convolution peak is the fastest of the 3×3 convolutions that
make up nearly all of the work, each alone, in the same run. The last form decodes one image of 1024×1024 whole and in
tiles, each in a process of its own, and prints the most memory that it held.
"""

import argparse
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from trained import median_seconds

from diffusion_jax.models.autoencoder.first_stage import FIRST_STAGES
from diffusion_jax.models.layers.convolution import conv3x3
from diffusion_jax.models.macs import count_macs
from diffusion_jax.parallel.hardware import prepare_cpu

SIZE, LARGE, TILE = 256, 1024, 64
# Height = width and channels of the levels of an f = 8 autoencoder at 256².
LEVELS = ((256, 128), (128, 256), (64, 512), (32, 512))


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="kl-f8", help="a KL autoencoder")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3, help="timed calls")
    parser.add_argument("--memory", action="store_true", help="memory of a large image instead of speed")
    parser.add_argument("--decode-large", choices=["whole", "tiled", "nothing"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.decode_large:
        decode_large(options)
    elif options.memory:
        memory(options)
    else:
        speed(options)


def build(options: argparse.Namespace, tile: int | None = None):
    """The first stage with random weights."""
    config = FIRST_STAGES["kl"](preset=options.preset, weights="random", scale=1.0, dtype=options.dtype, tile=tile)
    return config.build(lambda stage, path: stage, seed=0)


def speed(options: argparse.Namespace) -> None:
    """Prints images and FLOPs a second of encoding and decoding."""
    print(f"{options.preset}, batch {options.batch_size}, {options.dtype}, {SIZE}×{SIZE}, ", end="")
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}")
    stage = build(options)
    images = jnp.zeros((options.batch_size, SIZE, SIZE, 3))
    latents = jnp.zeros((options.batch_size, *stage.latent_shape(SIZE, 3)))
    calls = {
        "encode": (lambda stage, images: stage.posterior(images), images),
        "decode": (lambda stage, latents: stage.decode(latents), latents),
    }
    compiled = {name: jax.jit(function) for name, (function, _) in calls.items()}
    peak = convolution_peak(options)
    for name, (function, argument) in calls.items():
        seconds = median_seconds(lambda name=name, argument=argument: compiled[name](stage, argument), options.repeats)
        # Before and after each figure, so that a neighbour's load cannot flatter it.
        peak = max(peak, convolution_peak(options))
        flops = 2 * count_macs(function, stage, argument)
        print(
            f"{name}      {options.batch_size / seconds:8.3f} images/s  {seconds / options.batch_size:8.3f} s/image",
            end="",
        )
        print(f"  {flops / seconds / 1e9:8.1f} GFLOP/s  {flops / seconds / peak:8.3f} of the peak", flush=True)
    print(f"convolution peak  {peak / 1e9:8.1f} GFLOP/s")


def convolution_peak(options: argparse.Namespace) -> float:
    """FLOP/s of the fastest 3×3 convolution of the network."""
    found = []
    for size, channels in LEVELS:
        dtype = jnp.dtype(options.dtype)
        convolution = conv3x3(channels, channels, dtype=dtype, rngs=nnx.Rngs(0))
        x = jnp.ones((options.batch_size, size, size, channels), dtype)
        apply = jax.jit(lambda convolution, x: convolution(x))
        seconds = median_seconds(lambda apply=apply, c=convolution, x=x: apply(c, x), options.repeats)
        found.append(2 * 9 * channels**2 * size**2 * options.batch_size / seconds)
    return max(found)


def memory(options: argparse.Namespace) -> None:
    """Prints the peak memory of decoding one large image."""
    print(f"{options.preset}, one image of {LARGE}×{LARGE}, {options.dtype}")
    arguments = [sys.executable, __file__, f"--preset={options.preset}", f"--dtype={options.dtype}"]
    for how in ("nothing", "whole", "tiled"):
        done = subprocess.run([*arguments, f"--decode-large={how}"], check=True, capture_output=True, text=True)
        print(f"{how:<8} {done.stdout.strip()}", flush=True)


def decode_large(options: argparse.Namespace) -> None:
    """Decodes one large image, or only loads the weights, and prints the most memory that this process held."""
    stage = build(options, tile=TILE if options.decode_large == "tiled" else None)
    if options.decode_large != "nothing":
        latents = np.zeros((1, *stage.latent_shape(LARGE, 3)), np.float32)
        jax.block_until_ready(jax.jit(lambda stage, latents: stage.decode(latents))(stage, latents))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{kilobytes / 2**20:.2f} GiB")


if __name__ == "__main__":
    prepare_cpu()
    main()
