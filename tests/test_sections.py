"""What the sections `train` and `sample` refuse, each in one line that names the key."""

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.sections import SampleConfig, TrainConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, r"^train\.steps=0: must be at least 1$"),
        ({"sample_every": 0}, r"^train\.sample_every=0: must be at least 1, or None for never$"),
        (
            {"save_every": 100, "keep_every": 150},
            r"^train\.keep_every=150: must be a multiple of train\.save_every=100$",
        ),
        ({"seed": 2**32}, r"^train\.seed=4294967296: must be at least 0 and below 2³²$"),
        ({"ema_widths": (0.05,)}, r"^train\.ema_widths=.*: set both or neither$"),
        ({"microbatches": 3}, r"^train\.microbatches=3 does not divide train\.batch_size=8$"),
    ],
)
def test_a_training_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**{"steps": 10, "batch_size": 8, **fields})


def test_a_grid_without_images_is_refused():
    with pytest.raises(UserError, match=r"^sample\.batch_size=64 and sample\.grid=0 must be at least 1$"):
        SampleConfig(grid=0)
