"""Tiny runs to plan."""

import pytest

from diffusion_jax.config import complete, override
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.smoke import tiny_options

UNCONDITIONAL = ("ascend", "iuvit")
# Enough tokens, and heads wide enough, for the kernels of accelerators.
TRANSFORMER = {"width": 64, "heads": 4, "patch_size": 1}


@pytest.fixture(scope="session")
def tiny():
    """A function (backbone, overrides) → complete config of a tiny run on 16×16 pixels of data that is not there."""

    def config(name, *overrides):
        options = tiny_options(name)
        written = {
            "data": {"name": "folder:nowhere", "image_size": 16, "channels": 1},
            "conditioner": {"name": "none"} if name in UNCONDITIONAL else {"name": "class", "label_drop": 0.1},
            "autoencoder": {"name": "identity"},
            "model": {"name": name, **options, **(TRANSFORMER if "width" in options else {}), "dtype": "bfloat16"},
            "path": {"name": "ddpm"},
            "prediction": {"kind": "epsilon"},
            "loss": {"name": "simple"},
            "ema": {"name": "constant", "max_decay": 0.9},
            "optimizer": {"name": "adamw"},
            "train": {"steps": 1000, "batch_size": 16},
            "sampler": {"name": "ddim", "steps": 4},
            "guidance": {"name": "cfg"},
            "sample": {"batch_size": 2},
        }
        return override(complete(written, DIFFUSION_SCHEMA), overrides, DIFFUSION_SCHEMA)

    return config
