"""Speed of evaluation: the Inception network, the Fréchet distance, precision and recall.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --parts inception --batch-size 64

The network runs with drawn weights, which are as fast as the published ones. Its speed stands beside the fastest of a
few single convolutions in the same run, the distance beside `scipy.linalg.sqrtm` of the product, as the older programs
compute it. FLOPs are two for each of the 5.71 G multiply-adds of an image.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from diffusion_jax.evaluation import InceptionV3, frechet_distance, precision_recall

FLOPS_PER_IMAGE = 2 * 5.71e9
PARTS = ("inception", "frechet", "precision_recall")


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--batch-size", type=int, default=16, help="images at once")
    parser.add_argument("--width", type=int, default=2048, help="features of the Fréchet distance")
    parser.add_argument("--images", type=int, default=10_000, help="images on each side of precision and recall")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs, of which the fastest counts")
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}")
    if "inception" in options.parts:
        inception(options.batch_size, options.repeats)
    if "frechet" in options.parts:
        frechet(options.width)
    if "precision_recall" in options.parts:
        neighbours(options.images)


def inception(batch_size: int, repeats: int) -> None:
    """Images per second, and the share of the speed of a single convolution."""
    network, x = InceptionV3(), jnp.zeros((batch_size, 299, 299, 3))
    start = time.perf_counter()
    compiled = jax.jit(lambda network, x: network(x)["2048"]).lower(network, x).compile()
    compile_seconds = time.perf_counter() - start
    peak = convolution_flops_per_second(batch_size, repeats)
    seconds = fastest(lambda: compiled(network, x), repeats)
    peak = max(peak, convolution_flops_per_second(batch_size, repeats))
    speed = FLOPS_PER_IMAGE * batch_size / seconds
    print(f"Inception, batch {batch_size}: compiled in {compile_seconds:.1f} s")
    print(f"  images            {batch_size / seconds:8.2f} /s")
    print(f"  achieved          {speed / 1e9:8.1f} GFLOP/s")
    print(f"  one convolution   {peak / 1e9:8.1f} GFLOP/s")
    print(f"  ratio             {speed / peak:8.3f}")


def convolution_flops_per_second(batch_size: int, repeats: int) -> float:
    """The fastest of three 3×3 convolutions of the network's middle."""
    speeds = []
    for size, channels, features in ((35, 96, 96), (17, 192, 320), (8, 448, 384)):
        x, kernel = jnp.zeros((batch_size, size, size, channels)), jnp.zeros((3, 3, channels, features))
        convolve = jax.jit(
            lambda x, kernel: jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
            )
        )
        flops = 2 * 9 * batch_size * size**2 * channels * features
        speeds.append(flops / fastest(lambda f=convolve, a=x, b=kernel: f(a, b), repeats))
    return max(speeds)


def frechet(width: int) -> None:
    """Seconds of the distance by symmetric eigenvalues and by a matrix square root, and their difference."""
    random = np.random.default_rng(0)
    spread = np.geomspace(1, 1e-2, width)
    sets = [random.normal(size=(2 * width, width)) * spread + 0.01 * i for i in range(2)]
    (mu1, sigma1), (mu2, sigma2) = ((rows.mean(0), np.cov(rows, rowvar=False)) for rows in sets)
    start = time.perf_counter()
    ours = frechet_distance(mu1, sigma1, mu2, sigma2)
    middle = time.perf_counter()
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    theirs = np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2) - 2 * np.trace(root.real)
    end = time.perf_counter()
    print(f"Fréchet distance, width {width}")
    print(f"  eigenvalues       {middle - start:8.2f} s")
    print(f"  scipy sqrtm       {end - middle:8.2f} s   ({(end - middle) / (middle - start):.1f} times as long)")
    print(f"  difference        {abs(ours - theirs) / theirs:8.1e} relative")


def neighbours(images: int) -> None:
    """Seconds and memory of precision and recall."""
    random = np.random.default_rng(0)
    real, fake = (random.normal(size=(images, 2048)).astype(np.float32) for _ in range(2))
    start = time.perf_counter()
    precision_recall(real, fake)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"precision and recall, {images} × {images} × 2048")
    print(f"  time              {seconds:8.1f} s")
    print(f"  peak memory       {memory:8.2f} GiB, all of the process")


def fastest(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest run, after one that does not count."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
