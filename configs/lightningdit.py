"""LightningDiT-XL/2 on ImageNet 256×256 in the latent space of sd-vae (arXiv 2501.01423, ablation of the recipe).

SwiGLU, RMSNorm and rotary positions, trained with logit-normal times and the velocity-direction loss, a batch of 1024
and 80 epochs. FID-50K without guidance 7.13, where DiT-XL/2 has 19.50 after as many epochs.

The better figures of the paper (5.14 after 64 epochs, 1.35 guided after 800) are for LightningDiT-XL/1 on the latents
of VA-VAE, which is not among the first stages of this library; the model itself is the preset `lightningdit-xl/1`.

    diffusion-jax train --config configs/lightningdit.py --workdir runs/lightningdit_xl2 \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/sd-vae-ft-ema

`modern` is this library's own variation, with QK-norm and time features that resolve t ∈ [0, 1]. It has no published
figure.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.models.presets import preset
from diffusion_jax.smoke import smoke_form


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `modern`; `smoke` (two steps of a tiny model, untrained autoencoder, digits)."""
    words = variant_words(variant, ["modern", "smoke"])
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
        "model": {
            **preset("dit-modern-xl/2" if "modern" in words else "lightningdit-xl/2").section(),
            "dtype": "bfloat16",
        },
        "path": {"name": "linear"},
        "prediction": {"kind": "velocity"},
        "loss": {"name": "flow_matching", "time_law": "logit_normal", "direction_weight": 1.0},
        "optimizer": {"name": "adamw", "lr": 2e-4, "b2": 0.95},
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {
            "steps": 100_000,
            "batch_size": 1024,
            "save_every": 5_000,
            "keep_every": 20_000,
            "sample_every": 5_000,
        },
        "sampler": {"name": "probability_flow", "steps": 249},  # 250 times
        "guidance": {"name": "cfg"},
        "sample": {"batch_size": 128},
        "mesh": {"data": -1},
    }
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
