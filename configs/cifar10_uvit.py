"""U-ViT-S/2 on CIFAR-10, unconditional, 32×32: the released recipe (arXiv 2209.12152).

Published: FID 3.11 of 50k samples against the training set, Euler-Maruyama with 1000 steps; 44 M parameters.

    diffusion-jax train --config configs/cifar10_uvit.py --workdir runs/cifar10_uvit
    diffusion-jax sample --workdir runs/cifar10_uvit --out samples --num 50000

The released code trains in mixed float16, this config in bfloat16.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model on the digits)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {
            "name": "tfds:cifar10",
            "split": "train",
            "image_size": 32,
            "channels": 3,
            "flip": True,
        },
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {**preset("uvit-cifar10").section(), "dtype": "bfloat16"},
        "path": {"name": "vp", "train_time_min": 0.0},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "optimizer": {
            "name": "adamw",
            "lr": 2e-4,
            "b1": 0.99,
            "b2": 0.999,
            "weight_decay": 0.03,
            "warmup_steps": 2500,
        },
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {
            "steps": 500_000,
            "batch_size": 128,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "euler_maruyama", "steps": 1000},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
        "sample": {"batch_size": 512},
    }
    if "smoke" in words:
        config["data"] |= {"name": "digits", "image_size": 8}
        config["model"] |= {"depth": 3, "width": 32, "heads": 2, "patch_size": 2}
        config["train"] |= {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": 2}
        config["sampler"] |= {"steps": 2}
        config["sample"] |= {"batch_size": 8, "grid": 8}
    return ConfigDict(config)
