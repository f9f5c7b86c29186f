"""The 1,797 handwritten digits that scikit-learn ships: real data that needs no download."""

import functools

import numpy as np

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.records import Record, RecordSpec, image_records

NATIVE_SIZE = 8

# Of each digit's records, which come writer by writer, every fifth is a test record.
TEST_EVERY = 5


class Digits:
    """Optical digits (Alpaydin and Kaynak 1998), 8 × 8 pixels in 17 grey levels, 10 classes.

    Args:
      split: "train" (1,438 images), "test" (359) or "all" (1,797).
      image_size: 8, or a multiple of 8: each pixel becomes a square block.
      channels: 1, or 3 equal ones.

    Raises:
      UserError: another split or size.
    """

    num_classes = 10
    class_names = tuple("0123456789")

    def __init__(self, split: str = "train", image_size: int = NATIVE_SIZE, channels: int = 1):
        if image_size < NATIVE_SIZE or image_size % NATIVE_SIZE:
            raise UserError(f"data.image_size={image_size}: digits are 8 × 8 pixels; use 8 or a multiple of it")
        images, labels = _load()
        is_test = np.full(len(labels), False)
        is_test[np.argsort(labels, kind="stable")[TEST_EVERY - 1 :: TEST_EVERY]] = True
        chosen = {"train": ~is_test, "test": is_test, "all": np.full(len(labels), True)}
        if split not in chosen:
            raise UserError(f"data.split={split!r}: digits has no such split{did_you_mean(split, chosen)}")
        block = image_size // NATIVE_SIZE
        self._images = images[chosen[split]].repeat(block, axis=1).repeat(block, axis=2)[..., None].repeat(channels, 3)
        self._labels = labels[chosen[split]]
        self.image_shape = (image_size, image_size, channels)
        self.record_spec: RecordSpec = image_records(self.image_shape)
        self.identity = f"digits split={split} images={len(self)} size={image_size} channels={channels}"

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        return {"image": self._images[index], "label": self._labels[index]}


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [1797, 8, 8] over the whole range 0 … 255, labels int32 [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.round(data.images * 255 / 16).astype(np.uint8), data.target.astype(np.int32)
