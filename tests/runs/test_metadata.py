"""What a checkpoint says beside its arrays."""

import pytest

from diffusion_jax.config import load_config
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.records import Field
from diffusion_jax.runs.kinds import KINDS
from diffusion_jax.runs.metadata import FORMAT, RunMetadata
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA


def stored(**more):
    spec = {"image": Field((8, 8, 1), "uint8"), "caption": Field()}
    facts = DatasetFacts(2, ("a", "b"), "data", None, spec)
    config = load_config("configs/digits.py:smoke", [], DIFFUSION_SCHEMA).to_dict()
    return RunMetadata(config, facts, {"jax": "1"}, more)


def test_it_is_read_as_it_was_written():
    metadata = stored(latents={"mean": [0.0]})
    values = metadata.to_json()
    assert values["format"] == FORMAT == 2
    again = RunMetadata.from_json(values, "x")
    assert again.facts == metadata.facts and again.more == metadata.more and again.kind is KINDS["diffusion"]
    assert again.complete_config() == metadata.complete_config()


@pytest.mark.parametrize(
    ("sections", "kind"),
    [({}, "diffusion"), ({"loss": {"name": "classification"}}, "classifier"), ({"discriminator": {}}, "first_stage")],
)
def test_the_kind_of_an_old_checkpoint_is_known(sections, kind):
    values = stored().to_json()
    del values["format"], values["config"]["kind"], values["data"]["record_spec"]
    metadata = RunMetadata.from_json({**values, "config": {**values["config"], **sections}}, "x")
    assert metadata.kind is KINDS[kind] and metadata.facts.record_spec == {}
    assert ("sampler" in metadata.config) == (kind != "classifier")


def test_a_newer_format_and_a_damaged_one_are_refused():
    with pytest.raises(UserError, match="x is of format 3, and this version reads up to 2"):
        RunMetadata.from_json({**stored().to_json(), "format": 3}, "x")
    with pytest.raises(UserError, match="its metadata lack 'config'"):
        RunMetadata.from_json({}, "x")
