"""The classifier of LDM-8-G on noisy ImageNet latents of vq-f8, which guides LDM-8 (arXiv 2112.10752, appendix C).

With it and a scale of 10, LDM-8 (`configs/ldm_unet.py:imagenet256-ldm8`) reaches FID 8.11 after 2.9M steps and 7.76
after 4.8M, where it has 17.41 and 15.51 alone. 111.6 M parameters. AdamW and its weight decay are published; rate,
batch and length are those of LDM-8 (reconstructed).

    diffusion-jax train  --config configs/ldm_classifier.py --workdir runs/classifier \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/vq-f8.ckpt
    diffusion-jax sample --workdir runs/ldm8 --out out --num 16 \\
        --classifier-workdir runs/classifier --classifier-scale 10
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.unet.noisy_classifier import classifier_config
from diffusion_jax.smoke import smoke_form


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model, untrained autoencoder, digits)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "kind": {"name": "classifier"},
        "data": {"name": "tfds:imagenet2012", "split": "train", "image_size": 256, "channels": 3},
        "conditioner": {"name": "class", "label_drop": 0.0},
        "autoencoder": {"name": "vq", "preset": "vq-f8"},
        "model": classifier_config("ldm-8-g"),
        "path": {"name": "ddpm", "schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "classification"},
        "optimizer": {"name": "adamw", "lr": 6.4e-5, "weight_decay": 0.01},
        "ema": {"name": "warmup", "max_decay": 0.9999},
        "train": {"steps": 300_000, "batch_size": 64, "save_every": 10_000},
        "mesh": {"data": -1},
    }
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
