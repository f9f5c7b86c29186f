"""Partition rules: which axis of which parameter is split over which mesh axis."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from diffusion_jax.errors import UserError

PyTree = Any
"""A tree of arrays, or of what stands for them, whose structure its reader does not need to know."""

PartitionRules = Sequence[tuple[str, PartitionSpec]]


def path_name(path: KeyPath) -> str:
    """The name of a leaf, "blocks/attn/qkv/kernel", from its JAX key path without the `.value` of NNX variables."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return "/".join(part for part in parts if part != "value")


def make_shardings(tree: PyTree, rules: PartitionRules, mesh: Mesh) -> PyTree:
    """Applies partition rules to a tree of arrays.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s; parameters, or whatever holds them under the same names (gradients,
        Adam moments, EMA).
      rules: (regular expression, spec) pairs; the first expression found in a leaf's name decides. No match, or a
        scalar: replicated.
      mesh: the mesh.

    Returns:
      The same tree with `NamedSharding` leaves.

    Raises:
      UserError: a mesh axis does not divide the array axis it is to split.
    """

    def sharding(path: KeyPath, leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if leaf.ndim and re.search(pattern, name)), PartitionSpec())
        for axis, mesh_axis in enumerate(spec):
            if mesh_axis is not None and leaf.shape[axis] % mesh.shape[mesh_axis]:
                raise UserError(
                    f"mesh.{mesh_axis}={mesh.shape[mesh_axis]} does not divide axis {axis} of {name} "
                    f"{tuple(leaf.shape)}: use a divisor of {leaf.shape[axis]}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)
