"""First stages from the folders of the runs that trained them."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.autoencoding.latent_statistics import LatentStatistics
from diffusion_jax.autoencoding.objective import Generator
from diffusion_jax.errors import UserError
from diffusion_jax.files import user_path
from diffusion_jax.interop import autoencoder as files
from diffusion_jax.models.autoencoder.first_stage import (
    FIRST_STAGES,
    Identity,
    KLConfig,
    KLFirstStage,
    VQConfig,
    VQFirstStage,
)
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.schema import Section

LATENTS = "latents"
"""The entry of a checkpoint's metadata that holds the `LatentStatistics`."""

# What a run that uses an autoencoder decides for itself.
OWN = ("weights", "normalize", "channel_mean", "channel_std", "tile", "tile_stride", "scale", "quantize", "dtype")

AnyConfig = TypeVar("AnyConfig", Identity, KLConfig, VQConfig)
AnyFirstStage = TypeVar("AnyFirstStage", KLFirstStage, VQFirstStage)


def as_trained(config: AnyConfig) -> AnyConfig:
    """An `autoencoder` section with the architecture and latent statistics of the run that its `weights` name.

    Args:
      config: the section.

    Returns:
      The section with what the newest checkpoint of the run says of the architecture; of the means and deviations of
      the channels, if they are to be normalised and none are set; and else, for a KL autoencoder without a `scale`, one
      over the deviation of its latents. As it is, if `weights` is no run's folder.

    Raises:
      UserError: the run trained something else, or an architecture that contradicts a key of the section.
    """
    if isinstance(config, Identity) or not _is_run(config.weights):
        return config
    metadata = _metadata(str(config.weights))
    place = f"autoencoder.weights={config.weights}"
    values = metadata["config"]["autoencoder"]
    section = Section(FIRST_STAGES)
    trained = section.build("autoencoder", section.complete("autoencoder", values))
    if type(trained) is not type(config):
        raise UserError(f"{place}: that run trained a '{values['name']}' autoencoder: set autoencoder.name to it")
    architecture: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(trained, field.name)
        if field.name in OWN:
            continue
        if ours not in (field.default, theirs):
            raise UserError(f"{place}: that run has {field.name}={theirs!r}, not {ours!r}; leave the key out")
        architecture[field.name] = theirs
    latents = LatentStatistics.from_json(metadata[LATENTS])
    if config.normalize == "channel":
        if config.channel_mean is None:
            architecture |= {"channel_mean": tuple(latents.mean.tolist()), "channel_std": tuple(latents.std.tolist())}
    elif isinstance(config, KLConfig) and config.scale is None:
        architecture["scale"] = latents.scale
    return dataclasses.replace(config, **architecture)


def trained_kind(path: str) -> str | None:
    """The `name` of the `autoencoder` section of the run at `path`; None if that is no run's folder.

    Raises:
      UserError: the run trained something else.
    """
    return _metadata(path)["config"]["autoencoder"]["name"] if _is_run(path) else None


def load_first_stage(first_stage: AnyFirstStage, path: str) -> AnyFirstStage:
    """Fills a first stage with the averaged weights of the run at `path`, or from a published file or folder.

    Args:
      first_stage: the abstract first stage.
      path: the folder of a run, or what `interop.autoencoder.load_first_stage` reads.

    Returns:
      The first stage with NumPy arrays for parameters.

    Raises:
      UserError: weights of another architecture; or as `interop.autoencoder.load_first_stage`.
    """
    if not _is_run(path):
        return files.load_first_stage(first_stage, path)
    everywhere = replicated(make_mesh(MeshConfig()))
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        Generator(first_stage.autoencoder, jnp.float32(0)),
    )
    with _newest(path) as (checkpoints, step):
        ema = checkpoints.read(step, {"ema": wanted})["ema"]
    autoencoder = jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), ema.autoencoder)
    return dataclasses.replace(first_stage, autoencoder=autoencoder)


def _is_run(path: str | None) -> bool:
    return path is not None and (user_path(path) / "checkpoints").is_dir()


def _metadata(path: str) -> dict[str, Any]:
    """What the newest checkpoint of a run that trained an autoencoder holds beside arrays."""
    with _newest(path) as (checkpoints, step):
        metadata = checkpoints.metadata(step)
    if LATENTS not in metadata:
        raise UserError(f"autoencoder.weights={path}: that run trained no autoencoder; name the folder of one that did")
    return metadata


@contextlib.contextmanager
def _newest(path: str) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a run and the step of the newest."""
    checkpoints = Checkpoints(path, read_only=True)
    try:
        yield checkpoints, checkpoints.choose("latest")
    finally:
        checkpoints.close()
