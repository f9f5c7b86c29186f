"""Tiny runs to plan."""

import pytest

from diffusion_jax.config import complete, override
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA

# The smallest of its kind with enough tokens for the kernels of accelerators, and whether it takes labels.
TINY = {
    "ascend": (
        False,
        {
            "model_channels": 32,
            "channel_mult": (1, 1),
            "enc_depths": (1, 1),
            "dec_blocks": (1, 1),
            "attention_resolutions": (),
            "num_head_channels": 16,
            "window_size": 4,
        },
    ),
    "dit": (True, {"depth": 2, "width": 64, "heads": 4, "patch_size": 1}),
    "iuvit": (False, {"depth": 3, "width": 64, "heads": 4, "patch_size": 1}),
    "ldm_transformer": (True, {"depth": 1, "width": 64, "heads": 4, "patch_size": 1}),
    "unet": (
        True,
        {
            "model_channels": 16,
            "channel_mult": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (2,),
            "num_heads": 2,
            "norm_groups": 4,
        },
    ),
    "uvit": (True, {"depth": 3, "width": 64, "heads": 4, "patch_size": 1}),
}


@pytest.fixture(scope="session")
def tiny():
    """A function (backbone, overrides) → complete config of a tiny run on 16×16 pixels of data that is not there."""

    def config(name, *overrides):
        labelled, options = TINY[name]
        written = {
            "data": {"name": "folder:nowhere", "image_size": 16, "channels": 1},
            "conditioner": {"name": "class", "label_drop": 0.1} if labelled else {"name": "none"},
            "autoencoder": {"name": "identity"},
            "model": {"name": name, **options, "dtype": "bfloat16"},
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
