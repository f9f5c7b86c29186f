"""What a feature extractor is, and which one measures which images."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from diffusion_jax.data.digits import NATIVE_SIZE
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.digits.classifier import DigitClassifier


class Extractor(Protocol):
    """A fixed network that turns images into feature vectors.

    Attributes:
      name: what results call it; a Fréchet distance means nothing without it.
      feature_width: D.
    """

    name: str
    feature_width: int

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features of uint8 images [B, H, W, C], float32 [B, D], of each image by itself.

        Raises:
          UserError: images of a size or kind it does not take.
        """
        ...

    def real_images_unseen_by(self, reference: str) -> str | None:
        """A data set of real images that are in neither the extractor's training nor a reference.

        Args:
          reference: the name of a data set or file, as `open_image_set` takes it.

        Returns:
          Such a name again, or None where there is no such data set.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What a result file says of it, ready for JSON: name, fingerprint, and how it prepares images."""
        ...


@runtime_checkable
class Classifier(Extractor, Protocol):
    """An extractor that also names the class of an image.

    Attributes:
      num_classes: classes are 0 … num_classes − 1.
    """

    num_classes: int

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The most likely class of each of the uint8 images [B, H, W, C], int32 [B]; errors as `features`."""
        ...


def extractor_for(image_shape: tuple[int, int, int]) -> Extractor:
    """The extractor that measures images of a shape [H, W, C].

    Raises:
      UserError: there is none.
    """
    if image_shape[:2] != (NATIVE_SIZE, NATIVE_SIZE):
        raise UserError(
            f"{image_shape[0]}×{image_shape[1]} images: no feature extractor takes them; the only one there is "
            f"measures handwritten digits of {NATIVE_SIZE}×{NATIVE_SIZE} pixels (the data set 'digits')"
        )
    return DigitClassifier.open()
