"""The extractor of FID and its relatives: the Inception network on uint8 images, prepared as a protocol says."""

from typing import Any

import jax
import numpy as np

from diffusion_jax.evaluation.networks.inception import TAP_WIDTHS, InceptionV3, NetworkPrecision
from diffusion_jax.evaluation.networks.network_features import NetworkFeatures
from diffusion_jax.evaluation.networks.resize import ResizeRule, ScaleRule, network_input
from diffusion_jax.evaluation.protocols import ScoringRules

METRIC_TAPS: tuple[str, ...] = ("2048", "spatial", "logits_unbiased")


class InceptionFeatures(NetworkFeatures):
    """The extractor of FID and its relatives: preparation of the images, network, precision.

    Args:
      network: with weights.
      resize: how images come to 299 × 299 pixels.
      scale: how 0 … 255 comes to about −1 … 1.
      precision: "float32", or "fast" for curves that nobody publishes.
      taps: which features to compute.
      weights_sha256: checksum of the weight file, for the record; None if they come from no file.
      devices: to spread each batch over; None takes all of this process.
      images_per_device: how many images a device takes at once; None chooses by its kind.

    Attributes:
      feature_width: 2048.
      widths: features per image, by tap.
      name: what results call the extractor.
    """

    feature_width = TAP_WIDTHS["2048"]

    def __init__(
        self,
        network: InceptionV3,
        *,
        resize: ResizeRule = "tf1_bilinear",
        scale: ScaleRule = "(x-128)/128",
        precision: NetworkPrecision = "float32",
        taps: tuple[str, ...] = METRIC_TAPS,
        weights_sha256: str | None = None,
        devices: list[jax.Device] | None = None,
        images_per_device: int | None = None,
    ):
        def prepare(images: jax.Array) -> jax.Array:
            return network_input(images, resize, scale)

        def apply(network: InceptionV3, x: jax.Array) -> dict[str, jax.Array]:
            features = network(x, precision)
            return {tap: features[tap] for tap in taps}

        widths = {tap: TAP_WIDTHS[tap] for tap in taps}
        super().__init__(
            network,
            widths,
            prepare=prepare,
            apply=apply,
            one_by_one=True,
            devices=devices,
            images_per_device=images_per_device,
        )
        self.resize, self.scale, self.precision = resize, scale, precision
        self.weights_sha256 = weights_sha256
        self.name = "inception-2015-12-05" + ("" if precision == "float32" else "-fast")

    @classmethod
    def under(
        cls,
        protocol: ScoringRules,
        network: InceptionV3,
        weights_sha256: str | None,
        precision: NetworkPrecision = "float32",
    ) -> "InceptionFeatures":
        """The extractor that a protocol's metrics need."""
        return cls(
            network,
            resize=protocol.resize,
            scale=protocol.scale,
            precision=precision,
            taps=("2048", "spatial", protocol.logits),
            weights_sha256=weights_sha256,
        )

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features of FID, [N, 2048] float32; arguments and errors as `measure`."""
        return self.measure(images)["2048"]

    def real_images_unseen_by(self, reference: str) -> str | None:
        """None: there are no images at hand that belong to every reference."""
        return None

    def describe(self) -> dict[str, Any]:
        """What a result file says of it, ready for JSON."""
        precision = (
            "float32 products" if self.precision == "float32" else "products as the backend likes: not to publish"
        )
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "feature_width": self.feature_width,
            "resize": self.resize,
            "scale": self.scale,
            "precision": f"{precision}, on {self.platform}",
        }
