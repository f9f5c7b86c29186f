"""What a data set is to the rest of the library, and what happens to a record that cannot be read."""

from typing import Protocol

from diffusion_jax.errors import UserError
from diffusion_jax.records import Record, RecordSpec

MAX_BAD_IN_A_ROW = 100


class BadImage(UserError):
    """An image file or record that cannot be decoded; the message names it and the reason.

    Attributes:
      name: of the file or record.
      reason: in one line.
    """

    name = ""
    reason = ""

    @classmethod
    def of(cls, name: str, reason: str) -> "BadImage":
        """The error for the file or record `name`, with the reason in one line."""
        reason = " ".join(reason.split())
        error = cls(f"{name}: cannot be read ({reason}); repair or remove it, or set data.on_bad_image=skip")
        error.name, error.reason = name, reason
        return error


class Source(Protocol):
    """A finite data set with random access. Safe to read from many threads; can be pickled for worker processes.

    Attributes:
      num_classes: number of classes; labels are 0 … num_classes − 1.
      class_names: their names, in label order.
      image_shape: (H, W, C) of every image.
      record_spec: what every record holds.
      identity: one line (name, split, number of images, size, crop) that stays the same from machine to machine and
        changes with the images; it names reference statistics and results.
    """

    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    record_spec: RecordSpec
    identity: str

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Record `index`, 0 ≤ index < len(self).

        Returns:
          The fields of `record_spec`: `image` uint8 [H, W, C] in 0 … 255 or the moments of its latents; `label`, an
          int32 scalar, 0 where there are no classes; whatever else the data set knows of the image.

        Raises:
          BadImage: the image cannot be decoded.
        """
        ...


class SkipBadImages:
    """A source in which each unreadable record is replaced by the next readable one (the first follows the last).

    Its records carry `bad_images`: how many unreadable records were passed over to find this one, an int ≥ 0.
    """

    def __init__(self, source: Source):
        self.source = source
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.image_shape = source.image_shape
        self.record_spec = source.record_spec
        self.identity = source.identity

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        """Record `index` or its replacement.

        Raises:
          UserError: more than `MAX_BAD_IN_A_ROW` records in a row, or all of them, are unreadable.
        """
        limit = min(len(self.source), MAX_BAD_IN_A_ROW)
        for bad_images in range(limit):
            try:
                return {**self.source[(index + bad_images) % len(self.source)], "bad_images": bad_images}
            except BadImage as error:
                last = error
        raise UserError(f"data.on_bad_image=skip: {limit} images in a row are unreadable, the last being {last}")
