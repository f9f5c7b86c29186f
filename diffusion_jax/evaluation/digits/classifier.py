"""The extractor for `digits`: trained when first needed, then kept in the user's cache folder."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from absl import logging

from diffusion_jax.data.digits import NATIVE_SIZE, Digits
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.digits.classifier_training import NUM_CLASSES, DigitNetwork, Recipe, to_pixels, train
from diffusion_jax.files import cache_folder, write_atomically
from diffusion_jax.interop.mapping import parameter_paths
from diffusion_jax.parallel.partition import path_name

# Images per call of the network: always the same, so that an image's features do not depend on its company.
CHUNK = 256

# Largest mean difference between the channels of a grey image. Samples of a three-channel model are grey only nearly.
GREY_TOLERANCE = 16


class DigitClassifier:
    """A `Classifier` of grey 8 × 8 digits, in float32 on the CPU of this host wherever the rest of the program runs.

    Args:
      network: the trained network.
      fingerprint: of the recipe that made it.

    Attributes:
      fingerprint: tells which recipe, training images and library versions made it.
      weights_sha256: checksum of its parameters, which differ in their last digits between kinds of processor.
    """

    num_classes = NUM_CLASSES

    def __init__(self, network: DigitNetwork, fingerprint: str):
        self._network = jax.device_put(network, _cpu())
        self._logits = jax.jit(lambda network, images: network(to_pixels(images)))
        self._features = jax.jit(lambda network, images: network.features(to_pixels(images)))
        self.feature_width = network.head.in_features
        self.name = f"digits-classifier-{self.feature_width}"
        self.fingerprint = fingerprint
        self.weights_sha256 = _checksum(_tensors(network))

    @classmethod
    def open(cls, recipe: Recipe | None = None, folder: pathlib.Path | None = None) -> "DigitClassifier":
        """Takes the trained network from the cache, or trains it there: a few seconds.

        Args:
          recipe: how to train; None is the default recipe.
          folder: where trained networks lie; None is the user's cache folder.

        Raises:
          UserError: JAX has been told to do without the CPU.
        """
        recipe = recipe or Recipe()
        source = Digits("train", NATIVE_SIZE, channels=1)
        fingerprint = recipe.fingerprint(source.identity)
        path = (folder or cache_folder()) / f"digits-classifier-{fingerprint}.safetensors"
        network = _read(path, recipe)
        if network is None:
            logging.info("training the digits classifier, to be kept in %s", path)
            network = train(recipe, source, _cpu())
            _write(path, network)
        return cls(network, fingerprint)

    def features(self, images: np.ndarray) -> np.ndarray:
        """The activations before the last layer, float32 [B, D], of uint8 images [B, 8, 8, C], C 1 or 3, grey.

        Raises:
          UserError: images of another dtype or shape, or coloured ones.
        """
        return self._apply(self._features, images, self.feature_width)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The digit that each image most likely shows, int32 [B]; arguments and errors as `features`."""
        return self._apply(self._logits, images, NUM_CLASSES).argmax(-1).astype(np.int32)

    def real_images_unseen_by(self, reference: str) -> str | None:
        """The test digits, unless they are in the reference."""
        return None if reference in ("digits:test", "digits:all") else "digits:test"

    def describe(self) -> dict[str, Any]:
        """What a result file says of it, ready for JSON."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "weights_sha256": self.weights_sha256,
            "feature_width": self.feature_width,
            "trained_on": "digits:train",
            "input": "uint8 8×8, not resized; mean of the channels / 127.5 − 1",
            "precision": "float32 on the CPU",
        }

    def _apply(self, function: Callable[..., Any], images: np.ndarray, width: int) -> np.ndarray:
        """Runs `function` on the images, `CHUNK` at a time, the last ones filled up with black: float32 [B, width]."""
        _check(images)
        results = [np.empty((0, width), np.float32)]
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            filled = np.concatenate([chunk, np.zeros((CHUNK - len(chunk), *chunk.shape[1:]), np.uint8)])
            results.append(np.asarray(function(self._network, filled))[: len(chunk)])
        return np.concatenate(results)


def _cpu() -> jax.Device:
    """The CPU, on which a network this small is fastest and gives the same numbers beside any accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError(
            "the digits classifier runs on the CPU, which JAX has been told to leave alone; add cpu to JAX_PLATFORMS, "
            "as in JAX_PLATFORMS=cuda,cpu"
        ) from None


def _check(images: np.ndarray) -> None:
    size = (NATIVE_SIZE, NATIVE_SIZE)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:3] != size or images.shape[3] not in (1, 3):
        raise UserError(
            f"images {images.dtype}{list(images.shape)}: the digits classifier takes uint8 images [N, 8, 8, 1] or "
            "[N, 8, 8, 3]"
        )
    # Subtracting uint8 the larger way round cannot wrap.
    colour = (images.max(-1) - images.min(-1)).mean((1, 2)).max(initial=0)  # [B, 8, 8] to scalar
    if colour > GREY_TOLERANCE:
        raise UserError(f"coloured images (channels {colour:.0f} levels apart): the digits classifier takes grey ones")


def _tensors(network: DigitNetwork) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in parameter_paths(network).items()}


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(json.dumps([name, tensors[name].shape]).encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _write(path: pathlib.Path, network: DigitNetwork) -> None:
    """Keeps a trained network; where that is impossible, the next run trains again."""
    tensors = _tensors(network)
    try:
        write_atomically(path, safetensors.numpy.save(tensors, {"sha256": _checksum(tensors)}))
    except OSError as error:
        logging.warning("cannot keep the digits classifier in %s (%s)", path.parent, error.strerror)


def _read(path: pathlib.Path, recipe: Recipe) -> DigitNetwork | None:
    """The network kept at `path`, or None if there is none or it is not what was written."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            checksum = (file.metadata() or {}).get("sha256")
    except OSError:
        return None
    except safetensors.SafetensorError:
        checksum = None
    if checksum is None or checksum != _checksum(tensors):
        logging.warning("%s is damaged and will be made again", path)
        return None
    return jax.tree_util.tree_map_with_path(lambda name, _: tensors[path_name(name)], jax.eval_shape(recipe.network))
