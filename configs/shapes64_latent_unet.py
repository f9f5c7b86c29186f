"""Class-conditional UNet in the latents of the small autoencoder of rendered shapes, trained from a cache.

    diffusion-jax train  --config configs/shapes64_latent_unet.py --workdir runs/shapes64/unet
    diffusion-jax sample --workdir runs/shapes64/unet --out runs/shapes64/unet/samples --num 400 --cfg-scale 2

`shapes64_latent_dit` is the same with a DiT, which needs more images, and has the lines for autoencoder and cache.
"""

from ml_collections import ConfigDict

from diffusion_jax.config import variant_words
from diffusion_jax.smoke import smoke_form


def get_config(variant: str | None = None) -> ConfigDict:
    """Variants: `smoke` (two steps of a tiny model on rendered images, untrained autoencoder)."""
    words = variant_words(variant, ["smoke"])
    config = {
        "data": {"name": "cache:runs/shapes64/latents", "image_size": 64, "flip": True},
        "conditioner": {"name": "class", "label_drop": 0.1},
        "autoencoder": {
            "name": "kl",
            "preset": "kl-f4",
            "weights": "runs/shapes64/autoencoder",
            "normalize": "channel",
        },
        "model": {
            "name": "unet",
            "model_channels": 32,
            "channel_mult": (1, 2, 4),
            "num_res_blocks": 1,
            "attention_resolutions": (2, 4),
            "num_head_channels": 32,
            "use_scale_shift_norm": True,
            "norm_groups": 8,
            "time_scale": 1000.0,
        },
        "path": {"name": "linear"},
        "prediction": {"kind": "velocity"},
        "loss": {"name": "flow_matching", "time_law": "logit_normal", "time_mean": 1.2, "time_std": 0.7},
        "timesteps": {"name": "uniform"},
        "optimizer": {
            "name": "muon",
            "lr": 5e-3,
            "momentum": 0.8,
            "clip_norm": 1.0,
            "schedule": "cosine",
            "warmup_steps": 40,
            "decay_steps": 500,
        },
        "ema": {"name": "constant", "max_decay": 0.98},
        "train": {
            "steps": 500,
            "batch_size": 64,
            "log_every": 50,
            "save_every": 500,
        },
        "sampler": {"name": "sde_dpm_solver", "steps": 25, "shift": 1.7},
        "guidance": {"name": "cfg", "cfg_scale": 2.0},
        "sample": {"batch_size": 40, "grid": 40},
    }
    if "smoke" in words:
        config = smoke_form(
            config,
            data={"name": "shapes:images=64", "image_size": 16},  # no cache has to be there
            autoencoder={"normalize": "scale", "scale": 1.0, "ch": 8, "mid_attention": False, "norm_groups": 4},
            model={
                "model_channels": 16,
                "channel_mult": (1, 2, 4),
                "attention_resolutions": (2, 4),
                "num_head_channels": 16,
            },
        )
    return ConfigDict(config)
