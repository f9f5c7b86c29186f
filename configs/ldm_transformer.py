"""LDM-8-Transformer on ImageNet 256×256: a ViT encoder-decoder in the latent space of vq-f8 (arXiv 2212.14678).

FID of 50k samples against the validation set, as published: 20.6 for the class-conditional model, 14.1 for the guided
one (variant `g`: labels dropped in training, sampled with classifier-free guidance). The UNet of the same paper has
19.1 and 13.1.

    diffusion-jax train --config configs/ldm_transformer.py:g --workdir runs/ldm8_transformer_g \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/vq-f8.ckpt

The paper states the layout, 16 + 16 blocks, the class token, and that schedule, loss and step count are those of LDM-8.
Width, heads, patch size, warm-up, guidance scale and step count are choices: see `models/presets/ldm_transformer.py`.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words
from diffusion_jax.models.presets import preset
from diffusion_jax.smoke import smoke_form

SIZES = {  # the presets, largest first
    "407m": "ldm8-transformer",
    "395m": "ldm8-transformer-395m",
    "mid": "ldm8-transformer-mid",
    "flops": "ldm8-transformer-flops",
    "small": "ldm8-transformer-small",
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a size of `SIZES` (default 407m); `g` (trains and uses the null class); `smoke` (two tiny steps)."""
    words = variant_words(variant, [*SIZES, "g", "smoke"])
    guided = "g" in words
    config = {
        "data": {"name": "tfds:imagenet2012", "split": "train", "image_size": 256, "channels": 3},
        "conditioner": {"name": "class", "label_drop": 0.1 if guided else 0.0},
        "autoencoder": {"name": "vq", "preset": "vq-f8"},
        "model": preset(SIZES[one_of(words, SIZES, "407m")]).section(),
        "path": {"name": "ddpm", "schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "optimizer": {"name": "adamw", "lr": 6.4e-5, "weight_decay": 0.01, "warmup_steps": 5000},
        "ema": {"name": "warmup", "max_decay": 0.9999},
        "train": {
            "steps": 1_000_000,
            "batch_size": 64,
            "save_every": 10_000,
            "keep_every": 100_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "ddim", "steps": 200, "eta": 1.0},
        "guidance": {"name": "cfg", "cfg_scale": 1.5 if guided else 1.0},
        "sample": {"batch_size": 64},
        "mesh": {"data": -1},
    }
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
