"""IU-ViT on CelebA, unconditional, 128×128 (arXiv 2212.13771).

The paper shows samples and no FID; Euler-Maruyama with 1000 steps, 450k iterations, 442 M parameters.

    diffusion-jax train --config configs/celeba128_iuvit.py --workdir runs/celeba128_iuvit

The data set is read off a figure caption. The learning rate is that of the paper's text model of the same depth; batch,
the rest of the optimizer, warm-up and EMA are those of U-ViT on CelebA: the paper's own values are not known.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model on the digits)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {
            "name": "tfds:celeb_a",
            "split": "train",
            "image_size": 128,
            "channels": 3,
            "flip": True,
            "crop": "celeba",
        },
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {**preset("iuvit-celeba128").section(), "dtype": "bfloat16"},
        "path": {"name": "vp", "train_time_min": 0.0},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "optimizer": {
            "name": "adamw",
            "lr": 1e-4,
            "b1": 0.99,
            "b2": 0.99,
            "weight_decay": 0.03,
            "warmup_steps": 5000,
        },
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {
            "steps": 450_000,
            "batch_size": 128,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "euler_maruyama", "steps": 1000},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
        "sample": {"batch_size": 128},
        "mesh": {"data": -1},
    }
    if "smoke" in words:
        config["data"] |= {"name": "digits", "image_size": 8, "crop": "adm"}
        config["model"] |= {"depth": 3, "width": 32, "heads": 2, "patch_size": 2}
        config["train"] |= {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": 2}
        config["sampler"] |= {"steps": 2}
        config["sample"] |= {"batch_size": 8, "grid": 8}
    return ConfigDict(config)
