"""Speed of evaluation: the Inception network, the Fréchet distance, precision and recall.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --parts inception --batch-size 64

The network runs with drawn weights, which are as fast as the published ones. Its speed stands beside the fastest of a
few single convolutions in the same run, the distance beside `scipy.linalg.sqrtm` of the product, as the older programs
compute it. FLOPs are two for each of the 5.71 G multiply-adds of an image. Processor time, of all threads together,
stands beside: on a machine that others use it says more. OPENBLAS_NUM_THREADS=1 keeps threads of the linear algebra
that wait for each other out of it.
"""

import argparse
import functools
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from diffusion_jax.evaluation import InceptionV3, frechet_distance, precision_recall
from diffusion_jax.evaluation.networks.inception_features import InceptionFeatures
from diffusion_jax.parallel.hardware import prepare_cpu

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
        frechet(options.width, options.repeats)
    if "precision_recall" in options.parts:
        neighbours(options.images)


def inception(batch_size: int, repeats: int) -> None:
    """Images per second, and the share of the speed of a single convolution."""
    images = np.zeros((batch_size, 299, 299, 3), np.uint8)
    extractor = InceptionFeatures(InceptionV3(), devices=jax.devices()[:1], images_per_device=batch_size)
    start = time.perf_counter()
    extractor.measure(images)
    compile_seconds = time.perf_counter() - start
    convolutions = list(single_convolutions(batch_size))
    ours, peak = Speed(), Speed()
    for _ in range(repeats):  # in turns, so that whatever else the machine does slows both
        ours = ours.faster(measure(lambda: extractor.measure(images), FLOPS_PER_IMAGE * batch_size))
        for convolve, flops in convolutions:
            peak = peak.faster(measure(convolve, flops), measure(convolve, flops))
    print(f"Inception, batch {batch_size}: first call {compile_seconds:.1f} s")
    print(f"  images            {ours.per_second / FLOPS_PER_IMAGE:8.2f} /s")
    for name, speed in (("achieved", ours), ("one convolution", peak)):
        wall, processor = speed.per_second / 1e9, speed.per_cpu_second / 1e9
        print(f"  {name:<18}{wall:8.1f} GFLOP/s, {processor:.1f} by processor time")
    ratio, cpu_ratio = ours.per_second / peak.per_second, ours.per_cpu_second / peak.per_cpu_second
    print(f"  ratio             {ratio:8.3f}, by processor time {cpu_ratio:.3f}")


class Speed(NamedTuple):
    """FLOP in a second of time, and in a second of a processor, which others on the machine slow less."""

    per_second: float = 0.0
    per_cpu_second: float = 0.0

    def faster(self, *others: "Speed") -> "Speed":
        """The best of each."""
        return Speed(*map(max, zip(self, *others, strict=True)))


def measure(function: Callable[[], Any], flops: float) -> Speed:
    """The speed of one run."""
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return Speed(flops / (time.perf_counter() - wall), flops / (time.process_time() - processor))


def single_convolutions(batch_size: int) -> Iterator[tuple[Callable[[], jax.Array], float]]:
    """Four 3×3 convolutions, compiled, with their FLOPs: three of the network's middle, and a large one."""
    for size, channels, features in ((35, 96, 96), (17, 192, 320), (8, 448, 384), (64, 256, 256)):
        x, kernel = jnp.zeros((batch_size, size, size, channels)), jnp.zeros((3, 3, channels, features))
        convolve = jax.jit(
            lambda x, kernel: jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
            )
        )
        convolve(x, kernel)
        yield functools.partial(convolve, x, kernel), 2 * 9 * batch_size * size**2 * channels * features


def frechet(width: int, repeats: int) -> None:
    """Seconds of the distance by symmetric eigenvalues and by a matrix square root, and their difference."""
    random = np.random.default_rng(0)
    spread = np.geomspace(1, 1e-2, width)
    sets = [random.normal(size=(2 * width, width)) * spread + 0.01 * i for i in range(2)]
    (mu1, sigma1), (mu2, sigma2) = ((rows.mean(0), np.cov(rows, rowvar=False)) for rows in sets)
    ours, seconds, cpu_seconds = timed(lambda: frechet_distance(mu1, sigma1, mu2, sigma2), repeats)
    root, root_seconds, root_cpu_seconds = timed(lambda: scipy.linalg.sqrtm(sigma1 @ sigma2), 1)
    theirs = np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2) - 2 * np.trace(root.real)
    ratio, cpu_ratio = root_seconds / seconds, root_cpu_seconds / cpu_seconds
    print(f"Fréchet distance, width {width}")
    print(f"  eigenvalues       {seconds:8.2f} s, {cpu_seconds:.2f} of processors")
    print(f"  scipy sqrtm       {root_seconds:8.2f} s, {root_cpu_seconds:.2f} of processors")
    print(f"  ratio             {ratio:8.1f}, by processor time {cpu_ratio:.1f}")
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


def timed(function: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """The result, and seconds and processor seconds of the fastest run."""
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        result = function()
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - processor)
    return result, min(seconds), min(cpu_seconds)


if __name__ == "__main__":
    prepare_cpu()
    main()
