"""Features of any number of uint8 images, by the Inception network on all devices of this process."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.inception import TAP_WIDTHS, InceptionV3, NetworkPrecision
from diffusion_jax.evaluation.protocols import Protocol
from diffusion_jax.evaluation.resize import ResizeRule, ScaleRule, network_input

# Large enough for full speed, small enough to hold the first layers' activations: 30 MB an image.
IMAGES_PER_DEVICE = {"cpu": 16}
IMAGES_PER_ACCELERATOR = 64

METRIC_TAPS: tuple[str, ...] = ("2048", "spatial", "logits_unbiased")


class InceptionFeatures:
    """The extractor of FID and its relatives: preparation of the images, network, precision.

    Images go through the network in batches of one size, the last one filled up, so that the features of an image
    do not depend on its company.

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
        devices = devices or jax.local_devices()
        mesh = Mesh(np.array(devices), ("batch",))
        platform = devices[0].platform
        self.batch_size = len(devices) * (images_per_device or IMAGES_PER_DEVICE.get(platform, IMAGES_PER_ACCELERATOR))
        self.resize, self.scale, self.precision = resize, scale, precision
        self.taps = taps
        self.widths = {tap: TAP_WIDTHS[tap] for tap in taps}
        self.weights_sha256 = weights_sha256
        self.name = "inception-2015-12-05" + ("" if precision == "float32" else "-fast")
        self._platform = platform
        self._split = NamedSharding(mesh, PartitionSpec("batch"))
        self._network = jax.device_put(network, NamedSharding(mesh, PartitionSpec()))
        # Two programs: only the small one is compiled again for images of another size.
        self._prepare = jax.jit(lambda images: network_input(images, resize, scale))
        self._run = jax.jit(self._chosen_taps)

    @classmethod
    def under(
        cls,
        protocol: Protocol,
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

    def _chosen_taps(self, network: InceptionV3, x: jax.Array) -> dict[str, jax.Array]:
        features = network(x, self.precision)
        return {tap: features[tap] for tap in self.taps}

    def measure(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Features at every chosen tap.

        Args:
          images: [N, H, W, 3] uint8, any N ≥ 0.

        Returns:
          By tap, [N, width] float32, on the host.

        Raises:
          UserError: images of another dtype or shape.
        """
        check_images(images)
        parts: dict[str, list[jax.Array]] = {tap: [] for tap in self.taps}
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            missing = self.batch_size - len(batch)
            filled = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)]) if missing else batch
            # Nothing waits here: the devices work on while the host prepares the next batch.
            features = self._run(self._network, self._prepare(jax.device_put(filled, self._split)))
            for tap in self.taps:
                parts[tap].append(features[tap])
        return {
            tap: np.concatenate([np.empty((0, TAP_WIDTHS[tap]), np.float32), *map(np.asarray, parts[tap])])[
                : len(images)
            ]
            for tap in self.taps
        }

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
            "precision": f"{precision}, on {self._platform}",
        }


def check_images(images: np.ndarray) -> None:
    """Raises UserError unless `images` is uint8 [N, H, W, 3]."""
    if images.dtype != np.uint8:
        raise UserError(
            f"images are {images.dtype}, the Inception network takes uint8 in 0…255; quantise them as the protocol says"
        )
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        kinds = {1: "grey", 4: "RGBA"}
        kind = kinds.get(images.shape[-1], "other") if images.ndim == 4 else "other"
        raise UserError(
            f"images have shape {list(images.shape)} ({kind}), the Inception network takes RGB [N, H, W, 3]; "
            "convert them to RGB"
        )
