"""The UNets of latent diffusion on 256×256 images, with the class (ImageNet) or without (arXiv 2112.10752).

FID of 50k samples against the training set, as published (tables 1, 10, 12 and 13), drawn with DDIM:

    celebahq256-ldm4     5.11 after 410k steps, drawn with 500 steps; the release draws 200 with η = 0
    ffhq256-ldm4         4.98 after 635k steps, drawn with 200 steps and η = 1
    lsun_bedroom256-ldm4 2.95 after 1.9M steps, drawn with 200 steps and η = 1
    lsun_church256-ldm8  4.02 after 500k steps, drawn with 200 steps according to the paper, and according to the
                         release with 400 and η = 0 (4.48 with 200)
    imagenet256-ldm4     10.56 after 178k steps, drawn with 250 steps; with classifier-free guidance of scale 1.25
                         (`--config.guidance.cfg_scale=1.25`) 3.95, of scale 1.5 3.60
    imagenet256-ldm8     17.41 after 2.9M steps and 15.51 after 4.8M, drawn with 200 steps and η = 1; with the
                         classifier of `configs/ldm_classifier.py` at scale 10 8.11 and 7.76

Precision and recall are 0.72 and 0.49 for CelebA-HQ, 0.73 and 0.50 for FFHQ, 0.66 and 0.48 for bedrooms, 0.64 and 0.52
for churches.

    diffusion-jax train --config configs/ldm_unet.py:celebahq256-ldm4 --workdir runs/celebahq \\
        --config.autoencoder.weights=/weights/vq-f4.ckpt
    diffusion-jax train --config configs/ldm_unet.py:ffhq256-ldm4 --workdir runs/ffhq \\
        --config.data.name=folder:/data/ffhq --config.autoencoder.weights=/weights/vq-f4.ckpt
    diffusion-jax train --config configs/ldm_unet.py:lsun_church256-ldm8 --workdir runs/church \\
        --config.autoencoder.weights=/weights/kl-f8.ckpt --config.autoencoder.scale=0.22
    diffusion-jax train --config configs/ldm_unet.py:imagenet256-ldm8 --workdir runs/ldm8 \\
        --config.data.name=folder:/data/imagenet --config.autoencoder.weights=/weights/vq-f8.ckpt

`folder:` takes the 70,000 images of FFHQ in any sub-folders. The latents of churches must have unit variance, so their
`autoencoder.scale` is 1 over the standard deviation of those of the training images; there is no published number. The
class embeddings are not averaged with the UNet, as in the release. Dropped labels and the η of imagenet256-ldm4 are
not published: 0.1 and 1 are choices. Learning rates written as a product are per image of the batch: one that is
overridden with the batch size must be scaled by hand.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words, with_changes
from diffusion_jax.models.presets import preset
from diffusion_jax.smoke import smoke_form

ROWS = {
    "celebahq256-ldm4": {
        "data": {"name": "tfds:celeb_a_hq/256"},
        "model": preset("ldm-celebahq256").section(),
        "optimizer": {"lr": 2e-6 * 48},
        "train": {"steps": 410_000, "batch_size": 48, "keep_every": 50_000},
        "sampler": {"eta": 0.0},
    },
    "ffhq256-ldm4": {
        "data": {"name": "folder:data/ffhq"},
        "model": preset("ldm-ffhq256").section(),
        "optimizer": {"lr": 2e-6 * 42},
        "train": {"steps": 635_000, "batch_size": 42, "keep_every": 50_000},
    },
    "lsun_bedroom256-ldm4": {
        "data": {"name": "tfds:lsun/bedroom", "flip": True},
        "model": preset("ldm-lsun-bedroom256").section(),
        "optimizer": {"lr": 2e-6 * 48},
        "train": {"steps": 1_900_000, "batch_size": 48, "keep_every": 100_000},
    },
    "lsun_church256-ldm8": {
        "data": {"name": "tfds:lsun/church_outdoor", "flip": True},
        "autoencoder": {"name": "kl", "preset": "kl-f8"},
        "model": preset("ldm-lsun-church256").section(),
        "path": {"beta_end": 0.0155},
        "loss": {"norm": "l1"},
        "optimizer": {"lr": 5e-5, "warmup_steps": 10_000},
        "train": {"steps": 500_000, "batch_size": 96, "keep_every": 50_000},
        "sampler": {"eta": 0.0},
    },
    "imagenet256-ldm4": {
        "data": {"name": "tfds:imagenet2012"},
        "conditioner": {"name": "class_token", "width": 512, "label_drop": 0.1},
        "model": preset("ldm-4-imagenet256").section(),
        "ema": {"encoder": False},
        "optimizer": {"lr": 1e-4},
        "train": {"steps": 178_000, "batch_size": 1200, "keep_every": 50_000},
        "sampler": {"steps": 250},
        "guidance": {"cfg_scale": 1.5},
    },
    "imagenet256-ldm8": {
        "data": {"name": "tfds:imagenet2012"},
        "conditioner": {"name": "class_token", "width": 512, "label_drop": 0.0},
        "autoencoder": {"name": "vq", "preset": "vq-f8"},
        "model": preset("ldm-8-imagenet256").section(),
        "ema": {"encoder": False},
        "optimizer": {"lr": 1e-6 * 64},
        "train": {"steps": 4_800_000, "batch_size": 64, "keep_every": 100_000},
    },
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a row of `ROWS` (default celebahq256-ldm4); `smoke` (two tiny steps, untrained autoencoder, digits)."""
    words = variant_words(variant, [*ROWS, "smoke"])
    config = {
        "data": {"split": "train", "image_size": 256, "channels": 3, "flip": False},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "vq", "preset": "vq-f4"},
        "path": {"name": "ddpm", "schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "optimizer": {"name": "adamw", "weight_decay": 0.01},
        "ema": {"name": "warmup", "max_decay": 0.9999},
        "train": {"save_every": 10_000, "sample_every": 10_000},
        "sampler": {"name": "ddim", "steps": 200, "eta": 1.0, "grid": "ldm", "final": "first"},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
        "sample": {"batch_size": 64},
        "mesh": {"data": -1},
    }
    config = with_changes(config, ROWS[one_of(words, ROWS, "celebahq256-ldm4")])
    # No scale of latents belongs to random weights.
    return ConfigDict(smoke_form(config, autoencoder={"scale": 1.0}) if "smoke" in words else config)
