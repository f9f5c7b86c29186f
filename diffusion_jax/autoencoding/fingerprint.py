"""Which encoder made some latents: a fingerprint of its weights."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoder.first_stage import Identity, KLFirstStage, VQFirstStage
from diffusion_jax.parallel.partition import path_name

LENGTH = 16


def encoder_fingerprint(first_stage: KLFirstStage | VQFirstStage, image_size: int) -> str:
    """Names all that decides the latents before scaling: equal for equal encoders, whatever their decoders.

    The compute dtype and the latent scale do not count.

    Args:
      first_stage: the first stage, with its weights.
      image_size: H = W of the images, pixels; decides whether they are encoded in tiles.

    Returns:
      16 hexadecimal digits.
    """
    autoencoder, tiling = first_stage.autoencoder, first_stage.tiling
    layout = dataclasses.asdict(autoencoder.layout)
    del layout["dtype"]
    tiled = tiling is not None and image_size > tiling.size * autoencoder.layout.downsampling
    tiles = dataclasses.asdict(tiling) if tiling is not None and tiled else None
    digest = hashlib.sha256(json.dumps([layout, tiles], sort_keys=True).encode())
    weights = jax.tree_util.tree_leaves_with_path(
        {"encoder": autoencoder.encoder, "quant_conv": autoencoder.quant_conv}
    )
    for path, leaf in sorted(weights, key=lambda pair: path_name(pair[0])):
        digest.update(json.dumps([path_name(path), leaf.shape]).encode())
        digest.update(np.asarray(leaf, np.float32).tobytes())
    return digest.hexdigest()[:LENGTH]


def check_encoder(first_stage: Any, image_size: int, encoder: str, name: str) -> None:
    """Makes sure that a first stage belongs to the latents of a cache.

    Args:
      first_stage: the first stage of a config, with its weights.
      image_size: H = W of the images that were encoded, pixels.
      encoder: fingerprint of the encoder that made the cache.
      name: what to call the cache in an error message.

    Raises:
      UserError: it is another encoder, or none.
    """
    if isinstance(first_stage, Identity):
        raise UserError(f"{name} holds latents of encoder {encoder}, autoencoder 'identity' has none: name that one")
    ours = encoder_fingerprint(first_stage, image_size)
    if ours != encoder:
        raise UserError(
            f"{name} holds latents of encoder {encoder}, the section 'autoencoder' describes {ours}: set the "
            "autoencoder that made the cache (its metadata.json names it), or encode the images again"
        )
