"""The peak speed of a device, against which MFU is counted."""

import functools
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s per JAX device as the vendors publish them, by the start of `device_kind`.
PUBLISHED_PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,
}


def matmul_flops_per_second(size: int, dtype: jax.typing.DTypeLike = jnp.float32, repeats: int = 3) -> float:
    """Measures a square matrix product on the first device.

    Args:
      size: rows and columns.
      dtype: of the operands.
      repeats: timed runs; the fastest counts.

    Returns:
      2·size³ / seconds.
    """
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


@functools.cache
def peak_flops_per_second() -> tuple[float, str]:
    """The peak of all devices of the run together, in FLOP/s, and how it is known.

    Returns:
      The published bfloat16 peak where the device is known; else a matrix product measured on this process's devices
      together, which for a CPU means its cores, however many devices they pretend to be.
    """
    device = jax.devices()[0]
    # The longest match: "TPU v5 lite" is not a "TPU v5".
    matches = [kind for kind in PUBLISHED_PEAKS if device.device_kind.startswith(kind)]
    if matches:
        return PUBLISHED_PEAKS[max(matches, key=len)] * jax.device_count(), "published bfloat16 peak"
    measured = matmul_flops_per_second(1024)
    devices = jax.process_count() if device.platform == "cpu" else jax.device_count()
    return measured * devices, "measured 1024³ float32 matrix product"
