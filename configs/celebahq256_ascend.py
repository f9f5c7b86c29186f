"""ASCEND on the pixels of CelebA-HQ faces, 256×256 (arXiv 2212.13771).

The paper shows samples and gives no FID. It states the cosine schedule, AdamW and 1,000 Euler-Maruyama steps; the rest
is reconstructed: 110.5 M parameters, and the rate of CIFAR-10.

    tfds build celeb_a_hq/256 --file_format=array_record
    diffusion-jax train --config configs/celebahq256_ascend.py --workdir runs/celebahq256_ascend
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model on the digits)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {"name": "tfds:celeb_a_hq/256", "split": "train", "image_size": 256, "channels": 3, "flip": True},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {**preset("ascend-256").section(), "dtype": "bfloat16", "remat": "full"},
        "path": {"name": "vp_cosine", "time_max": 0.9946},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {
            "steps": 500_000,
            "batch_size": 64,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 50_000,
        },
        "sampler": {"name": "euler_maruyama", "steps": 1000},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
        "sample": {"batch_size": 16},
    }
    if "smoke" in words:
        config["data"] |= {"name": "digits", "image_size": 8}
        config["model"] |= {
            "model_channels": 32,
            "channel_mult": (1,),
            "enc_depths": (1,),
            "dec_blocks": (1,),
            "attention_resolutions": (),
            "num_head_channels": 32,
            "window_size": 4,
            "remat": "none",
            "dtype": "float32",
        }
        config["train"] |= {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": 2}
        config["sampler"] |= {"steps": 2}
        config["sample"] |= {"batch_size": 8, "grid": 8}
    return ConfigDict(config)
