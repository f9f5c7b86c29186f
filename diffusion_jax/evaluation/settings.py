"""How images are scored: the config section `evaluate` and what it may ask for."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from diffusion_jax.data import DataConfig
from diffusion_jax.data.digits import NATIVE_SIZE
from diffusion_jax.data.transforms import Crop
from diffusion_jax.errors import UserError, did_you_mean

METRIC_NEEDS = {
    "fid": "2048",
    "sfid": "spatial",
    "inception_score": "logits",
    "kid": "features",
    "precision": "features",
    "recall": "features",
    "density": "features",
    "coverage": "features",
    "fd_dinov2": "dinov2",
    "cmmd": "clip",
}
"""Metrics by name, and what they are computed from: taps of the Inception network, or features of another."""


# As many images as features: below, the covariance is singular and the distance far too large.
LEAST_IMAGES = 2048


ProtocolName = Literal["adm", "ldm", "uvit", "clean", "edm"]

DIGITS_METRICS = ("frechet_distance", "class_agreement")


# The settings of images that decide their pixels.
STATED = ("crop", "exif_orientation", "channels")

LOWER_IS_BETTER = ("fid", "sfid", "kid", "fd_dinov2", "cmmd", "frechet_distance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What became of the images that a model was trained on, and so must become of those that it is compared with.

    Attributes:
      crop: as of `DataConfig`.
      exif_orientation: as of `DataConfig`.
      channels: as of `DataConfig`.
      on_bad_image: as of `DataConfig`; changes which images there are, not what becomes of them.
      data_dir: as of `DataConfig`; says where images are, not what becomes of them.
      dataset: what kind of data set it was, "folder", "tfds", "digits", "shapes" or "cache"; None if not known.
    """

    crop: Crop = "adm"
    exif_orientation: bool = True
    channels: int = 3
    on_bad_image: Literal["raise", "skip"] = "raise"
    data_dir: str | None = None
    dataset: str | None = None

    @classmethod
    def of(cls, data: DataConfig) -> "ImageSettings":
        """Those of a run, from its section `data`."""
        shared = {
            field.name: getattr(data, field.name) for field in dataclasses.fields(cls) if hasattr(data, field.name)
        }
        return cls(**shared, dataset=data.name.partition(":")[0])

    @classmethod
    def recorded(cls, facts: Any) -> "ImageSettings | None":
        """What `facts` gave, read from a file; None unless it says all of them."""
        if not isinstance(facts, Mapping) or not {*STATED} <= facts.keys():
            return None
        return cls(**{key: facts[key] for key in STATED}, dataset=facts.get("dataset"))

    def facts(self) -> dict[str, Any]:
        """What files and results state, ready for JSON."""
        return {key: getattr(self, key) for key in (*STATED, "dataset")}

    def differences(self, other: "ImageSettings") -> list[str]:
        """Why images of these settings must not be compared with those of others, as "key=ours, not theirs"."""
        pairs = [(key, getattr(self, key), getattr(other, key)) for key in STATED]
        return [f"{key}={ours}, not {theirs}" for key, ours, theirs in pairs if ours != theirs]

    def data(self, name: str, image_size: int, split: str) -> DataConfig:
        """The config that reads a data set under these settings."""
        return DataConfig(
            name,
            image_size,
            split,
            self.channels,
            exif_orientation=self.exif_orientation,
            crop=self.crop,
            on_bad_image=self.on_bad_image,
            data_dir=self.data_dir,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How images are scored.

    Attributes:
      reference: real images or their statistics: a .npz file, `digits[:SPLIT]`, `shapes`, `folder:PATH` or
        `tfds:NAME`; None where only the Inception Score is wanted.
      protocol: rules of the Inception metrics; None means the recogniser where the reference is `shapes`, the digits
        classifier for 8×8 images, and `adm` for others.
      metrics: their names; None takes those that the protocol's papers report.
      inception_weights: the weight file of the FID network; None means the one in the cache folder.
      dinov2_weights: that of DINOv2, for `fd_dinov2`.
      clip_weights: that of CLIP, for `cmmd`.
      precision: of that network; `fast` values are not for publication.
      allow_few: measure Fréchet distances of fewer than 2048 images.
      allow_other_resize: take statistics made under other rules.
    """

    reference: str | None = None
    protocol: ProtocolName | None = None
    metrics: tuple[str, ...] | None = None
    inception_weights: str | None = None
    dinov2_weights: str | None = None
    clip_weights: str | None = None
    precision: Literal["float32", "fast"] = "float32"
    allow_few: bool = False
    allow_other_resize: bool = False

    @property
    def scores_shapes(self) -> bool:
        """Whether images are scored by what recognises the data set `shapes`."""
        return self.protocol is None and (self.reference or "").partition(":")[0] == "shapes"

    def scores_digits(self, image_shape: tuple[int, int, int]) -> bool:
        """Whether images of this shape are scored by the digits classifier."""
        return self.protocol is None and not self.scores_shapes and image_shape[:2] == (NATIVE_SIZE, NATIVE_SIZE)

    def weights(self, tap: str) -> str | None:
        """The weight file that the settings name of the network "dinov2" or "clip"."""
        return {"dinov2": self.dinov2_weights, "clip": self.clip_weights}[tap]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringConfig):
    """The `evaluate` section: how the samples of a model in training are scored, every `train.eval_every` steps.

    Attributes:
      num: number of samples.
      labels: their classes: "balanced", "uniform", or a list of numbers, ranges and names of classes.
      best: the metric by which the best checkpoint is kept beside the newest ones; None keeps none.
    """

    num: int = 10_000
    labels: str = "uniform"
    best: str | None = None

    def __post_init__(self):
        if self.num < 2:
            raise UserError(f"evaluate.num={self.num}: must be at least 2")
        known = {*METRIC_NEEDS, *DIGITS_METRICS}
        if self.best is not None and self.best not in known:
            raise UserError(f"evaluate.best: metric '{self.best}' is not known{did_you_mean(self.best, known)}")

    def improves(self, value: float, on: float | None) -> bool:
        """Whether a value of the metric `best` beats an older one, None being none."""
        if on is None:
            return True
        return value < on if self.best in LOWER_IS_BETTER else value > on
