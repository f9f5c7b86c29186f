"""The autoencoders of f = 8 of latent diffusion on 256×256 crops of photographs (arXiv 2112.10752, appendix G).

Published, on the validation images of ImageNet:

    kl-f8  246,803 steps at batch 4:   rFID 0.90, PSNR 24.19 dB, SSIM 0.69; 83.7 M parameters
    vq-f8  971,043 steps at batch 10:  rFID 1.14, PSNR 23.07 dB, SSIM 0.65; 67.7 M parameters

    diffusion-jax train --config configs/ldm_autoencoder.py:kl-f8 --workdir runs/kl_f8 \\
        --config.data.name=folder:/data/openimages --config.lpips.weights="('vgg16.pth', 'vgg.pth')"

The published runs cut OpenImages at random; here photographs are cut to their centre. Without LPIPS weights the
perceptual term is left out, and the figures above are out of reach. The learning rate is 4.5e-6 per image of the batch;
one that is overridden with the batch size must be scaled by hand.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import one_of, variant_words, with_changes
from diffusion_jax.smoke import smoke_form

ROWS = {
    "kl-f8": {
        "autoencoder": {"name": "kl", "preset": "kl-f8"},
        "loss": {"name": "kl", "disc_start": 50_001, "disc_weight": 0.5},
        "discriminator": {"num_layers": 3},
        "train": {"steps": 246_803, "batch_size": 4},
    },
    "vq-f8": {
        "autoencoder": {"name": "vq", "preset": "vq-f8"},
        "loss": {"name": "vq", "disc_start": 1, "disc_weight": 0.6},
        "discriminator": {"num_layers": 2},
        "train": {"steps": 971_043, "batch_size": 10},
    },
}


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: a row of `ROWS` (default kl-f8); `smoke` (two steps of a tiny model on rendered shapes)."""
    words = variant_words(variant, [*ROWS, "smoke"])
    row = ROWS[one_of(words, ROWS, "kl-f8")]
    adam = {"name": "adamw", "lr": 4.5e-6 * row["train"]["batch_size"], "b1": 0.5, "b2": 0.9}
    config = {
        "kind": {"name": "first_stage"},
        "data": {"name": "folder:data/openimages", "image_size": 256},
        "discriminator": {"name": "patchgan"},
        "lpips": {},
        "optimizer": adam,
        "discriminator_optimizer": adam,
        # Published are the raw weights.
        "ema": {"name": "constant", "max_decay": 0.0},
        "train": {"save_every": 10_000, "sample_every": 10_000, "eval_every": 10_000},
        "mesh": {"data": -1},
    }
    config = with_changes(config, row)
    return ConfigDict(smoke_form(config) if "smoke" in words else config)
