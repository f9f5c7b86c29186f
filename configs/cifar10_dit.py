"""Class-conditional DiT on the pixels of CIFAR-10, 32×32.

No paper reports this model; the settings are DiT's recipe (arXiv 2212.09748) at the size and patch of U-ViT-S/2 on
CIFAR-10 (arXiv 2209.12152), which reaches FID 3.11 without labels.

    pip install -e '.[tf]'
    python -c "import tensorflow_datasets as tfds; tfds.builder('cifar10').download_and_prepare()"
    diffusion-jax train --config configs/cifar10_dit.py --workdir runs/cifar10
    diffusion-jax train --config configs/cifar10_dit.py:B/2 --workdir runs/b2 --config.data.name=folder:/data/cifar10
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words
from diffusion_jax.models.dit.dit import DIT_SIZES, dit_config
from diffusion_jax.smoke import smoke_form

SIZES = [f"{size}/{patch}" for size in DIT_SIZES for patch in (2, 4, 8)]


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a DiT size `S/2` (default) … `XL/8`; `smoke` (two steps of a tiny model on the digits)."""
    words = variant_words(variant, [*SIZES, "smoke"])
    size = one_of(words, SIZES, "S/2")
    config = {
        "data": {"name": "tfds:cifar10", "split": "train", "image_size": 32, "channels": 3, "flip": True},
        "conditioner": {"name": "class", "label_drop": 0.1},
        "autoencoder": {"name": "identity"},
        "model": {"name": "dit", **dit_config(size), "dtype": "bfloat16"},
        "path": {"name": "ddpm", "schedule": "linear"},
        "prediction": {"kind": "epsilon", "variance": "learned_range"},
        "loss": {"name": "hybrid"},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw", "lr": 2e-4, "warmup_steps": 2500},
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {
            "steps": 500_000,
            "batch_size": 128,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "ddpm", "steps": 250},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
        "sample": {"transform": "clip", "batch_size": 512},
    }
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
