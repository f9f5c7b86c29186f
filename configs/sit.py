"""SiT on ImageNet 256×256 in the latent space of sd-vae, the published recipe (arXiv 2401.08740, §4 and appendix).

The linear path with velocity prediction, sampled by the SDE with w = 2σ in 250 steps. FID-50K after 400K steps, without
guidance: S/2 57.6, B/2 33.0, L/2 18.8, XL/2 17.2; XL/2 after 7M steps 8.3, and with `guidance.cfg_scale=1.5` on the
first three channels 2.06 (ODE 2.15).

    diffusion-jax train --config configs/sit.py:XL/2 --workdir runs/sit_xl2 \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/sd-vae-ft-ema
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words
from diffusion_jax.models.presets import preset
from diffusion_jax.smoke import smoke_form

SIZES = ["S/2", "B/2", "L/2", "XL/2"]


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `S/2` … `XL/2` (default XL/2); `smoke` (two steps of a tiny model, untrained autoencoder, digits)."""
    words = variant_words(variant, [*SIZES, "smoke"])
    size = one_of(words, SIZES, "XL/2")
    config = {
        "data": {
            "name": "tfds:imagenet2012",
            "split": "train",
            "image_size": 256,
            "channels": 3,
            "flip": True,
            "exif_orientation": False,  # ADM and DiT took pixels as stored
        },
        "conditioner": {"name": "class", "label_drop": 0.1},
        "autoencoder": {"name": "kl", "preset": "sd-vae"},
        "model": preset(f"sit-{size.lower()}").section(),
        "path": {"name": "linear"},
        "prediction": {"kind": "velocity"},
        "loss": {"name": "flow_matching"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {
            "steps": 7_000_000,
            "batch_size": 256,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 10_000,
        },
        "sampler": {"name": "interpolant_sde", "steps": 250},
        "guidance": {"name": "cfg", "cfg_scale": 1.5, "guided_channels": "first3"},
        "sample": {"batch_size": 128},
        "mesh": {"data": -1},
    }
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
