"""Memory that the gradient of four layers of attention needs on TPUs that are not there, by kernel.

    python benchmarks/attention_memory.py

Memory is what the compiled program needs beside its arguments on each chip of `v5e:2x2`, from the compiler's own
analysis; the images are split over two of the chips and the heads over two. Needs libtpu (the extra `[tpu]`).
"""

import argparse

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.models.layers.attention import attention
from diffusion_jax.models.layers.attention_kernels import attention_kernel
from diffusion_jax.models.layers.remat import RematPolicy, remat
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.parallel.topology import absent_devices, parse_topology

IMAGES, HEADS, COLUMNS, LAYERS = 8, 16, 72, 4
CASES: tuple[tuple[int, RematPolicy], ...] = ((256, "none"), (1024, "none"), (1024, "full"))


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), absent_devices(parse_topology("v5e:2x2")))
    print(f"{'tokens':<8}{'remat':<8}{'XLA, MB':>10}{'Pallas, MB':>12}")
    for tokens, policy in CASES:
        xla, pallas = (1e-6 * temporary_bytes(mesh, tokens, policy, kernel) for kernel in ("xla", "pallas"))
        print(f"{tokens:<8}{policy:<8}{xla:>10.1f}{pallas:>12.1f}", flush=True)


def temporary_bytes(mesh: jax.sharding.Mesh, tokens: int, policy: RematPolicy, kernel: str) -> int:
    """Bytes on each chip beside the arguments, at the worst moment."""
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
    stream = jax.ShapeDtypeStruct((IMAGES, tokens, HEADS, COLUMNS), jnp.bfloat16, sharding=rows)
    layer = remat(lambda x, _: (x + attention(x, x, x), None), policy)

    def total(x: jax.Array) -> jax.Array:
        return jax.lax.scan(layer, x, length=LAYERS)[0].astype(jnp.float32).sum()

    with jax.set_mesh(mesh), attention_kernel(kernel):
        return jax.jit(jax.grad(total)).lower(stream).compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()
