"""IU-ViT on CIFAR-10, unconditional, 32×32 (arXiv 2212.13771).

Published: FID 2.56 of 50k samples, Euler-Maruyama with 1000 steps; 45 M parameters.

    diffusion-jax train --config configs/cifar10_iuvit.py --workdir runs/cifar10_iuvit

Rows of the ablation, beside `--config.model.time_mlp_ratio=0`: `--config.model.ffn=mlp` (rearrange-first head alone),
`--config.model.head=linear` (DWConvFFN alone). Batch, optimizer, warm-up and EMA are those of U-ViT: the paper's own
values are not known.
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
        "model": {**preset("iuvit-cifar10").section(), "dtype": "bfloat16"},
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
