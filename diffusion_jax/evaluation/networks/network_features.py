"""Features of any number of uint8 images, by one network on all devices of this process."""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.hardware import usable_cores

# Large enough for full speed, small enough to hold the first layers' activations: 30 MB an image of Inception's.
IMAGES_PER_DEVICE = {"cpu": 16}
IMAGES_PER_ACCELERATOR = 64


class NetworkFeatures:
    """Runs a network in batches of one size, the last one filled up: features do not depend on an image's company.

    Args:
      network: with weights.
      widths: features per image, by tap.
      prepare: compiled; uint8 images [B, H, W, 3] to the input of the network.
      apply: compiled; (network, input) to the features [B, width] by tap.
      one_by_one: on CPUs, run the network on one image after the other, whose activations stay in the caches, in as
        many threads as keep the cores busy.
      devices: to spread each batch over; None takes all of this process.
      images_per_device: how many images a device takes at once; None chooses by its kind.

    Attributes:
      taps: names of the features.
      widths: features per image, by tap.
      platform: kind of the devices.
      threads: how many batches run at the same time.
      batch_size: images that run together, on all devices.
    """

    def __init__(
        self,
        network: Any,
        widths: Mapping[str, int],
        *,
        prepare: Callable[[jax.Array], jax.Array],
        apply: Callable[[Any, jax.Array], dict[str, jax.Array]],
        one_by_one: bool = False,
        devices: list[jax.Device] | None = None,
        images_per_device: int | None = None,
    ):
        devices = devices or jax.local_devices()
        mesh = Mesh(np.array(devices), ("batch",))
        self.platform = devices[0].platform
        each = images_per_device or IMAGES_PER_DEVICE.get(self.platform, IMAGES_PER_ACCELERATOR)
        # A core waits for the others at the end of every layer of an image unless it has another image to work on.
        one_by_one = one_by_one and self.platform == "cpu"
        self.threads = min(each, max(1, usable_cores() // len(devices))) if one_by_one else 1
        self.batch_size = len(devices) * -(-each // self.threads)
        self.widths = dict(widths)
        self.taps = tuple(widths)
        self._split = NamedSharding(mesh, PartitionSpec("batch"))
        self._network = jax.device_put(network, NamedSharding(mesh, PartitionSpec()))
        # Two programs: only the small one is compiled again for images of another size.
        self._prepare = jax.jit(prepare)
        if one_by_one:
            apply = functools.partial(_each, apply)
        by_rows = PartitionSpec("batch")
        # Spelled out, because a loop over the images of all devices would gather them.
        shares = jax.shard_map(apply, mesh=mesh, in_specs=(PartitionSpec(), by_rows), out_specs=by_rows)
        self._run = jax.jit(shares)

    def on_host(self, images: np.ndarray) -> np.ndarray:
        """What happens to uint8 images [B, H, W, 3] before they go to the devices; nothing here."""
        return images

    def measure(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Features at every tap.

        Args:
          images: [N, H, W, 3] uint8, any N ≥ 0.

        Returns:
          By tap, [N, width] float32, on the host.

        Raises:
          UserError: images of another dtype or shape.
        """
        check_images(images)
        starts = range(0, len(images), self.batch_size)
        if self.threads == 1:
            # Nothing waits here: the devices work on while the host prepares the next batch.
            batches = [self._measure_batch(images, start) for start in starts]
        else:

            def measured(start: int) -> dict[str, jax.Array]:
                return jax.block_until_ready(self._measure_batch(images, start))

            # JAX runs what one thread asks of a CPU in turn; what several threads ask, at the same time.
            with ThreadPoolExecutor(self.threads) as pool:
                batches = list(pool.map(measured, starts))
        empty = {tap: np.empty((0, width), np.float32) for tap, width in self.widths.items()}
        return {
            tap: np.concatenate([none, *(np.asarray(batch[tap]) for batch in batches)])[: len(images)]
            for tap, none in empty.items()
        }

    def _measure_batch(self, images: np.ndarray, start: int) -> dict[str, jax.Array]:
        """Features [batch_size, width] by tap of the images [N, H, W, 3] from `start`; missing images are black."""
        batch = self.on_host(images[start : start + self.batch_size])
        missing = self.batch_size - len(batch)
        filled = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)]) if missing else batch
        return self._run(self._network, self._prepare(jax.device_put(filled, self._split)))


def _each(apply: Callable[[Any, jax.Array], dict[str, jax.Array]], network: Any, x: jax.Array) -> dict[str, jax.Array]:
    """`apply` of the images [B, …] in a loop, [B, width] by tap."""
    return jax.lax.map(lambda image: {tap: row[0] for tap, row in apply(network, image[None]).items()}, x)


def check_images(images: np.ndarray) -> None:
    """Raises UserError unless `images` is uint8 [N, H, W, 3]."""
    if images.dtype != np.uint8:
        raise UserError(
            f"images are {images.dtype}, feature networks take uint8 in 0…255; quantise them as the protocol says"
        )
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        kinds = {1: "grey", 4: "RGBA"}
        kind = kinds.get(images.shape[-1], "other") if images.ndim == 4 else "other"
        raise UserError(
            f"images have shape {list(images.shape)} ({kind}), feature networks take RGB [N, H, W, 3]; "
            "convert them to RGB"
        )
