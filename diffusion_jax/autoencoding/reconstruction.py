"""What a first stage in training makes of images that it is judged on."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax.autoencoding.histogram import plot_latents
from diffusion_jax.autoencoding.latent_statistics import LatentStatistics, measure
from diffusion_jax.autoencoding.objective import Generator
from diffusion_jax.autoencoding.system import AutoencoderSystem
from diffusion_jax.data import Source, batches, open_source
from diffusion_jax.evaluation.metrics.feature_statistics import FeatureStatistics
from diffusion_jax.evaluation.metrics.frechet import frechet_distance
from diffusion_jax.evaluation.networks.inception_features import InceptionFeatures
from diffusion_jax.evaluation.networks.inception_weights import load_inception
from diffusion_jax.evaluation.protocols import protocol_named
from diffusion_jax.models.autoencoder.lpips import LPIPS
from diffusion_jax.models.layers.attention_kernels import attention_kernel
from diffusion_jax.parallel import processes
from diffusion_jax.parallel.mesh import batch_parts, local_rows, replicated, to_global
from diffusion_jax.pictures import grid, save, to_rgb

COLUMNS = 10


def open_inception(weights: str) -> InceptionFeatures:
    """The network of rFID, images prepared as by torch-fidelity, of which LDM's figures are.

    Args:
      weights: its file.

    Raises:
      UserError: no such file, or another one.
    """
    protocol = protocol_named("ldm")
    network, checksum = load_inception(weights)
    return InceptionFeatures(
        network, resize=protocol.resize, scale=protocol.scale, taps=("2048",), weights_sha256=checksum
    )


class Reconstructions:
    """Reads the images that the section `evaluate` asks for, always the same, and puts them through an autoencoder.

    All processes must call together, and all get the same results.

    Args:
      system: the run's parts.
      mesh: the mesh; each batch is split over its batch axes.

    Raises:
      UserError: the data has no such split, or the weights of the FID network are missing or others.
    """

    def __init__(self, system: AutoencoderSystem, mesh: Mesh):
        self.system, self.mesh, self.config = system, mesh, system.evaluate
        self.attention = system.build("mesh").attention
        parts = batch_parts(mesh)
        self.batch_size = parts * min(self.config.batch_size, -(-self.config.num // parts))
        self.source = open_source(dataclasses.replace(system.data, split=self.config.split or system.data.split))
        self.inception = open_inception(self.config.inception_weights) if self.config.inception_weights else None
        self._reconstruct = jax.jit(system.reconstruct, out_shardings=replicated(mesh))
        self._encode = jax.jit(system.encode, out_shardings=replicated(mesh))

    def quality(self, model: Generator, lpips: LPIPS | None = None) -> dict[str, float]:
        """How near `evaluate.num` images, rounded up to whole batches, come out to what they were.

        Args:
          model: the weights.
          lpips: the perceptual distance; None leaves it out.

        Returns:
          The means of `psnr` (dB), `ssim` and, with weights, `lpips`; with `evaluate.inception_weights` also `rfid`,
          the Fréchet distance of the reconstructions to the originals.
        """
        results = []
        made, real = (FeatureStatistics(InceptionFeatures.feature_width) for _ in range(2))
        for images, copies, quality in self._reconstructed(model, lpips, self.config.num):
            results.append(quality)
            if self.inception is not None:
                made.update(self.inception.features(to_rgb(copies)))
                real.update(self.inception.features(to_rgb(images)))
        values = {name: float(np.mean([each[name] for each in results])) for name in results[0]}
        if self.inception is not None:
            values["rfid"] = frechet_distance(*made.finalise(), *real.finalise())
        return values

    def draw(self, model: Generator, path: epath.Path) -> None:
        """Writes two pictures of `evaluate.grid` images: of the images and of their latents.

        Args:
          model: the weights.
          path: of a PNG with each image above its reconstruction, which is captioned with its PSNR; beside it,
            `-latents` behind the stem, comes the histogram of the latents.
        """
        parts = zip(*self._reconstructed(model, None, self.config.grid), strict=True)
        originals, made, quality = (list(part) for part in parts)
        latents = np.concatenate(list(self._latents(model, self.source, self.config.grid)))
        images, copies = (np.concatenate(part)[: self.config.grid] for part in (originals, made))
        psnr = np.concatenate([each["psnr"] for each in quality])
        if processes.is_main():
            columns = min(COLUMNS, len(images))
            tiles, captions = [], []
            for first in range(0, len(images), columns):
                row = slice(first, first + columns)
                missing = columns - len(images[row])
                blank = np.full((missing, *images.shape[1:]), 255, np.uint8)
                tiles += [images[row], blank, copies[row], blank]
                captions += [""] * columns
                captions += [f"{value:.1f} dB" for value in psnr[: len(images)][row]] + [""] * missing
            save(grid(np.concatenate(tiles), captions, columns), path)
            plot_latents(latents).savefig(path.with_stem(f"{path.stem}-latents"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("reconstructions")

    def latent_statistics(self, model: Generator) -> LatentStatistics:
        """The statistics of the latents of `evaluate.num` training images, rounded up to whole batches."""
        return measure(self._latents(model, open_source(self.system.data), self.config.num))

    def _latents(self, model: Generator, source: Source, num: int) -> Iterator[np.ndarray]:
        """Yields the latents [B, h, w, c] of at least `num` images of a source."""
        for number, batch in enumerate(self._batches(source, num)):
            index = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
            yield self._local(self._encode, model, batch["image"], index)

    def _reconstructed(
        self, model: Generator, lpips: LPIPS | None, num: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """Yields originals and reconstructions [B, H, W, C] uint8 and the quality [B] of these, at least `num`."""
        replicate = jax.jit(lambda images: images, out_shardings=replicated(self.mesh))
        for batch in self._batches(self.source, num):
            made, quality = self._local(self._reconstruct, model, batch["image"], lpips)
            yield self._local(replicate, batch["image"]), made, quality

    def _local(self, function: Callable, *arguments: Any) -> Any:
        """The result of a compiled function whose outputs every device holds, as NumPy arrays."""
        with jax.set_mesh(self.mesh), attention_kernel(self.attention):
            result = function(*arguments)
        return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), result)

    def _batches(self, source: Source, num: int) -> Iterator[dict[str, jax.Array]]:
        """Batches of at least `num` images in an order that the run's seed gives, spread over the mesh."""
        rows = local_rows(self.mesh, self.batch_size)
        reader = batches(
            source,
            seed=self.system.train.seed,
            batch_size=self.batch_size,
            rows=rows.tolist(),
            num_threads=min(self.system.data.num_threads, len(rows)),
        )
        try:
            for batch in itertools.islice(reader, -(-num // self.batch_size)):
                yield to_global(self.mesh, self.batch_size, {"image": batch["image"]})
        finally:
            reader.close()
