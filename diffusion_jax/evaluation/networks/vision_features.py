"""The extractors of FD-DINOv2 (arXiv 2306.04675) and CMMD (arXiv 2401.09603)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.evaluation.networks.network_features import NetworkFeatures
from diffusion_jax.evaluation.networks.resize import VisionResizeRule, bicubic_antialias, pil_bicubic_uint8
from diffusion_jax.evaluation.networks.vision_transformer import VisionTransformer
from diffusion_jax.evaluation.networks.vision_weights import VisionKind


class VisionFeatures(NetworkFeatures):
    """A vision transformer on uint8 images, in float32.

    Args:
      kind: which network, and the statistics of its pixels.
      network: with weights.
      tap: the name of its features.
      resize: how images come to its size; those for CLIP are first cropped to the central square.
      weights_sha256: checksum of the weight file, for the record; None if they come from no file.
      devices: to spread each batch over; None takes all of this process.
      images_per_device: how many images a device takes at once; None chooses by its kind.

    Attributes:
      name: what results call the extractor.
    """

    def __init__(
        self,
        kind: VisionKind,
        network: VisionTransformer,
        tap: str,
        *,
        resize: VisionResizeRule = "pil_bicubic_uint8",
        weights_sha256: str | None = None,
        devices: list[jax.Device] | None = None,
        images_per_device: int | None = None,
    ):
        def prepare(images: jax.Array) -> jax.Array:
            pixels = images.astype(jnp.float32)  # [B, H, W, 3]
            if resize == "bicubic_antialias":
                pixels = bicubic_antialias(pixels, kind.image_size)  # [B, S, S, 3]
            return (pixels / 255 - jnp.array(kind.mean)) / jnp.array(kind.std)

        def apply(network: VisionTransformer, x: jax.Array) -> dict[str, jax.Array]:
            return {tap: network(x)}

        widths = {tap: network.feature_width}
        super().__init__(
            network, widths, prepare=prepare, apply=apply, devices=devices, images_per_device=images_per_device
        )
        self.kind, self.resize, self.weights_sha256 = kind, resize, weights_sha256
        self.name = kind.name
        self.scale = "(x/255-mean)/std"
        self.precision = "float32"

    def on_host(self, images: np.ndarray) -> np.ndarray:
        """Images [B, H, W, 3] as Pillow resizes them, [B, S, S, 3], if that is the rule."""
        if self.resize != "pil_bicubic_uint8":
            return images
        return pil_bicubic_uint8(images, self.kind.image_size, crop=self.kind.clip)

    def describe(self) -> dict[str, Any]:
        """What a result file says of it, ready for JSON."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "feature_width": self.widths[self.taps[0]],
            "resize": self.resize,
            "scale": self.scale,
            "precision": f"float32 products, on {self.platform}",
        }
