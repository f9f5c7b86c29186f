"""LDM-4 on FFHQ 256×256, without labels, in the latent space of vq-f4 (arXiv 2112.10752, tables 1 and 12).

FID of 50k samples against the training set, as published: 4.98 after 635k steps, drawn with 200 DDIM steps and η = 1;
precision 0.73, recall 0.50. `folder:` takes the 70,000 images of FFHQ in any sub-folders.

    diffusion-jax train --config configs/ffhq256_ldm4.py --workdir runs/ffhq \\
        --config.data.name=folder:/data/ffhq --config.autoencoder.weights=/weights/vq-f4.ckpt

The learning rate is 2e-6 per image of the batch; one that is overridden with the batch size must be scaled by hand.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset

BATCH_SIZE = 42


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model, untrained autoencoder, digits)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {"name": "folder:data/ffhq", "split": "train", "image_size": 256, "channels": 3, "flip": False},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "vq", "preset": "vq-f4"},
        "model": preset("ldm-ffhq256").section(),
        "path": {"name": "ddpm", "schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "optimizer": {"name": "adamw", "lr": 2e-6 * BATCH_SIZE, "weight_decay": 0.01},
        "ema": {"name": "warmup", "max_decay": 0.9999},
        "train": {
            "steps": 635_000,
            "batch_size": BATCH_SIZE,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "ddim", "steps": 200, "eta": 1.0, "grid": "ldm", "final": "first"},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
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
