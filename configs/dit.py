"""DiT on ImageNet in the latent space of sd-vae, the published recipe (arXiv 2212.09748, §4, §5.1 and appendix).

FID-50K, as published; guidance is that of the first three channels:

    imagenet256  XL/2: 19.47 after 400K steps, 9.62 after 7M, and with `guidance.cfg_scale=1.5` 2.27;
                 S/2, B/2 and L/2: 68.40, 43.47 and 23.33 after 400K
    imagenet512  XL/2: 13.78 after 1.3M steps and 11.93 after 3M without guidance (decoder ft-mse; 12.03 with ft-ema);
                 with ft-ema and `guidance.cfg_scale` 1.25 and 1.5: 4.64 and 3.04

    diffusion-jax train --config configs/dit.py:imagenet256,XL/2 --workdir runs/dit_xl2 \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/sd-vae-ft-mse
    diffusion-jax train --config configs/dit.py:imagenet512 --workdir runs/dit_xl2_512 \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/sd-vae-ft-ema

Images are encoded on the fly; every posterior sample is fresh. The published runs used 32-bit floats; bfloat16 is a
flag away (`--config.model.dtype=bfloat16`). `--config.model.base_grid=(16,16)` gives a model of 512×512 that continues
from 256×256 weights the positions it knows.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words, with_changes
from diffusion_jax.models.dit.dit import DIT_SIZES, dit_config
from diffusion_jax.smoke import smoke_form

ROWS = {
    "imagenet256": {
        "data": {"image_size": 256},
        "train": {"steps": 7_000_000},
        "sample": {"batch_size": 128},
    },
    "imagenet512": {
        "data": {"image_size": 512},
        "train": {"steps": 3_000_000},
        "sample": {"batch_size": 64},
    },
}
SIZES = [f"{size}/{patch}" for size in DIT_SIZES for patch in (2, 4, 8)]


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a row of `ROWS` (default imagenet256); a size `S/8` … `XL/2` (default); `smoke` (two tiny steps)."""
    words = variant_words(variant, [*ROWS, *SIZES, "smoke"])
    config = {
        "data": {
            "name": "tfds:imagenet2012",
            "split": "train",
            "channels": 3,
            "flip": True,
            "exif_orientation": False,  # ADM and DiT take pixels as stored
        },
        "conditioner": {"name": "class", "label_drop": 0.1},
        "autoencoder": {"name": "kl", "preset": "sd-vae"},
        "model": {"name": "dit", **dit_config(one_of(words, SIZES, "XL/2"))},
        "path": {"name": "ddpm", "schedule": "linear"},
        "prediction": {"kind": "epsilon", "variance": "learned_range"},
        "loss": {"name": "hybrid"},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {"batch_size": 256, "save_every": 10_000, "keep_every": 50_000, "sample_every": 10_000},
        "sampler": {"name": "ddpm", "steps": 250},
        "guidance": {"name": "cfg", "cfg_scale": 1.5, "guided_channels": "first3"},
        "mesh": {"data": -1},
    }
    config = with_changes(config, ROWS[one_of(words, ROWS, "imagenet256")])
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
