"""Name tables between our modules and foreign state dicts, read in both directions.

A table is a sequence of `Entry`. Each pairs one of our parameters with the tensor, or the tensors, that hold its
numbers elsewhere, so the same lines import and export:

    entries = [
        *linear("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"),  # {i}: our blocks are one module with a leading axis
        *conv("x_embedder.proj", "patch_embed", transform=ConvAsLinear(patch_size)),
        Entry("y_embedder.embedding_table.weight", "label_embed/table/embedding"),
    ]
    model = load_state_dict(jax.eval_shape(make_model), state_dict, entries)
    state_dict = dump_state_dict(model, entries)

Our parameters go by the names that partition rules use: attributes and list positions joined by slashes.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.partition import PyTree, path_name

Module = TypeVar("Module")
Leaf = jax.Array | jax.ShapeDtypeStruct


class Conversion(Protocol):
    """A change of layout that loses nothing: `inverse(forward(x))` is `x`."""

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        """Their layout to ours."""

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        """Our layout to theirs; must not read values, since it also serves to derive shapes."""


@dataclasses.dataclass(frozen=True)
class Permute:
    """Ours is theirs with its axes in the order `axes`."""

    axes: tuple[int, ...]

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        return theirs.transpose(self.axes)

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        return ours.transpose(np.argsort(self.axes))


@dataclasses.dataclass(frozen=True)
class Same:
    """Both sides have the same layout."""

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        return theirs

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        return ours


@dataclasses.dataclass(frozen=True)
class Squeeze:
    """Theirs has a leading axis of one element more than ours, as learned position tables [1, N, D] do."""

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        return theirs[0]

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        return ours[None]


@dataclasses.dataclass(frozen=True)
class ConvAsLinear:
    """Theirs is a convolution [O, I, k, k], ours a product [k·k·I, O] whose input is ordered (row, column, channel).

    Attributes:
      kernel_size: k; 1 for pointwise convolutions, the patch size for patch embeddings.
    """

    kernel_size: int = 1

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        return theirs.transpose(2, 3, 1, 0).reshape(-1, theirs.shape[0])

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        k, width = self.kernel_size, ours.shape[-1]
        return ours.reshape(k, k, -1, width).transpose(3, 2, 0, 1)


@dataclasses.dataclass(frozen=True)
class SplitOutput:
    """Theirs is a linear weight [out, in] or bias [out], ours [in, *features] or [*features], out = ∏ features.

    Attributes:
      features: the axes that `nnx.LinearGeneral` splits its output into, such as (3, heads, d).
    """

    features: tuple[int, ...]

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        return theirs.T.reshape(*theirs.shape[1:], *self.features)

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(*ours.shape[: ours.ndim - len(self.features)], -1).T


@dataclasses.dataclass(frozen=True)
class PerChannel:
    """Theirs is [1, C, 1, 1], to be broadcast over images or to be a convolution to one channel; ours is [C]."""

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        return theirs.reshape(-1)

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        return ours.reshape(1, -1, 1, 1)


SAME = Same()
LINEAR = Permute((1, 0))  # [out, in] <-> [in, out]
CONV = Permute((2, 3, 1, 0))  # OIHW <-> HWIO


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of ours and where a foreign state dict keeps it.

    Attributes:
      theirs: their name. With `{i}` it stands for one tensor per layer, stacked along the leading axis of ours. Several
        names stand for equal parts joined along the first axis of their layout (separate q, k, v of one qkv).
      ours: the path of our parameter, such as "blocks/attn/qkv/kernel".
      transform: from their layout (of one layer, parts joined) to ours.
      copies: further names that must hold exactly the same tensor; written on export too. Only with one `theirs`.
    """

    theirs: str | tuple[str, ...]
    ours: str
    transform: Conversion = SAME
    copies: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def stacked(self) -> bool:
        return "{i}" in self.parts[0]


def linear(
    theirs: str | tuple[str, ...], ours: str, *, bias: bool = True, out_features: tuple[int, ...] | None = None
) -> list[Entry]:
    """The entries of a linear layer: `weight` [out, in] to `kernel` [in, out], and `bias` where it has one.

    `out_features` are the axes of an `nnx.LinearGeneral`, which splits its output.
    """
    if out_features is None:
        return _layer(theirs, ours, "kernel", LINEAR, SAME, bias)
    split = SplitOutput(out_features)
    return _layer(theirs, ours, "kernel", split, split, bias)


def conv(theirs: str | tuple[str, ...], ours: str, *, bias: bool = True, transform: Conversion = CONV) -> list[Entry]:
    """The entries of a convolution: `weight` OIHW to `kernel` HWIO, and `bias` where it has one."""
    return _layer(theirs, ours, "kernel", transform, SAME, bias)


def norm(theirs: str, ours: str, *, bias: bool = True) -> list[Entry]:
    """The entries of an affine normalisation: `weight` to `scale`, and `bias` where it has one."""
    return _layer(theirs, ours, "scale", SAME, SAME, bias)


def _layer(
    theirs: str | tuple[str, ...], ours: str, weight: str, transform: Conversion, bias_transform: Conversion, bias: bool
) -> list[Entry]:
    names = (theirs,) if isinstance(theirs, str) else theirs
    entries = [Entry(tuple(f"{name}.weight" for name in names), f"{ours}/{weight}", transform)]
    if bias:
        entries.append(Entry(tuple(f"{name}.bias" for name in names), f"{ours}/bias", bias_transform))
    return entries


def parameter_paths(module: PyTree) -> dict[str, Leaf]:
    """The array leaves of a module by path, in tree order.

    Args:
      module: an NNX module of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      Path such as "blocks/attn/qkv/kernel" or "levels/0/conv/bias" to leaf.
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(module)[0]}


def load_state_dict(
    module: Module,
    state_dict: Mapping[str, np.ndarray],
    entries: Iterable[Entry],
    *,
    ignore: Sequence[str] = (),
    source: str = "state dict",
) -> Module:
    """Fills a module from a foreign state dict.

    Args:
      module: the module to fill; concrete, or abstract as `jax.eval_shape` makes it. Not modified.
      state_dict: their name to array, any floating dtype; values are cast to the dtype of our parameter.
      entries: the table; must cover every parameter of `module` exactly once.
      ignore: shell patterns of their names that are of no use here ("loss.*").
      source: where the state dict comes from, for error messages.

    Returns:
      A module of the same structure whose arrays carry the sharding of the leaf they replace, if it has one.

    Raises:
      UserError: a name is missing or unexpected, a shape differs, or copies disagree.
      ValueError: the table does not fit the module.
    """
    entries = list(entries)
    leaves = _check_table(module, entries)
    wanted = [name for entry in entries for name in _their_names(entry, leaves[entry.ours])]
    spare = [name for name in state_dict if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)]
    _check_names(wanted, spare, state_dict, source)

    loaded = {entry.ours: _import(entry, leaves[entry.ours], state_dict, source) for entry in entries}
    return jax.tree_util.tree_map_with_path(lambda path, _: loaded[path_name(path)], module)


def dump_state_dict(module: PyTree, entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """Writes a module as a foreign state dict; the inverse of `load_state_dict`.

    Args:
      module: a module of concrete arrays.
      entries: the table; must cover every parameter of `module` exactly once.

    Returns:
      Their name to contiguous array, in the order of the table, in the dtype of our parameter.

    Raises:
      ValueError: the table does not fit the module.
    """
    entries = list(entries)
    leaves = _check_table(module, entries)
    state_dict = {}
    for entry in entries:
        ours = np.asarray(jax.device_get(leaves[entry.ours]))
        layers = ours if entry.stacked else ours[None]
        for i, layer in enumerate(layers):
            for part, array in zip(
                entry.parts, np.split(entry.transform.inverse(layer), len(entry.parts)), strict=True
            ):
                # safetensors writes the memory of an array, whatever its strides say.
                array = np.ascontiguousarray(array)
                for name in (part, *entry.copies):
                    state_dict[name.replace("{i}", str(i))] = array
    return state_dict


def _check_table(module: PyTree, entries: Sequence[Entry]) -> dict[str, Leaf]:
    """Returns the leaves by path; raises unless each has one entry and no name of theirs is used twice."""
    leaves = parameter_paths(module)
    covered = [entry.ours for entry in entries]
    wrong = [path for path in leaves if path not in covered] + [path for path in covered if path not in leaves]
    theirs = [name for entry in entries for name in (*entry.parts, *entry.copies)]
    wrong += [name for names in (covered, theirs) for n, name in enumerate(names) if name in names[:n]]
    if wrong:
        raise ValueError(f"the name table and {type(module).__name__} disagree on {wrong}")
    return leaves


def _their_names(entry: Entry, leaf: Leaf) -> Iterator[str]:
    for i in range(leaf.shape[0] if entry.stacked else 1):
        yield from (name.replace("{i}", str(i)) for name in (*entry.parts, *entry.copies))


def _check_names(wanted: list[str], spare: list[str], state_dict: Mapping[str, np.ndarray], source: str) -> None:
    missing = [name for name in wanted if name not in state_dict]
    unexpected = sorted(set(spare) - set(wanted))
    faults = []
    for fault, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts = sorted({name.partition(".")[0] for name in names})
            among = f" (of {', '.join(parts)})" if len(parts) > 1 else ""
            faults.append(f"{fault} '{names[0]}'{more}{among}")
    if faults:
        raise UserError(f"{source} {' and '.join(faults)}: not the weights of this model; check the configuration")


def _import(entry: Entry, leaf: Leaf, state_dict: Mapping[str, np.ndarray], source: str) -> jax.Array:
    layer_shape = leaf.shape[1:] if entry.stacked else leaf.shape
    # A broadcast scalar takes no memory, and every transform answers with a view of it.
    joined_shape = entry.transform.inverse(np.broadcast_to(np.float32(0), layer_shape)).shape
    part_shape = joined_shape
    if len(entry.parts) > 1:
        part_shape = (joined_shape[0] // len(entry.parts), *joined_shape[1:])

    def read(name: str) -> np.ndarray:
        array = np.asarray(state_dict[name])
        if array.shape != part_shape:
            raise UserError(
                f"{source}: '{name}' has shape {array.shape}, this model needs {part_shape}; check the configuration"
            )
        return array

    layers = []
    for i in range(leaf.shape[0] if entry.stacked else 1):
        parts = [read(name.replace("{i}", str(i))) for name in entry.parts]
        for copy in entry.copies:
            name = copy.replace("{i}", str(i))
            if not np.array_equal(read(name), parts[0]):
                raise UserError(f"{source}: '{name}' and '{entry.parts[0]}' must be equal, but differ")
        layers.append(entry.transform.forward(parts[0] if len(parts) == 1 else np.concatenate(parts)))
    array = np.stack(layers) if entry.stacked else layers[0]
    # An array nobody placed must stay free to move to the mesh of its first use.
    placed = getattr(leaf, "committed", True)
    return jax.device_put(array.astype(leaf.dtype), getattr(leaf, "sharding", None) if placed else None)
