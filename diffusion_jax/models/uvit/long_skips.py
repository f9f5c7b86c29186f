"""Transformer blocks joined by long skip connections, as a U-Net joins its levels (arXiv 2209.12152, §3.1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers.precision import Precision
from diffusion_jax.models.layers.remat import RematPolicy, remat
from diffusion_jax.models.layers.scan_blocks import scan_blocks
from diffusion_jax.models.layers.transformer import Linear
from diffusion_jax.parallel.partition import PyTree

# The published code truncates at ±2, a hundred standard deviations out: at nothing.
INIT = nnx.initializers.normal(0.02)

# An NNX module that maps ([B, N, D], *context) to [B, N, D].
Block = Any


class UpBlock(nnx.Module):
    """A block that first takes in the output of an earlier one: x ← Linear([x, skip]).

    Args:
      block: maps ([B, N, D], *context) to [B, N, D].
      width: D.
      dtype: compute dtype of the projection.
      rngs: initialiser streams.
    """

    def __init__(self, block: Block, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.skip = Linear(2 * width, width, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.block = block

    def __call__(self, x: jax.Array, skip: jax.Array, *context: PyTree) -> jax.Array:
        """Maps tokens and skip, [B, N, D] each, to [B, N, D] in the dtype of x."""
        joined = jnp.concatenate([x, skip], axis=-1)  # [B, N, 2D]
        return self.block(self.skip(joined).astype(x.dtype), *context)  # [B, N, D]


class LongSkips(nnx.Module):
    """(L − 1)/2 blocks down, one in the middle, (L − 1)/2 up; the last output on the way down joins the first block up.

    Args:
      make_block: makes a block, which maps ([B, N, D], *context) to [B, N, D].
      depth: number of blocks L, odd and at least 3.
      width: D.
      precision: the mixed-precision policy.
      remat_policy: rematerialisation policy of the blocks.
      rngs: initialiser streams.

    Raises:
      UserError: a number of blocks that cannot be halved.
    """

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], Block],
        depth: int,
        width: int,
        *,
        precision: Precision,
        remat_policy: RematPolicy,
        rngs: nnx.Rngs,
    ):
        if depth < 3 or depth % 2 == 0:
            raise UserError(f"model.depth={depth} must be odd and at least 3: as many blocks up as down, one between")
        self.remat = remat_policy

        def up_block(key: jax.Array) -> UpBlock:
            rngs = nnx.Rngs(key)
            return UpBlock(make_block(rngs), width, dtype=precision.compute_dtype, rngs=rngs)

        self.down = jax.vmap(lambda key: make_block(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth // 2))
        self.middle = make_block(nnx.Rngs(rngs.params()))
        self.up = jax.vmap(up_block)(jax.random.split(rngs.params(), depth // 2))

    def __call__(self, x: jax.Array, *context: PyTree) -> jax.Array:
        """Applies all blocks.

        Args:
          x: [B, N, D] tokens.
          *context: what every block is told beside them.

        Returns:
          [B, N, D] in the dtype of x.
        """

        def down(x: jax.Array, block: Block) -> tuple[jax.Array, jax.Array]:
            x = block(x, *context)
            return x, x

        def up(x: jax.Array, layer: tuple[UpBlock, jax.Array]) -> tuple[jax.Array, None]:
            block, skip = layer
            return block(x, skip, *context), None

        x, skips = scan_blocks(down, x, self.down, self.remat)  # [(L − 1)/2, B, N, D]
        x = remat(lambda x: self.middle(x, *context), self.remat, in_scan=False)(x)
        x, _ = scan_blocks(up, x, (self.up, skips[::-1]), self.remat)
        return x


def _block_rules(block: str, layers: tuple[None, ...]) -> tuple[tuple[str, PartitionSpec], ...]:
    def spec(*axes: str | None) -> PartitionSpec:
        return PartitionSpec(*layers, *axes)

    return (
        (rf"{block}/attn/qkv/kernel", spec("fsdp", None, "tensor", None)),
        (rf"{block}/attn/qkv/bias", spec(None, "tensor", None)),
        (rf"{block}/cross/q/kernel", spec("fsdp", "tensor", None)),
        (rf"{block}/cross/q/bias", spec("tensor", None)),
        (rf"{block}/cross/kv/kernel", spec("fsdp", None, "tensor", None)),
        (rf"{block}/cross/kv/bias", spec(None, "tensor", None)),
        (rf"{block}/(attn|cross)/proj/kernel", spec("tensor", "fsdp")),
        (rf"{block}/ffn/fc1/kernel", spec("fsdp", "tensor")),
        (rf"{block}/ffn/fc1/bias", spec("tensor")),
        (rf"{block}/ffn/depthwise/kernel", spec(None, None, "tensor")),
        (rf"{block}/ffn/(depthwise/bias|norm\d/(scale|bias))", spec("tensor")),
        (rf"{block}/ffn/fc2/kernel", spec("tensor", "fsdp")),
    )


# Head- and hidden-wise over "tensor", the other matrix axis over "fsdp".
PARTITION_RULES = (
    *_block_rules("trunk/down", (None,)),
    *_block_rules("trunk/middle", ()),
    *_block_rules("trunk/up/block", (None,)),
    (r"trunk/up/skip/kernel", PartitionSpec(None, "tensor", "fsdp")),
)
"""How the parameters of a `LongSkips` named `trunk` split over the mesh."""
