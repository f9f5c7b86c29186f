"""LDM-8 on LSUN churches 256×256 in the latent space of kl-f8 (arXiv 2112.10752, tables 1 and 12).

FID of 50k samples against the training set, as published: 4.02 after 500k steps, drawn with 200 DDIM steps according to
the paper and 400 with η = 0 according to the release (4.48 with 200); precision 0.64, recall 0.52.

    diffusion-jax train --config configs/lsun_church256_ldm8.py --workdir runs/church \\
        --config.autoencoder.weights=/weights/kl-f8.ckpt --config.autoencoder.scale=0.22

The latents must have unit variance, so `autoencoder.scale` is 1 over the standard deviation of those of the training
images; there is no published number.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset

BATCH_SIZE = 96


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model, untrained autoencoder, digits)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {"name": "tfds:lsun/church_outdoor", "split": "train", "image_size": 256, "channels": 3, "flip": True},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "kl", "preset": "kl-f8"},
        "model": preset("ldm-lsun-church256").section(),
        "path": {"name": "ddpm", "schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple", "norm": "l1"},
        "optimizer": {"name": "adamw", "lr": 5e-5, "weight_decay": 0.01, "warmup_steps": 10_000},
        "ema": {"name": "warmup", "max_decay": 0.9999},
        "train": {
            "steps": 500_000,
            "batch_size": BATCH_SIZE,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "ddim", "steps": 200, "eta": 0.0, "grid": "ldm", "final": "first"},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
        "sample": {"batch_size": 64},
        "mesh": {"data": -1},
    }
    if "smoke" in words:
        config["data"] |= {"name": "digits", "split": "train", "image_size": 8}
        config["autoencoder"] |= {
            "weights": "random",
            "scale": 1.0,
            "ch": 32,
            "ch_mult": (1, 2),
            "num_res_blocks": 1,
        }
        config["model"] |= {
            "model_channels": 32,
            "channel_mult": (1,),
            "num_res_blocks": 1,
            "attention_resolutions": (),
        }
        config["train"] |= {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": 2}
        config["sampler"] |= {"steps": 2}
        config["sample"] |= {"batch_size": 8, "grid": 8}
    return ConfigDict(config)
