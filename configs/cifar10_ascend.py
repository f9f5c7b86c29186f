"""ASCEND on the pixels of CIFAR-10, 32×32 (arXiv 2212.13771), without labels.

Published: FID 2.98 over 50,000 samples of 1,000 Euler-Maruyama steps. The paper states the cosine schedule and AdamW;
the width, the depths, the rate and the dropout are reconstructed: 45.4 M parameters with the light decoder, 56.6 M with
the wiring of ADM (`adm`).

    pip install -e '.[tf]'
    python -c "import tensorflow_datasets as tfds; tfds.builder('cifar10').download_and_prepare()"
    diffusion-jax train --config configs/cifar10_ascend.py --workdir runs/cifar10_ascend
    diffusion-jax train --config configs/cifar10_ascend.py:adm --workdir runs/cifar10_ascend_adm
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `adm` (the skips of ADM); `smoke` (two steps of a tiny model on the digits)."""
    words = variant_words(variant, ["adm", "smoke"])
    adm = "adm" in words
    config = {
        "data": {"name": "tfds:cifar10", "split": "train", "image_size": 32, "channels": 3, "flip": True},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {
            **preset("ascend-cifar10-adm" if adm else "ascend-cifar10").section(),
            "dropout": 0.1,
            "dtype": "bfloat16",
        },
        "path": {"name": "vp_cosine", "time_max": 0.9946},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
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
        config["model"] |= {
            "model_channels": 32,
            "channel_mult": (1,),
            "enc_depths": (1,),
            "dec_blocks": (2,) if adm else (1,),
            "attention_resolutions": (),
            "num_head_channels": 32,
            "window_size": 4,
            "dtype": "float32",
        }
        config["train"] |= {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": 2}
        config["sampler"] |= {"steps": 2}
        config["sample"] |= {"batch_size": 8, "grid": 8}
    return ConfigDict(config)
