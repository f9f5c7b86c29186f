"""A classifier of noisy digits, to guide the samples of `configs/digits.py` (arXiv 2105.05233, §4); a minute or two.

diffusion-jax train --config configs/digits_classifier.py --workdir runs/digits_classifier
diffusion-jax sample --workdir runs/digits --out out --num 100 --cfg-scale 1 --classifier-workdir runs/digits_classifier
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.smoke import smoke_form


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "kind": {"name": "classifier"},
        "data": {"name": "digits", "image_size": 8, "channels": 1},
        "conditioner": {"name": "class", "label_drop": 0.0},
        "autoencoder": {"name": "identity"},
        "model": {
            "name": "noisy_classifier",
            "model_channels": 32,
            "channel_mult": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (2,),
            "num_head_channels": 32,
        },
        "path": {"name": "ddpm", "schedule": "cosine"},
        "prediction": {"kind": "v", "variance": "fixed_small"},
        "loss": {"name": "classification"},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
        "ema": {"name": "constant", "max_decay": 0.995},
        "train": {"steps": 500, "batch_size": 64, "log_every": 50, "save_every": 500},
    }
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
