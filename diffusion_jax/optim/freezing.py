"""Parameters that a run leaves as they are."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.partition import PyTree, path_name


def frozen_names(tree: PyTree, patterns: Sequence[str]) -> list[str]:
    """The names of the arrays of a tree in which one of the patterns is found, such as "blocks.attn.qkv.kernel"."""
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return [name for name in names if _matches(name, patterns)]


def freeze(transformation: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformation:
    """Keeps parameters from moving; their gradients count nowhere, not in the norm that is clipped either.

    Args:
      transformation: what moves the others.
      patterns: regular expressions; a parameter in whose name one is found does not move. Empty changes nothing.

    Returns:
      The transformation; its `init` raises a `UserError` if a pattern is found in no name.
    """
    if not patterns:
        return transformation

    def without(tree: optax.Updates) -> optax.Updates:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.zeros_like(leaf) if _matches(_name(path), patterns) else leaf, tree
        )

    def init(params: optax.Params) -> optax.OptState:
        for pattern in patterns:
            if not frozen_names(params, [pattern]):
                known = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
                raise UserError(
                    f"train.freeze={pattern!r}: is found in no parameter's name; names are {known[0]}, {known[-1]}, …"
                )
        return transformation.init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        moved, state = transformation.update(without(updates), state, params)
        return without(moved), state

    return optax.GradientTransformation(init, update)


def _name(path: KeyPath) -> str:
    return path_name(path).replace("/", ".")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
