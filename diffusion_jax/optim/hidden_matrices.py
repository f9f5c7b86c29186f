"""Which parameters of a model are hidden matrices, and which of their axes make rows and columns.

An optimizer of matrices has to know: kernels of attention have an axis for queries, keys and values and one for heads,
those of repeated blocks are stacked along a leading axis, and those of convolutions multiply whole windows.
"""

import re

import jax
from jax.tree_util import KeyPath
from optax.contrib import MuonDimensionNumbers

from diffusion_jax.parallel.partition import PyTree, path_name

# What turns data, times and labels into features, and features into the output: their entries have meanings of their
# own. Of modulations only those that follow a hidden layer, as in a transformer's blocks, are products of features.
_NOT_HIDDEN = r"embed|(^|/)(conv_in|conv_out|final|head)/|depthwise"

# Axes from the last one, (those summed over, those of the output); the first expression found in a name decides.
_KERNELS = (
    (r"(qkv|kv)/kernel$", (-4,), (-2, -1)),
    (r"q/kernel$", (-3,), (-2, -1)),
    (r"w12/kernel$", (-3,), (-1,)),
)
_LINEAR = ((-2,), (-1,))
_CONVOLUTION = ((-4, -3, -2), (-1,))


def hidden_matrices(model: PyTree) -> PyTree:
    """The axes of all hidden matrices of a model.

    Args:
      model: parameters under the names that they have in this library, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The same tree with `MuonDimensionNumbers` at hidden matrices, whose other axes number independent matrices, and
      None at all other parameters.
    """

    def axes(path: KeyPath, leaf: jax.Array | jax.ShapeDtypeStruct) -> MuonDimensionNumbers | None:
        name = path_name(path)
        if not re.search(r"(^|/)kernel$", name) or re.search(_NOT_HIDDEN, name):
            return None
        plain = _CONVOLUTION if leaf.ndim == 4 else _LINEAR
        rows, columns = next((kernel[1:] for kernel in _KERNELS if re.search(kernel[0], name)), plain)
        return MuonDimensionNumbers(tuple(leaf.ndim + a for a in rows), tuple(leaf.ndim + a for a in columns))

    return jax.tree_util.tree_map_with_path(axes, model)
