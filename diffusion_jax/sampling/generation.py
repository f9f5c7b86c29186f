"""Drawing samples from a trained model: requests and a seed in, uint8 images out."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import keys
from diffusion_jax.diffusion.classifier_guidance import (
    LogProbability,
    classifier_guidance,
    log_probability,
    prediction_guidance,
)
from diffusion_jax.diffusion.denoiser import conditional, denoiser
from diffusion_jax.diffusion.guidance import Autoguidance
from diffusion_jax.diffusion.point import Point
from diffusion_jax.diffusion.samplers import initial_noise, walk
from diffusion_jax.errors import UserError
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.models.layers.attention_kernels import attention_kernel
from diffusion_jax.parallel.mesh import batch_parts, batch_sharding, local_rows, replicated, split_rows, to_global
from diffusion_jax.pictures import ROUNDED, Uint8Rule, to_uint8
from diffusion_jax.records import Record
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.sampling.drawn import Diagnostics, Drawn, check_drawn
from diffusion_jax.sampling.known_pixels import KnownPixels
from diffusion_jax.sampling.requests import batch_arrays

# Images that processes exchange at once; each device holds them all for that time.
GATHERED = 1024
# Pixels that each device decodes at once, eight images of 256×256: a decoder's features take hundreds of times the
# memory of its latents, so a batch that suits the backbone may be too large for it.
DECODED = 2**19


class Guides(NamedTuple):
    """Further networks that guide a model, each of the same path and latents as the model.

    Attributes:
      weak: a weaker model of the same prediction for autoguidance (Karras et al. 2024), or None.
      autoguidance: the combination of the model with `weak`.
      classifier: a classifier of noisy data, (x, timestep, cond) → [B, K] logits, or None.
      classifier_scale: factor of the gradient of its log-probability (Dhariwal & Nichol 2021).
      similarity: how well images fit their labels, (predicted images [B, H, W, C] in [−1, 1], label [B]) → [B], such as
        a log-likelihood or a scaled CLIP similarity (GLIDE); differentiable; None for none.
      similarity_scale: factor of its gradient, taken through the prediction of the image.
    """

    weak: Any = None
    autoguidance: Autoguidance = Autoguidance(scale=1.0)
    classifier: Any = None
    classifier_scale: float = 1.0
    similarity: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    similarity_scale: float = 1.0


NO_GUIDES = Guides()


def make_sample_function(
    system: DiffusionSystem, mesh: Mesh, guides: Guides = NO_GUIDES, uint8: Uint8Rule = ROUNDED
) -> Callable[..., Drawn]:
    """Builds the program that draws one batch; the caller compiles it.

    Args:
      system: the run's parts.
      mesh: the mesh that the batch lies on.
      guides: the scales of further guidance; its networks are arguments of the result.
      uint8: how pixels in −1 … 1 become uint8.

    Returns:
      A function (model, weaker model or None, classifier or None, frozen networks, batch, seed) → B images, uint8.
      The batch has the arrays of the conditioner, `index` [B] int32, and `label` [B] int32 where a classifier or a
      similarity guides; it may have `known` pixels. Image b depends on (the models, seed, row b of the batch) alone.
    """
    conditioner, sampler = system.conditioner, system.sampler

    def draw(
        model: Any,
        weak: Any,
        classifier: Any,
        frozen: Frozen,
        batch: dict[str, Any],
        seed: jax.Array,
    ) -> Drawn:
        index, known, first_stage = batch["index"], batch.get("known"), frozen.first_stage
        arrays = {name: batch[name] for name in conditioner.array_spec}
        cond = conditioner(arrays, frozen.conditioner)
        null = conditioner.null(arrays, frozen.conditioner) if conditioner.has_null else None
        guided = system.guidance(model, cond, null)
        if weak is not None:
            guided = guides.autoguidance(guided, conditional(weak, cond))
        start = keys.purpose_key(seed, "sample_start")
        x = initial_noise(sampler, system.path, start, index, system.latent_shape)  # [B, h, w, c]
        transforms = system.transforms(first_stage)
        if known is not None:
            transforms = (*transforms, known.transform(first_stage, system.latent_shape))
        denoise = denoiser(guided, system.prediction, transforms)
        if guides.similarity is not None:
            fit = similarity_of_latents(guides.similarity, first_stage, batch["label"])
            denoise = prediction_guidance(denoise, fit, guides.similarity_scale, transforms=transforms)
        if classifier is not None:
            recognise = log_probability(classifier, batch["label"])
            denoise = classifier_guidance(denoise, recognise, guides.classifier_scale, transforms)
        walked = walk(sampler, system.path, denoise, x, keys.purpose_key(seed, "sample_noise"), index)
        images = decode_in_parts(first_stage, walked.x, system.data.image_size, mesh, uint8)  # [B, H, W, C]
        finite = jnp.isfinite(walked.x).all(axis=(1, 2, 3))  # [B]
        return Drawn(images if known is None else known.paste(images), Diagnostics(walked.progress, finite))

    return draw


def decode_in_parts(
    first_stage: Any, latents: jax.Array, image_size: int, mesh: Mesh, uint8: Uint8Rule = ROUNDED, most: int = DECODED
) -> jax.Array:
    """The images of a batch of latents, a few at a time, so that memory does not grow with the batch.

    Args:
      first_stage: the first stage.
      latents: [B, h, w, c] split over the batch axes of the mesh.
      image_size: H = W, pixels.
      mesh: the mesh.
      uint8: how pixels in −1 … 1 become uint8.
      most: pixels that each device decodes at once; one image where that is larger.

    Returns:
      [B, H, W, C] uint8, split likewise.
    """
    rows = latents.shape[0] // batch_parts(mesh)
    at_once = max(size for size in range(1, max(most // image_size**2, 1) + 1) if rows % size == 0)

    def decode(latents: jax.Array) -> jax.Array:
        return to_uint8(first_stage.decode(latents), uint8)

    if at_once == rows:
        return decode(latents)
    images = jax.lax.map(decode, split_rows(latents, rows // at_once, mesh))  # [parts, B / parts, H, W, C]
    return images.swapaxes(0, 1).reshape(latents.shape[0], *images.shape[2:])


def similarity_of_latents(similarity: Callable, first_stage: Any, label: jax.Array) -> LogProbability:
    """A function of images and labels as one of predicted latents; raises a `UserError` unless it gives [B] numbers."""

    def value(latents: jax.Array, point: Point) -> jax.Array:
        found = similarity(first_stage.decode(latents), label)
        if jnp.shape(found) != label.shape:
            raise UserError(
                f"the similarity gives {jnp.shape(found)}: it must give one number per image, {label.shape}"
            )
        return found

    return value


class SampleStream:
    """Draws any number of samples in batches of one compiled size.

    Args:
      system: the run's parts.
      mesh: the mesh; each batch is split over its batch axes.
      guides: further networks to guide by.
      rows: images that each device of the batch axes draws at once; None means `sample.batch_size`. Float32 samples are
        the same bit for bit on any number of such devices as long as this number stays; another number, or a model
        split over "fsdp" or "tensor", may round a matrix product otherwise.
      known: pixels that the samples are to keep, or None.
      uint8: how pixels in −1 … 1 become uint8.

    Raises:
      UserError: a sampler or guidance that does not fit the model.

    Attributes:
      conditional: whether samples depend on their requests.
      labelled: whether they depend on a label; those of an unconditional model do only where a classifier or
        similarity guides it.
    """

    def __init__(
        self,
        system: DiffusionSystem,
        mesh: Mesh,
        guides: Guides = NO_GUIDES,
        rows: int | None = None,
        known: KnownPixels | None = None,
        uint8: Uint8Rule = ROUNDED,
    ):
        self.mesh, self.attention, self.conditioner = mesh, system.mesh_config.attention, system.conditioner
        self.sampler = system.sampler
        self.guides, self.known, self.uint8 = guides, known, uint8
        self.guided_by_label = guides.classifier is not None or guides.similarity is not None
        self.labelled = "label" in type(system.conditioner).reads or self.guided_by_label
        self.conditional = bool(type(system.conditioner).reads) or self.guided_by_label
        self.batch_size = (rows or system.sample.batch_size) * batch_parts(mesh)
        function = make_sample_function(system, mesh, guides, uint8)
        self.draw = jax.jit(function, out_shardings=batch_sharding(mesh))

    def __call__(self, model: Any, frozen: Frozen, requests: Sequence[Record], seed: int) -> Iterator[np.ndarray]:
        """Draws sample 0, 1, … in order; all processes must take part and all receive the images.

        Args:
          model: the backbone.
          frozen: the frozen networks.
          requests: what each of the N samples is to show, records without an image.
          seed: of the samples.

        Yields:
          [b, H, W, C] uint8 with b ≤ batch_size, N in all; sample i is a function of (model, requests[i], seed, i).

        Raises:
          UnfinishedSamples: the sampler stopped on the way; on all processes at the same batch.
        """
        rows = local_rows(self.mesh, self.batch_size)
        for first in range(0, len(requests), self.batch_size):
            index = np.arange(first, first + self.batch_size, dtype=np.int32)[rows]
            known = self.known.rows(index) if self.known is not None else None
            # The last batch is filled up with copies of the last request, and cut again.
            wanted = [(i, requests[min(i, len(requests) - 1)]) for i in index.tolist()]
            local = {**batch_arrays(self.conditioner, wanted, seed), "index": index, "known": known}
            if self.guided_by_label:
                local["label"] = np.asarray([record["label"] for _, record in wanted], np.int32)
            batch = to_global(self.mesh, self.batch_size, local)
            with jax.set_mesh(self.mesh), attention_kernel(self.attention):
                networks = (model, self.guides.weak, self.guides.classifier, frozen)
                drawn = self.draw(*networks, batch, jnp.uint32(seed))  # leaves [batch_size, ...]
            whole = jax.tree.map(functools.partial(self.on_host, count=len(requests) - first), drawn)
            check_drawn(whole.diagnostics, self.sampler)
            yield whole.images

    def on_host(self, leaf: jax.Array, count: int) -> np.ndarray:
        """The first `count` rows of [batch_size, ...], on every process."""
        return np.asarray(leaf if leaf.is_fully_addressable else exchange(self.mesh, leaf))[:count]


def exchange(mesh: Mesh, images: jax.Array, most: int = GATHERED) -> np.ndarray:
    """Brings a batch to every process, a part at a time: the images of a whole pod are too many for one device.

    Args:
      mesh: the mesh.
      images: [B, ...] split over the batch axes of the mesh.
      most: images that each device holds at once; at least one of each of the others.

    Returns:
      The same, on each host.
    """
    parts = batch_parts(mesh)
    rows = images.shape[0] // parts
    size = max(size for size in range(1, max(most // parts, 1) + 1) if rows % size == 0)
    take = _taking(mesh, parts, size)
    found = [np.asarray(take(images, first).addressable_data(0)) for first in range(0, rows, size)]
    return np.concatenate(found, axis=1).reshape(images.shape)


@functools.cache
def _taking(mesh: Mesh, parts: int, size: int) -> Callable[[jax.Array, int], jax.Array]:
    """A program that copies `size` images of each of `parts` devices to all of them."""

    def take(images: jax.Array, first: jax.Array) -> jax.Array:
        by_device = images.reshape(parts, -1, *images.shape[1:])  # [parts, rows, ...]
        return jax.lax.dynamic_slice_in_dim(by_device, first, size, axis=1)  # [parts, size, ...]

    return jax.jit(take, out_shardings=replicated(mesh))
