"""DDPM on the pixels of CIFAR-10, without labels (arXiv 2006.11239, §4 and appendix B).

FID of 50k samples against the training set, as published: 3.17 after 800k steps, drawn with 1000 ancestral steps.

    pip install -e '.[tf]'
    diffusion-jax train --config configs/cifar10_ddpm.py --workdir runs/cifar10_ddpm

One setting of the published run is missing here: its own initial values, for which those of IDDPM stand in.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset
from diffusion_jax.smoke import smoke_form

BATCH_SIZE = 128


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model, digits)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {"name": "tfds:cifar10", "split": "train", "image_size": 32, "channels": 3, "flip": True},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {**preset("ddpm-cifar10").section(), "dropout": 0.1},
        "path": {"name": "ddpm", "schedule": "linear"},
        "prediction": {"kind": "epsilon", "variance": "fixed_large"},
        "loss": {"name": "simple"},
        "optimizer": {"name": "adamw", "lr": 2e-4, "warmup_steps": 5000, "clip_norm": 1.0},
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {
            "steps": 800_000,
            "batch_size": BATCH_SIZE,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "ddpm", "steps": 1000},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
        "sample": {"transform": "clip", "batch_size": 512},
        "mesh": {"data": -1},
    }
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
