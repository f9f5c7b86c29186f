"""What samples are to show: records without an image, by number."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax.data import open_source
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning.conditioners import Conditioner
from diffusion_jax.records import Record
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.sampling.labels import BALANCED, parse_labels


class Requests(Sequence[Record]):
    """Records that share their fields, kept by field.

    Args:
      num: their number N.
      fields: by name, the value of each record, N of them; may be empty for a model without a condition.

    Raises:
      UserError: a field has another number of values.
    """

    def __init__(self, num: int, fields: Mapping[str, Sequence[Any]]):
        for name, values in fields.items():
            if len(values) != num:
                raise UserError(f"{num} samples were asked for and {len(values)} values of '{name}': give one for each")
        self.num, self.fields = num, dict(fields)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            kept = {name: values[index] for name, values in self.fields.items()}
            return Requests(len(range(self.num)[index]), kept)
        return {name: values[index] for name, values in self.fields.items()}

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(self.num))


def batch_arrays(conditioner: Conditioner, numbered: Sequence[tuple[int, Record]], seed: int) -> dict[str, np.ndarray]:
    """The arrays that a conditioner makes of requests, by name, each with a leading axis.

    Args:
      conditioner: the conditioner.
      numbered: the number of each sample and what it is to show.
      seed: of the samples.
    """
    made = [conditioner.arrays(record, seed, number) for number, record in numbered]
    return {name: np.stack([each[name] for each in made]) for name in conditioner.array_spec}


def labelled_requests(labels: np.ndarray) -> Requests:
    """One request for each of the labels [N]."""
    return Requests(len(labels), {"label": labels.tolist()})


def default_requests(system: DiffusionSystem, num: int, seed: int, labels: str = BALANCED) -> Requests:
    """What a run shows of itself where nobody asks for anything in particular.

    Args:
      system: the run's parts.
      num: number of samples.
      seed: of labels that are drawn.
      labels: their law, for a model of labels or of nothing; see `parse_labels`.

    Returns:
      Requests by label, or for a model of another condition the first records of its data.

    Raises:
      UserError: the data are needed and not to be had.
    """
    reads = type(system.conditioner).reads
    if set(reads) <= {"label"}:
        facts = system.facts
        return labelled_requests(parse_labels(labels, num, facts.num_classes, seed, facts.class_names))
    source = open_source(system.data, reads)
    records = [source[i % len(source)] for i in range(num)]
    return Requests(num, {name: [record[name] for record in records] for name in reads})


def captions_of(requests: Sequence[Record], class_names: Sequence[str]) -> list[str] | None:
    """What to write above each sample: its caption or the name of its class; None where requests have neither."""
    fields = requests[0].keys() if len(requests) else ()
    if "caption" in fields:
        return [str(record["caption"]) for record in requests]
    return [class_names[record["label"]] for record in requests] if "label" in fields else None
