"""Several extractors that see the same images, as one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_jax.evaluation.networks.inception_features import InceptionFeatures
from diffusion_jax.evaluation.networks.vision_features import VisionFeatures


class CombinedFeatures:
    """All taps of all extractors.

    Args:
      members: at least one; the first is the one whose name and preparation results state at the top.

    Attributes:
      taps: of all members, which share none.
      widths: features per image, by tap.
      name: of the first member, as are `resize`, `scale`, `precision` and `weights_sha256`.
    """

    def __init__(self, members: Sequence[InceptionFeatures | VisionFeatures]):
        first = members[0]
        self.members = tuple(members)
        self.widths = {tap: width for member in members for tap, width in member.widths.items()}
        self.taps = tuple(self.widths)
        self.name, self.weights_sha256 = first.name, first.weights_sha256
        self.resize, self.scale, self.precision = first.resize, first.scale, first.precision

    def measure(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """By tap, [N, width] float32, of uint8 images [N, H, W, 3]; raises UserError as the members do."""
        return {tap: rows for member in self.members for tap, rows in member.measure(images).items()}

    def describe(self) -> dict[str, Any]:
        """What a result file says of them, ready for JSON: the first, and under `further` the others."""
        first, *others = (member.describe() for member in self.members)
        return {**first, "further": others} if others else first
