"""What a checkpoint says beside its arrays: the one form, and how to read those of older versions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import ml_collections

from diffusion_jax import config as config_lib
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.runs.kinds import Kind, formerly, kind_of

FORMAT = 2
"""The version of the form; checkpoints of format 1 have no number, no section `kind` and no record spec."""

# Sections that classifiers had before they had a schema of their own.
_UNUSED_BY_CLASSIFIERS = ("alignment", "sampler", "guidance", "sample", "evaluate")


@dataclasses.dataclass(frozen=True)
class RunMetadata:
    """What is stored with a checkpoint.

    Attributes:
      config: the resolved config, by section.
      facts: what the run knows of its data.
      versions: of the software that wrote it.
      more: whatever else a kind of run tells: `latents` (statistics of a first stage's latents), `best` (the scores of
        a best checkpoint), `posthoc_ema`, `init_from` (the weights that it began from), `changed` (keys that were
        changed when it resumed).
    """

    config: Mapping[str, Any]
    facts: DatasetFacts
    versions: Mapping[str, str | None]
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the run trains."""
        return kind_of(self.config)

    def complete_config(self, overrides: Sequence[str] = (), **sections: Any) -> ml_collections.ConfigDict:
        """The config with the defaults of keys that have appeared since.

        Args:
          overrides: `--config.section.key=value` arguments.
          **sections: replace whole sections before the overrides.

        Raises:
          UserError: an override that does not fit.
        """
        return config_lib.override({**self.config, **sections}, overrides, self.kind.schema)

    def with_more(self, **more: Any) -> Self:
        """The metadata with further entries."""
        return dataclasses.replace(self, more={**self.more, **more})

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "format": FORMAT,
            "config": dict(self.config),
            "versions": dict(self.versions),
            "data": self.facts.to_json(),
            **self.more,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], name: str) -> Self:
        """The metadata of a checkpoint of this or an older format.

        Args:
          values: what was stored.
          name: of the checkpoint, for messages.

        Raises:
          UserError: a newer version wrote it, or it is damaged.
        """
        written = values.get("format", 1)
        if written > FORMAT:
            raise UserError(
                f"{name} is of format {written}, and this version reads up to {FORMAT}: update diffusion_jax"
            )
        try:
            config, facts = values["config"], DatasetFacts.from_json(values["data"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{name}: its metadata lack {error}: it is damaged; take another checkpoint") from None
        if written == 1:
            config = _with_kind(config)
        more = {key: value for key, value in values.items() if key not in ("format", "config", "data", "versions")}
        return cls(config, facts, values.get("versions", {}), more)


def _with_kind(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of format 1 with its section `kind`."""
    kind = formerly(config)
    unused = _UNUSED_BY_CLASSIFIERS if kind == "classifier" else ()
    return {"kind": {"name": kind}, **{name: section for name, section in config.items() if name not in unused}}
