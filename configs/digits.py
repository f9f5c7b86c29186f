"""Class-conditional DiT on the 1,797 handwritten digits that scikit-learn ships; minutes on two CPU cores.

diffusion-jax train --config configs/digits.py --workdir runs/digits
diffusion-jax train --config configs/digits.py:smoke --workdir runs/smoke
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.smoke import smoke_form


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {"name": "digits", "image_size": 8, "channels": 1},
        "conditioner": {"name": "class", "label_drop": 0.1},
        "autoencoder": {"name": "identity"},
        "model": {"name": "dit", "depth": 4, "width": 128, "heads": 4, "patch_size": 2},
        "path": {"name": "ddpm", "schedule": "cosine"},
        "prediction": {"kind": "v", "variance": "fixed_small"},
        "loss": {"name": "simple"},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw", "lr": 1e-3, "schedule": "cosine", "warmup_steps": 100, "decay_steps": 2000},
        "ema": {"name": "constant", "max_decay": 0.995},
        "train": {
            "steps": 2000,
            "batch_size": 64,
            "log_every": 100,
            "save_every": 1000,
            "sample_every": 1000,
        },
        "sampler": {"name": "ddim", "steps": 50},
        # Guiding at middle noise levels only keeps the variety of the digits (arXiv 2404.07724).
        "guidance": {"name": "cfg", "cfg_scale": 2.0, "interval": (0.3, 1.0)},
        "sample": {"transform": "clip", "batch_size": 250},
    }
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
