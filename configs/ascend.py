"""ASCEND on pixels, without labels (arXiv 2212.13771).

    cifar10          32×32, 45.4 M parameters (light decoder); published FID of 50,000 samples 2.98
    cifar10-adm      the same with the wiring of ADM, 56.6 M
    cub128           128×128, birds of CUB-200-2011, 80.9 M; the paper shows samples and gives no FID
    lsun_bedroom256  256×256, 110.5 M; samples only
    celebahq256      256×256, 110.5 M; samples only

The paper states the cosine schedule, AdamW and 1,000 Euler-Maruyama steps; widths, depths, the rate and the dropout are
reconstructed.

    pip install -e '.[tf]'
    python -c "import tensorflow_datasets as tfds; tfds.builder('cifar10').download_and_prepare()"
    diffusion-jax train --config configs/ascend.py:cifar10 --workdir runs/cifar10_ascend
    diffusion-jax train --config configs/ascend.py:cifar10-adm --workdir runs/cifar10_ascend_adm
    tfds build caltech_birds2011 --file_format=array_record
    diffusion-jax train --config configs/ascend.py:cub128 --workdir runs/cub128_ascend

The others are built likewise, as `lsun/bedroom` and `celeb_a_hq/256`.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words, with_changes
from diffusion_jax.models.presets import preset
from diffusion_jax.smoke import smoke_form

CIFAR10 = {
    "data": {"name": "tfds:cifar10", "image_size": 32},
    "train": {"batch_size": 128, "sample_every": 10_000},
    "sample": {"batch_size": 512},
}
ROWS = {
    "cifar10": {**CIFAR10, "model": {**preset("ascend-cifar10").section(), "dropout": 0.1}},
    "cifar10-adm": {**CIFAR10, "model": {**preset("ascend-cifar10-adm").section(), "dropout": 0.1}},
    "cub128": {
        "data": {"name": "tfds:caltech_birds2011", "image_size": 128},
        "model": {**preset("ascend-128").section(), "remat": "dots"},
        "sample": {"batch_size": 64},
    },
    "lsun_bedroom256": {
        "data": {"name": "tfds:lsun/bedroom", "image_size": 256},
        "model": {**preset("ascend-256").section(), "remat": "full"},
        "sample": {"batch_size": 16},
    },
    "celebahq256": {
        "data": {"name": "tfds:celeb_a_hq/256", "image_size": 256},
        "model": {**preset("ascend-256").section(), "remat": "full"},
        "sample": {"batch_size": 16},
    },
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a row of `ROWS` (default cifar10); `smoke` (two steps of a tiny model on the digits)."""
    words = variant_words(variant, [*ROWS, "smoke"])
    name = one_of(words, ROWS, "cifar10")
    config = {
        "data": {"split": "train", "channels": 3, "flip": True},
        "conditioner": {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {"dtype": "bfloat16"},
        "path": {"name": "vp_cosine", "time_max": 0.9946},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "ema": {"name": "constant", "max_decay": 0.9999},
        "train": {
            "steps": 500_000,
            "batch_size": 64,
            "save_every": 10_000,
            "keep_every": 50_000,
            "sample_every": 50_000,
        },
        "sampler": {"name": "euler_maruyama", "steps": 1000},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
    }
    config = with_changes(config, ROWS[name])
    if "smoke" in words:
        # With a skip from every block, as in ADM, a level's decoder has one block more than its encoder.
        config = smoke_form(config, model={"dec_blocks": (2,)} if name == "cifar10-adm" else {})
    return ConfigDict(config)
