"""Which kernel computes an attention: cuDNN on NVIDIA GPUs, Pallas splash attention on TPUs, XLA elsewhere.

The choice is made when a program is traced, from the devices of the mesh it is traced for, so that a program compiled
ahead for hardware that is not there has the kernels of that hardware.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.extend.backend import get_backend
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.platform import platform

Kernel = Literal["xla", "cudnn", "pallas"]
KernelChoice = Literal["auto", "cudnn", "pallas", "xla"]

attention_kernel = jax.make_user_context("auto")
"""`with attention_kernel("xla"): …` decides for what is traced inside; "auto" takes the platform's own kernel."""

LANES = 128
# Fewer tokens are padded to a whole block or start a kernel for too little work: XLA's fused products cost less.
SHORTEST = {"cudnn": 64, "pallas": LANES}
WIDEST_HEAD = {"cudnn": 128, "pallas": 256}
# Logits of one block are 1 MiB in float32, a small part of a TPU core's fast memory.
LARGEST_BLOCK = 512


def platform_kernel(choice: KernelChoice, platform: str) -> Kernel:
    """The kernel of attentions that meet its conditions.

    Args:
      choice: what the user asks for.
      platform: "cpu", "gpu" or "tpu".

    Returns:
      The kernel; "pallas" runs anywhere, interpreted (slowly, for tests) where there is no TPU.

    Raises:
      UserError: cuDNN is asked for and there is no NVIDIA GPU of compute capability 8.0 or newer.
    """
    # Whether cuDNN runs is asked of a GPU only; a program for one is compiled where there is one.
    cudnn = platform == "gpu" and _cudnn_runs()
    if choice == "auto":
        return "pallas" if platform == "tpu" else "cudnn" if cudnn else "xla"
    if choice == "cudnn" and not cudnn:
        raise UserError(
            "mesh.attention='cudnn' needs an NVIDIA GPU of compute capability 8.0 or newer: use mesh.attention='auto'"
        )
    return choice


def _cudnn_runs() -> bool:
    if "cuda" not in get_backend("gpu").platform_version:
        return False
    return float(jax.local_devices(backend="gpu")[0].compute_capability) >= 8.0


def choose(q: jax.Array, k: jax.Array, mask: jax.Array | None, bias: jax.Array | None) -> Kernel:
    """The kernel for one attention, see `attention` for the arguments.

    Returns:
      The kernel of the platform, or "xla" where it does not take these shapes and dtypes.
    """
    kernel = platform_kernel(attention_kernel.value, platform())
    if kernel == "xla" or bias is not None:
        return "xla"
    length, keys, d = q.shape[1], k.shape[1], q.shape[3]
    if min(length, keys) < SHORTEST[kernel] or d > WIDEST_HEAD[kernel]:
        return "xla"
    if kernel == "cudnn":
        # Of masks, which reach cuDNN as biases, it differentiates those of even sides only.
        fits = q.dtype in (jnp.bfloat16, jnp.float16) and d % 8 == 0
        return "cudnn" if fits and (mask is None or length % 2 == keys % 2 == 0) else "xla"
    return "pallas" if _splits(q) else "xla"


def _splits(q: jax.Array) -> bool:
    """Whether the batch and the heads of queries divide over the mesh, by which the Pallas kernel must be split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:  # nothing says how the arrays lie, and the compiler cannot split the kernel
        return jax.device_count() == 1
    heads = mesh.shape.get("tensor", 1)
    return q.shape[0] % (mesh.size // heads) == 0 and q.shape[2] % heads == 0


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """cuDNN's flash attention; arguments and result as in `attention`."""
    if mask is not None:
        mask = jnp.broadcast_to(mask[:, None, None, :], (q.shape[0], 1, q.shape[1], k.shape[1]))  # [B, 1, N, M]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def pallas_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Pallas splash attention, each device of the mesh on its images and heads; arguments and result as in `attention`.

    Sequences are padded to whole blocks and no query sees the padding. Heads of any width are taken as they are: the
    TPU compiler lays 64 or 72 columns out on 128 lanes itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _splash(q, k, v, mask)
    batch = tuple(name for name in mesh.axis_names if name != "tensor")
    rows = PartitionSpec(batch, None, "tensor" if "tensor" in mesh.axis_names else None, None)
    specs = (rows, rows, rows, None if mask is None else PartitionSpec(batch, None))
    # Splash attention does not say over which axes its outputs vary, so that shard_map must not ask.
    return jax.shard_map(_splash, in_specs=specs, out_specs=rows, check_vma=False)(q, k, v, mask)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    length, keys, heads, d = q.shape[1], k.shape[1], q.shape[2], q.shape[3]
    q = scaled(q, d)
    padded, padded_keys = -(-length // LANES) * LANES, -(-keys // LANES) * LANES

    def arrange(x: jax.Array, tokens: int) -> jax.Array:
        x = x.swapaxes(1, 2)  # [B, heads, N, d]
        return jnp.pad(x, ((0, 0), (0, 0), (0, tokens - x.shape[2]), (0, 0)))  # [B, heads, tokens, d]

    # Queries of segment 1 see keys of segment 1; keys that are masked or padding are in segment 0.
    segments = None
    if mask is not None or padded_keys != keys:
        seen = jnp.ones((q.shape[0], keys), bool) if mask is None else mask  # [B, M]
        if mask is not None:  # a row that allows no key weighs all alike, as queries of zero do
            some = mask.any(1, keepdims=True)  # [B, 1]
            q, seen = jnp.where(some[:, :, None, None], q, 0), mask | ~some
        kv = jnp.pad(seen.astype(jnp.int32), ((0, 0), (0, padded_keys - keys)))  # [B, padded_keys]
        segments = splash.SegmentIds(jnp.ones((q.shape[0], padded), jnp.int32), kv)
    block, block_keys = _block(padded), _block(padded_keys)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block_keys,
        block_q_dkv=block,
        block_kv_dkv=block_keys,
        block_q_dq=block,
        block_kv_dq=block_keys,
    )
    full = splash_mask.MultiHeadMask([splash_mask.FullMask((padded, padded_keys))] * heads)
    kernel = splash.make_splash_mha(
        full, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=platform() != "tpu"
    )
    out = jax.vmap(kernel)(arrange(q, padded), arrange(k, padded_keys), arrange(v, padded_keys), segments)
    return out[:, :, :length].swapaxes(1, 2)  # [B, N, heads, d]


def _block(tokens: int) -> int:
    """The longest block, a multiple of `LANES`, that divides a padded sequence."""
    return max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if tokens % size == 0)


def scaled(q: jax.Array, d: int) -> jax.Array:
    """q / √d in its dtype; the product is rounded, not the factor, which in bfloat16 is off by up to 0.4 %."""
    return (q.astype(jnp.float32) * d**-0.5).astype(q.dtype)
