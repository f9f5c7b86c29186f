"""IU-ViT on pixels, without labels (arXiv 2212.13771); all draw 1000 Euler-Maruyama steps.

    cifar10                 32×32, 45 M parameters; published FID of 50k samples 2.56
    celeba64                64×64, 45 M; the paper claims the best FID of the diffusion models it compares, which reach
                            1.90, and its value is not known
    celeba128               128×128, 442 M, 450k iterations; samples are shown and no FID
    lsun_church256          256×256, 527 M, 150k iterations; samples are shown and no FID
    lsun_church256-wide     the same with wider blocks, 935 M
    lsun_church256-patch8   the same with smaller patches: better images at four times the tokens

    diffusion-jax train --config configs/iuvit.py:cifar10 --workdir runs/cifar10_iuvit
    diffusion-jax train --config configs/iuvit.py:lsun_church256-wide --workdir runs/church_wide

Rows of the ablation on CIFAR-10, beside `--config.model.time_mlp_ratio=0`: `--config.model.ffn=mlp` (rearrange-first
head alone), `--config.model.head=linear` (DWConvFFN alone).

The paper's own settings are not known. Batch, optimizer, warm-up and EMA are those of U-ViT, on CelebA for all but
CIFAR-10; the learning rate of the deep models (celeba128, lsun_church256) is that of the paper's text model of the same
depth; the data set of celeba128 is read off a figure caption.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words, with_changes
from diffusion_jax.models.presets import preset
from diffusion_jax.smoke import smoke_form

CHURCH = {
    "data": {"name": "tfds:lsun/church_outdoor", "image_size": 256},
    "optimizer": {"lr": 1e-4},
    "train": {"steps": 150_000},
    "sample": {"batch_size": 64},
}
ROWS = {
    "cifar10": {
        "data": {"name": "tfds:cifar10", "image_size": 32},
        "model": preset("iuvit-cifar10").section(),
        "optimizer": {"lr": 2e-4, "b2": 0.999, "warmup_steps": 2500},
        "train": {"steps": 500_000},
        "sample": {"batch_size": 512},
    },
    "celeba64": {
        "data": {"name": "tfds:celeb_a", "image_size": 64, "crop": "celeba"},
        "model": preset("iuvit-celeba64").section(),
        "optimizer": {"lr": 2e-4},
        "train": {"steps": 500_000},
        "sample": {"batch_size": 512},
    },
    "celeba128": {
        "data": {"name": "tfds:celeb_a", "image_size": 128, "crop": "celeba"},
        "model": preset("iuvit-celeba128").section(),
        "optimizer": {"lr": 1e-4},
        "train": {"steps": 450_000},
        "sample": {"batch_size": 128},
    },
    "lsun_church256": {**CHURCH, "model": preset("iuvit-lsun-church256").section()},
    "lsun_church256-wide": {**CHURCH, "model": preset("iuvit-lsun-church256-wide").section()},
    "lsun_church256-patch8": {**CHURCH, "model": preset("iuvit-lsun-church256-patch8").section()},
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a row of `ROWS` (default cifar10); `smoke` (two steps of a tiny model on the digits)."""
    words = variant_words(variant, [*ROWS, "smoke"])
    config = {
        "data": {"split": "train", "channels": 3, "flip": True},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {"dtype": "bfloat16"},
        "path": {"name": "vp", "train_time_min": 0.0},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "optimizer": {"name": "adamw", "b1": 0.99, "b2": 0.99, "weight_decay": 0.03, "warmup_steps": 5000},
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {"batch_size": 128, "save_every": 10_000, "keep_every": 50_000, "sample_every": 10_000},
        "sampler": {"name": "euler_maruyama", "steps": 1000},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
    }
    config = with_changes(config, ROWS[one_of(words, ROWS, "cifar10")])
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
