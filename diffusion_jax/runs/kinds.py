"""The kinds of run, each with its own config sections."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_jax.autoencoding.system import AUTOENCODER_SCHEMA, AutoencoderSystem
from diffusion_jax.config import Schema
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.runs.system import ClassifierSystem, DiffusionSystem


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the table of kinds.

    Attributes:
      name: the `name` of the config section `kind`.
      trains: what such a run trains, for messages.
      system: the class that builds its parts from a config.
      schema: its config sections.
    """

    name: str
    trains: str
    system: type[DiffusionSystem] | type[ClassifierSystem] | type[AutoencoderSystem]
    schema: Schema


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("diffusion", "a diffusion model", DiffusionSystem, DiffusionSystem.schema),
        Kind("classifier", "a classifier of noisy data", ClassifierSystem, ClassifierSystem.schema),
        Kind("first_stage", "a first stage", AutoencoderSystem, AUTOENCODER_SCHEMA),
    )
}
"""The kinds of run by name."""

DEFAULT = "diffusion"


def kind_of(config: Mapping[str, Any]) -> Kind:
    """What a config trains: the row that its section `kind` names, by default a diffusion model.

    Args:
      config: section name to its keys and values, complete or as written.

    Raises:
      UserError: there is no such kind, or the section is missing from a config that cannot be of the default kind.
    """
    name = (config.get("kind") or {}).get("name", DEFAULT)
    if name not in KINDS:
        raise UserError(f"kind.name={name!r} is not known{did_you_mean(str(name), KINDS)}")
    if not config.get("kind"):
        found = formerly(config)
        if found != DEFAULT:
            raise UserError(f"this config trains {KINDS[found].trains}: add the section 'kind': {{'name': '{found}'}}")
    return KINDS[name]


def formerly(config: Mapping[str, Any]) -> str:
    """The name of the kind of a config that was stored before there was a section `kind`."""
    if "discriminator" in config:
        return "first_stage"
    loss = (config.get("loss") or {}).get("name")
    return "classifier" if loss == "classification" else DEFAULT
