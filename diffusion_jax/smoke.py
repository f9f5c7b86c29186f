"""The tiny forms of the parts a config names, one for each kind of part."""

from collections.abc import Mapping

from diffusion_jax.config import with_changes
from diffusion_jax.schema import Options

TINY_MODELS: Mapping[str, Options] = {
    "ascend": {
        "model_channels": 32,
        "channel_mult": (1,),
        "enc_depths": (1,),
        "dec_blocks": (1,),
        "attention_resolutions": (),
        "num_head_channels": 32,
        "window_size": 4,
        "remat": "none",
        "dtype": "float32",
    },
    "dit": {"depth": 2, "width": 32, "heads": 2, "patch_size": 2},
    "iuvit": {"depth": 3, "width": 32, "heads": 2, "patch_size": 2},
    "ldm_transformer": {"depth": 1, "width": 32, "heads": 2, "patch_size": 2},
    "noisy_classifier": {
        "model_channels": 8,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "num_head_channels": 8,
        "norm_groups": 4,
    },
    "unet": {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()},
    "uvit": {"depth": 3, "width": 32, "heads": 2, "patch_size": 2},
}
"""Keys of the section `model` that make any model of a name tiny, for images or latents of at least 4×4."""

TWO_LEVELS: Mapping[str, Options] = {
    "ascend": {
        "channel_mult": (1, 1),
        "enc_depths": (1, 1),
        "dec_blocks": (1, 1),
        "num_head_channels": 16,
    },
    "unet": {
        "model_channels": 16,
        "channel_mult": (1, 2),
        "attention_resolutions": (2,),
        "num_heads": 2,
        "norm_groups": 4,
    },
}
"""What models of one level lack of their kinds of blocks; smoke forms do without, since it compiles for long."""

TINY_FIRST_STAGES: Mapping[str, Options] = {
    "identity": {},
    "kl": {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1},
    "vq": {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "num_codes": 32},
}
"""Keys of the section `autoencoder` that make any first stage of a name tiny; latents have half the side of images."""

DIGITS: Options = {"name": "digits", "image_size": 8, "crop": "adm"}
SHAPES: Options = {"name": "shapes:images=64", "image_size": 16, "crop": "adm"}
DRAWING: Mapping[str, Options] = {"sampler": {"steps": 2}, "sample": {"batch_size": 8, "grid": 8}}


def tiny_options(name: str) -> Options:
    """The options of a tiny model that has all kinds of its backbone's blocks.

    Args:
      name: a key of `TINY_MODELS`.

    Returns:
      Keys of the section `model` and their values; those left out have the defaults of the backbone.
    """
    return {**TINY_MODELS[name], **TWO_LEVELS.get(name, {})}


def smoke_form(config: Mapping[str, Options], **changes: Options) -> dict[str, Options]:
    """A config made small enough to train two steps on a CPU, of data that are always there.

    Args:
      config: section name to its keys and values, of a diffusion model, a classifier or a first stage.
      **changes: by section, what this config's smoke form sets otherwise than that of its kind.

    Returns:
      The sections of the smoke form.
    """
    first_stage = config["autoencoder"]["name"]
    tiny: dict[str, Options] = {
        "autoencoder": TINY_FIRST_STAGES[first_stage],
        "train": {"steps": 2, "batch_size": 8, "log_every": 1},
    }
    kind = (config.get("kind") or {}).get("name")
    if kind == "first_stage":
        form = with_changes(tiny, _first_stage_form(config))
    else:
        form = with_changes(tiny, {"data": DIGITS, "model": TINY_MODELS[config["model"]["name"]]})
        if first_stage != "identity":
            form = with_changes(form, {"autoencoder": {"weights": "random"}})
        if kind != "classifier":
            form = with_changes(form, {**DRAWING, "train": {"sample_every": 2}})
    return with_changes(config, with_changes(form, changes))


def _first_stage_form(config: Mapping[str, Options]) -> dict[str, Options]:
    """Changes for a run that trains a first stage."""
    form: dict[str, Options] = {
        "data": SHAPES,
        "train": {"sample_every": 2, "eval_every": 2},
        "evaluate": {"num": 8, "batch_size": 1, "grid": 8},
    }
    if config["discriminator"]["name"] != "none":
        form |= {"discriminator": {"num_layers": 1, "ndf": 8}, "loss": {"disc_start": 1}}
    return form
