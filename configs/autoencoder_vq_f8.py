"""The VQ autoencoder of f = 8 of latent diffusion on 256×256 crops of photographs (arXiv 2112.10752, appendix G).

Published for vq-f8, on the validation images of ImageNet after 971,043 steps at batch 10:
rFID 1.14, PSNR 23.07 dB, SSIM 0.65.

    diffusion-jax train --config configs/autoencoder_vq_f8.py --workdir runs/vq_f8 \\
        --config.data.name=folder:/data/openimages --config.lpips.weights="('vgg16.pth', 'vgg.pth')"

The published runs cut OpenImages at random; here photographs are cut to their centre. Without LPIPS weights the
perceptual term is left out, and the figures above are out of reach.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words

BATCH_SIZE = 10


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model on rendered shapes)."""
    words = variant_words(variant, ["smoke"])
    adam = {"name": "adamw", "lr": 4.5e-6 * BATCH_SIZE, "b1": 0.5, "b2": 0.9}
    config = {
        "kind": {"name": "first_stage"},
        "data": {"name": "folder:data/openimages", "image_size": 256},
        "autoencoder": {"name": "vq", "preset": "vq-f8"},
        "loss": {"name": "vq", "disc_start": 1, "disc_weight": 0.6},
        "discriminator": {"name": "patchgan", "num_layers": 2},
        "lpips": {},
        "optimizer": adam,
        "discriminator_optimizer": adam,
        # Published are the raw weights.
        "ema": {"name": "constant", "max_decay": 0.0},
        "train": {
            "steps": 971_043,
            "batch_size": BATCH_SIZE,
            "save_every": 10_000,
            "sample_every": 10_000,
            "eval_every": 10_000,
        },
        "mesh": {"data": -1},
    }
    if "smoke" in words:
        config["data"] |= {"name": "shapes:images=64", "image_size": 16}
        config["autoencoder"] |= {
            "num_codes": 32,
            "attn_resolutions": (),
            "ch": 8,
            "ch_mult": (1, 2),
            "num_res_blocks": 1,
            "norm_groups": 4,
        }
        config["loss"] |= {"disc_start": 1}
        config["discriminator"] |= {"num_layers": 1, "ndf": 8}
        config["train"] |= {"steps": 2, "batch_size": 8, "log_every": 1, "sample_every": 2, "eval_every": None}
        config["evaluate"] = {"num": 8, "batch_size": 1, "grid": 8}
    return ConfigDict(config)
