"""LDM-8-Transformer on ImageNet 256×256: a ViT encoder-decoder in the latent space of vq-f8 (arXiv 2212.14678).

FID of 50k samples against the validation set, as published: 20.6 for the class-conditional model, 14.1 for the guided
one (variant `g`: labels dropped in training, sampled with classifier-free guidance). The UNet of the same paper has
19.1 and 13.1.

    diffusion-jax train --config configs/imagenet256_ldm8_transformer.py:g --workdir runs/ldm8_transformer_g \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/vq-f8.ckpt

The paper states the layout, 16 + 16 blocks, the class token, and that schedule, loss and step count are those of LDM-8.
Width, heads, patch size, warm-up, guidance scale and step count are choices: see `models/presets/ldm_transformer.py`.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset

SIZES = ("395m", "mid", "flops", "small")


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a size of `SIZES` (407 M without); `g` (trains and uses the null class); `smoke` (two tiny steps)."""
    words = variant_words(variant, [*SIZES, "g", "smoke"])
    guided = "g" in words
    size = "".join(f"-{word}" for word in words if word in SIZES)
    config = {
        "data": {"name": "tfds:imagenet2012", "split": "train", "image_size": 256, "channels": 3},
        "conditioner": {"name": "class", "label_drop": 0.1 if guided else 0.0},
        "autoencoder": {"name": "vq", "preset": "vq-f8"},
        "model": preset(f"ldm8-transformer{size}").section(),
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
    if "smoke" in words:
        config["data"] |= {"name": "digits", "image_size": 8}
        config["autoencoder"] |= {
            "weights": "random",
            "ch": 32,
            "ch_mult": (1, 2),
            "num_res_blocks": 1,
            "attn_resolutions": (),
            "num_codes": 32,
        }
        config["model"] |= {"depth": 1, "width": 32, "heads": 2}
        config["train"] |= {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": 2}
        config["sampler"] |= {"steps": 2}
        config["sample"] |= {"batch_size": 8, "grid": 8}
    return ConfigDict(config)
