"""LDM-4 on ImageNet 256×256, cross-attending to the class, on latents of vq-f4 (arXiv 2112.10752, table 10).

FID of 50k samples against the training set, as published after 178k steps, drawn with 250 steps: 10.56; with
classifier-free guidance of scale 1.25 (`--config.guidance.cfg_scale=1.25`) 3.95, of scale 1.5 3.60.

    diffusion-jax train --config configs/imagenet256_ldm4_unet.py --workdir runs/ldm4 \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/vq-f4.ckpt

The share of dropped labels and η of the sampler are not published; 0.1 and 1 are choices.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset

BATCH_SIZE = 1200


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model, untrained autoencoder, digits)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {"name": "tfds:imagenet2012", "split": "train", "image_size": 256, "channels": 3, "flip": False},
        "conditioner": {"name": "class_token", "width": 512, "label_drop": 0.1},
        "autoencoder": {"name": "vq", "preset": "vq-f4"},
        "model": preset("ldm-4-imagenet256").section(),
        "path": {"name": "ddpm", "schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01},
        "ema": {"name": "warmup", "max_decay": 0.9999},
        "train": {
            "steps": 178_000,
            "batch_size": BATCH_SIZE,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "ddim", "steps": 250, "eta": 1.0, "grid": "ldm", "final": "first"},
        "guidance": {"name": "cfg", "cfg_scale": 1.5},
        "sample": {"batch_size": 64},
        "mesh": {"data": -1},
    }
    if "smoke" in words:
        config["data"] |= {"name": "digits", "split": "train", "image_size": 8}
        config["autoencoder"] |= {
            "weights": "random",
            "ch": 32,
            "ch_mult": (1, 2),
            "num_res_blocks": 1,
            "attn_resolutions": (),
            "num_codes": 32,
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
