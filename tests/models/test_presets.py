"""The stored sizes of the published models against a fresh count."""

import pytest

from diffusion_jax.models.presets import PRESETS
from diffusion_jax.models.presets.counts import COUNTS
from diffusion_jax.models.presets.first_stages import FIRST_STAGE_PRESETS

ALL = {**PRESETS, **FIRST_STAGE_PRESETS}
# One of each backbone, and a first stage.
QUICK = ["ascend-128", "dit-xl/2-512", "iuvit-text64", "ldm8-transformer", "ldm-bsr-sr", "uvit-cifar10", "kl-f16"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in QUICK]


def test_every_published_model_has_stored_figures():
    assert list(COUNTS) == list(ALL)


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_stored_figures_are_those_of_a_fresh_count(name):
    assert ALL[name].count() == COUNTS[name]


def test_attention_of_a_first_stage_is_as_long_as_its_largest_attending_level():
    # Of 256 pixels: the middle of f = 4 has 64² cells, f = 8 attends at 32² in a level too, "noattn" nowhere.
    tokens = [COUNTS[name].tokens for name in ("vq-f4", "vq-f8", "kl-f32", "vq-f4-noattn")]
    assert tokens == [64**2, 32**2, 16**2, 0]
