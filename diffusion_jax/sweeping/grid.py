"""Points of a sweep: which overrides belong to which run."""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.errors import UserError

SweepPoint = dict[str, Any]
"""Overrides of one run: "section.key" to its value."""

# Longer names are cut; file systems end at 255 bytes.
LONGEST_NAME = 120


def product(*parts: Mapping[str, Sequence[Any]] | Sequence[SweepPoint]) -> list[SweepPoint]:
    """Every combination of its parts, the last one varying fastest.

    Args:
      *parts: lists of points, such as `zipped` and `product` return, or mappings from keys to their values, each key of
        which is a part of its own.

    Returns:
      The points, each with the keys of all parts.

    Raises:
      UserError: a key occurs in two parts.

    >>> product({"optimizer.lr": [1e-3, 1e-4]}, {"train.seed": [0, 1]})[1]
    {'optimizer.lr': 0.001, 'train.seed': 1}
    """
    axes: list[Sequence[SweepPoint]] = []
    for part in parts:
        if isinstance(part, Mapping):
            axes += [[{key: value} for value in values] for key, values in part.items()]
        else:
            axes.append(part)
    return [_joined(points) for points in itertools.product(*axes)]


def zipped(axes: Mapping[str, Sequence[Any]]) -> list[SweepPoint]:
    """The first values of all keys, then the second values of all keys, and so on.

    Args:
      axes: key to its values, equally many for each.

    Returns:
      As many points as there are values of a key.

    Raises:
      UserError: the keys have different numbers of values.

    >>> zipped({"model.width": [64, 128], "model.heads": [2, 4]})
    [{'model.width': 64, 'model.heads': 2}, {'model.width': 128, 'model.heads': 4}]
    """
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise UserError(f"zipped values must be equally many for every key: there are of {counts}")
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def names(points: Sequence[SweepPoint]) -> list[str]:
    """Names of runs that can be read and be folders, "lr=0.001,loss=min_snr".

    A key is called by its last word, `section.name` by its section, and where two keys of the sweep would be called the
    same, both are written whole. So a name stays the same while only values are added.

    Raises:
      UserError: two points are the same.
    """
    keys = {key for point in points for key in point}
    words = [_word(key) for key in keys]
    called = {key: _word(key) if words.count(_word(key)) == 1 else key for key in keys}
    parts = [[f"{called[key]}={_readable(value)}" for key, value in point.items()] for point in points]
    found = [",".join(part) or "base" for part in parts]
    for name in found:
        if found.count(name) > 1:
            raise UserError(f"two points of the sweep have the name '{name}': each run needs a folder of its own")
    return [name if len(name) <= LONGEST_NAME else _cut(name) for name in found]


def _word(key: str) -> str:
    section, _, last = key.rpartition(".")
    return section if last == "name" else last


def _joined(points: Sequence[SweepPoint]) -> SweepPoint:
    joined: SweepPoint = {}
    for point in points:
        for key in point:
            if key in joined:
                raise UserError(f"{key} occurs in two parts of a product: give each key its values in one place")
        joined |= point
    return joined


def _readable(value: Any) -> str:
    """A value as part of a file name: what would have to be quoted in a shell becomes a dash."""
    text = str(value).replace(" ", "")
    return "".join(letter if letter.isalnum() or letter in "._+" else "-" for letter in text).strip("-")


def _cut(name: str) -> str:
    return f"{name[: LONGEST_NAME - 9]}-{zlib.crc32(name.encode()):08x}"
