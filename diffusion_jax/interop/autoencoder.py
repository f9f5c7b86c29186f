"""Autoencoders from published files under LDM or diffusers names, and from diffusers folders."""

import dataclasses
import json
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.files import user_path
from diffusion_jax.interop.autoencoder_names import autoencoder_entries, recognise_naming
from diffusion_jax.interop.mapping import load_state_dict
from diffusion_jax.interop.readers import open_state_dict
from diffusion_jax.models.autoencoder.autoencoder import AUTOENCODERS, Autoencoder, AutoencoderKL, AutoencoderVQ
from diffusion_jax.models.autoencoder.first_stage import KLFirstStage, VQFirstStage
from diffusion_jax.records import Json
from diffusion_jax.schema import Options

AnyFirstStage = TypeVar("AnyFirstStage", KLFirstStage, VQFirstStage)

PUBLISHED = (
    "the Stable Diffusion autoencoders are published on huggingface.co as stabilityai/sd-vae-ft-ema and "
    "stabilityai/sd-vae-ft-mse; put their config.json and diffusion_pytorch_model.safetensors in one folder and name it"
)

# What published files hold beside the autoencoder, for its training alone.
TRAINING_ONLY = (
    "loss.*",  # LPIPS, the discriminator and the log-variance of LDM
    "discriminator.*",
    "perceptual_loss.*",
    "logvar",
    "model_ema.*",
    "colorize",  # random colours in which LDM logs segmentation maps
    "foundation_model.*",  # the network that VA-VAE aligns its latents with
    "linear_proj.*",  # and the projection between the two
)

# What a diffusers AutoencoderKL takes for the keys that its config.json, often written by an older release, lacks.
DIFFUSERS_DEFAULTS: Json = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}


def load_autoencoder(path: epath.PathLike, model: Autoencoder | None = None) -> Any:
    """Reads the weights of an autoencoder.

    Args:
      path: a .safetensors file, or one of PyTorch's (.pt, .pth, .ckpt, .bin), under LDM or diffusers names, alone or
        inside a whole latent diffusion checkpoint; or the folder of a diffusers KL autoencoder or of a pipeline with
        one.
      model: the architecture to fill, concrete or abstract. None takes it from the folder's config.json, or the
        "sd-vae" preset for a single file.

    Returns:
      The autoencoder with the weights of the file.

    Raises:
      UserError: no such file, a damaged one, a format that is not read, or weights of another architecture.
    """
    file, config_file = _locate(user_path(path))
    kwargs = AUTOENCODERS["sd-vae"] if config_file is None else diffusers_kwargs(_read(config_file), str(config_file))
    described = jax.eval_shape(lambda: AutoencoderKL(**kwargs, rngs=nnx.Rngs(0)))
    if model is None:
        model = described
    elif config_file is not None:
        _check_same_architecture(model, described, str(config_file))

    state_dict = open_state_dict(file, PUBLISHED)
    prefix = "first_stage_model."
    if any(name.startswith(prefix) for name in state_dict):
        state_dict = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
    naming = recognise_naming(state_dict)
    if naming is None:
        raise UserError(f"'{file}' has neither the LDM nor the diffusers names of an autoencoder")
    entries = autoencoder_entries(model, naming)
    return load_state_dict(model, state_dict, entries, ignore=TRAINING_ONLY, source=f"'{file}'")


def load_first_stage(first_stage: AnyFirstStage, path: str) -> AnyFirstStage:
    """Fills a first stage from a file or folder; the `load_weights` of `KLConfig.build` and `VQConfig.build`.

    Args:
      first_stage: the architecture, usually abstract, and the latent scale.
      path: see `load_autoencoder`.

    Returns:
      The first stage with the weights of the file.

    Raises:
      UserError: as `load_autoencoder`; or the folder's config.json has another `scaling_factor`.
    """
    autoencoder = load_autoencoder(path, first_stage.autoencoder)
    _, config_file = _locate(user_path(path))
    if config_file is not None and first_stage.scale.ndim == 0:
        published, scale = _read(config_file)["scaling_factor"], float(first_stage.scale)
        if not np.isclose(published, scale, rtol=1e-6):
            raise UserError(
                f"'{config_file}' has scaling_factor={published}, but autoencoder.scale={scale:g}: "
                f"set scale={published}, or name the .safetensors file itself to keep yours"
            )
    return dataclasses.replace(first_stage, autoencoder=autoencoder)


def diffusers_kwargs(config: Json, place: str) -> Options:
    """The arguments of `AutoencoderKL` for a diffusers configuration.

    Args:
      config: the content of a config.json over `DIFFUSERS_DEFAULTS`.
      place: its path, for error messages.

    Returns:
      Keyword arguments of `AutoencoderKL`, without `rngs`.

    Raises:
      UserError: it is not an AutoencoderKL, or one with parts that the library has not.
    """
    kind = config.get("_class_name")
    if kind != "AutoencoderKL":
        raise UserError(f"'{place}' describes a {kind}, not an AutoencoderKL")
    for name in ("act_fn", "use_quant_conv", "use_post_quant_conv", "shift_factor", "latents_mean", "latents_std"):
        if config[name] != DIFFUSERS_DEFAULTS[name]:
            raise UserError(f"'{place}' has {name}={config[name]!r}; only {DIFFUSERS_DEFAULTS[name]!r} is supported")
    widths = config["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise UserError(f"'{place}': block_out_channels {widths} must be multiples of the first")
    attends = [_has_attention(name, place) for name in config["down_block_types"]]
    if [_has_attention(name, place) for name in reversed(config["up_block_types"])] != attends:
        raise UserError(f"'{place}': up_block_types must mirror down_block_types")
    # Any nominal size with distinct level sizes will do: it only says which levels attend.
    resolution = 2 ** len(widths)
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "ch": widths[0],
        "ch_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": tuple(resolution // 2**i for i, has in enumerate(attends) if has),
        "resolution": resolution,
        "mid_attention": config["mid_block_add_attention"],
        "z_channels": config["latent_channels"],
        "embed_dim": config["latent_channels"],
        "norm_groups": config["norm_num_groups"],
    }


def _locate(path: epath.Path) -> tuple[epath.Path, epath.Path | None]:
    """The file of weights, and the config.json beside it when `path` is a folder."""
    if not path.is_dir():
        return path, None
    folder = path / "vae" if (path / "model_index.json").is_file() else path
    return folder / "diffusion_pytorch_model.safetensors", folder / "config.json"


def _read(config_file: epath.Path) -> Json:
    if not config_file.is_file():
        raise UserError(f"no '{config_file}': {PUBLISHED}")
    try:
        return DIFFUSERS_DEFAULTS | json.loads(config_file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"'{config_file}' is no JSON ({error}): fetch it again") from error


def _has_attention(block_type: str, place: str) -> bool:
    plain, attending = ("DownEncoderBlock2D", "UpDecoderBlock2D"), ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")
    if block_type not in plain + attending:
        raise UserError(f"'{place}' has a block of type {block_type}; supported: {', '.join(plain + attending)}")
    return block_type in attending


def _check_same_architecture(model: Autoencoder, described: AutoencoderKL, place: str) -> None:
    """Compares what weights alone do not show (groups of a norm, say) before shapes are compared."""
    if isinstance(model, AutoencoderVQ):
        raise UserError(f"'{place}' describes an AutoencoderKL, but autoencoder.name is 'vq': set it to 'kl'")
    ours, theirs = (dataclasses.asdict(each.layout) for each in (model, described))
    for name in ours.keys() - {"dtype"}:
        if ours[name] != theirs[name]:
            raise UserError(
                f"'{place}' describes an autoencoder with {name}={theirs[name]}, the configuration has {ours[name]}"
            )
