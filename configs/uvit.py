"""U-ViT-S on the pixels of small images, without labels: the released recipes (arXiv 2209.12152).

FID of 50k samples against the training set, as published, Euler-Maruyama with 1000 steps:

    cifar10   3.11, 32×32, U-ViT-S/2, 44 M parameters
    celeba64  2.87, 64×64, U-ViT-S/4, 44 M parameters

    diffusion-jax train --config configs/uvit.py:cifar10 --workdir runs/cifar10_uvit
    diffusion-jax sample --workdir runs/cifar10_uvit --out samples --num 50000
    diffusion-jax train --config configs/uvit.py:celeba64 --workdir runs/celeba64_uvit \\
        --config.data.name=folder:/data/img_align_celeba

The released code trains in mixed float16, this config in bfloat16.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words, with_changes
from diffusion_jax.models.presets import preset
from diffusion_jax.smoke import smoke_form

ROWS = {
    "cifar10": {
        "data": {"name": "tfds:cifar10", "image_size": 32},
        "model": preset("uvit-cifar10").section(),
        "optimizer": {"b2": 0.999, "warmup_steps": 2500},
    },
    "celeba64": {
        "data": {"name": "tfds:celeb_a", "image_size": 64, "crop": "celeba"},
        "model": preset("uvit-celeba64").section(),
        "optimizer": {"b2": 0.99, "warmup_steps": 5000},
    },
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a row of `ROWS` (default cifar10); `smoke` (two steps of a tiny model on the digits)."""
    words = variant_words(variant, [*ROWS, "smoke"])
    config = {
        "data": {"split": "train", "channels": 3, "flip": True},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {"dtype": "bfloat16"},
        "path": {"name": "vp", "train_time_min": 0.0},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "optimizer": {"name": "adamw", "lr": 2e-4, "b1": 0.99, "weight_decay": 0.03},
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
    config = with_changes(config, ROWS[one_of(words, ROWS, "cifar10")])
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
