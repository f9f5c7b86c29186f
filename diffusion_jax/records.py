"""The record contract: which fields the records of a data set hold, of which shapes and types."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.errors import UserError

Json = dict[str, Any]
"""What is read from or written to a file of JSON."""

Record = Mapping[str, Any]
"""One image and what is known of it, by the name of the field."""

TEXT = "text"
"""The `dtype` of a field of text: a Python string, which stays on the host."""


class Field(NamedTuple):
    """What a field of a record is.

    Attributes:
      shape: of the array; () for a number and for text.
      dtype: the name of a NumPy dtype, such as "uint8", or `TEXT`.
    """

    shape: tuple[int, ...] = ()
    dtype: str = TEXT


RecordSpec = Mapping[str, Field]
"""The fields of every record of a data set by name."""


def array_fields(spec: RecordSpec) -> tuple[str, ...]:
    """The names of the fields that are arrays and may go to devices, in the order of the spec."""
    return tuple(name for name, field in spec.items() if field.dtype != TEXT)


def image_records(image_shape: tuple[int, int, int], labelled: bool = True) -> dict[str, Field]:
    """The spec of records of an image uint8 [H, W, C] and, if `labelled`, a `label`, an int32."""
    spec = {"image": Field(image_shape, "uint8")}
    return {**spec, "label": Field((), "int32")} if labelled else spec


def check_fields(reader: str, wanted: tuple[str, ...], spec: RecordSpec, data: str) -> None:
    """Refuses data without a field that something reads.

    Args:
      reader: what reads, for the message.
      wanted: the fields that it reads.
      spec: the fields that there are.
      data: the name of the data, for the message.

    Raises:
      UserError: a field is missing.
    """
    for name in wanted:
        if name not in spec:
            raise UserError(
                f"{reader} reads '{name}', which the records of {data} do not hold (they hold {', '.join(spec)}): "
                "choose other data or another conditioner"
            )


def check_record(record: Record, spec: RecordSpec, name: str) -> None:
    """Refuses a record whose fields are not of the shapes and types that were promised.

    Args:
      record: the record.
      spec: what it must hold; further fields are passed over.
      name: of the record, for the message.

    Raises:
      UserError: a field is missing, or of another shape or type.
    """
    for key, field in spec.items():
        if key not in record:
            raise UserError(f"{name} has no '{key}'; it needs {', '.join(spec)}")
        value = record[key]
        found = Field() if isinstance(value, str) else Field(np.shape(value), np.asarray(value).dtype.name)
        if found != field:
            raise UserError(f"{name}: '{key}' is {found.dtype} {found.shape}, not {field.dtype} {field.shape}")


def spec_to_json(spec: RecordSpec) -> Json:
    """What `spec_from_json` reads."""
    return {name: {"shape": list(field.shape), "dtype": field.dtype} for name, field in spec.items()}


def spec_from_json(values: Json) -> dict[str, Field]:
    """The inverse of `spec_to_json`."""
    return {name: Field(tuple(field["shape"]), field["dtype"]) for name, field in values.items()}
