"""The `shapes` data set: any number of rendered scenes at any size, with everything there is to know of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from diffusion_jax.data.shape_scenes import (
    BRIGHTEST_GROUND,
    COLOURS,
    EXTENTS,
    KINDS,
    Scene,
    Shape,
    cover,
    draw_scene,
    render,
    segment,
)
from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.records import TEXT, Field, Record, RecordSpec, image_records

Annotation = Literal["boxes", "caption", "mask", "segmentation"]
ANNOTATIONS: tuple[Annotation, ...] = get_args(Annotation)

SMALLEST = 16  # pixels; below, a star cannot be told from a diamond
IMAGES = {"train": 50_000, "test": 5_000}
SEED = 0
# Scenes of the test split are numbered from here, so no number of training images runs into them.
FIRST_TEST = 2**48


class Shapes:
    """Procedural scenes of coloured shapes on textured backgrounds; the class is the kind of the largest shape.

    Record `index` is a function of (split, index, shapes, size) alone, and shows the same scene at every size. Every
    kind looks the same in a mirror, so random flips leave labels right.

    Args:
      split: "train", "test", or "all" for both, training images first.
      image_size: height and width, pixels, ≥ 16.
      channels: 3, or 1 for the luma of ITU-R 601.
      images: number of training images; None gives 50,000. The test split has 5,000.
      shapes: largest number of shapes in a scene, 1 … 6.
      annotations: what records hold beside image and label; see `__getitem__`.

    Raises:
      UserError: another split, or a number out of range.
    """

    num_classes = len(KINDS)
    class_names: tuple[str, ...] = KINDS

    def __init__(
        self,
        split: str = "train",
        image_size: int = 64,
        channels: int = 3,
        images: int | None = None,
        shapes: int = 1,
        annotations: Sequence[Annotation] = (),
    ):
        if image_size < SMALLEST:
            raise UserError(f"data.image_size={image_size}: shapes need at least {SMALLEST} pixels")
        if split not in (*IMAGES, "all"):
            raise UserError(f"data.split={split!r}: shapes has no such split{did_you_mean(split, (*IMAGES, 'all'))}")
        train = IMAGES["train"] if images is None else images
        if not 1 <= train < FIRST_TEST:
            raise UserError(f"data.name: shapes:images={images} must be at least 1")
        if not 1 <= shapes <= 6:
            raise UserError(f"data.name: shapes:shapes={shapes} must be 1 to 6")
        for name in annotations:
            if name not in ANNOTATIONS:
                raise UserError(f"data.annotations: {name!r} is not known{did_you_mean(name, ANNOTATIONS)}")
        self._train = 0 if split == "test" else train
        self._test = 0 if split == "train" else IMAGES["test"]
        self._shapes, self._annotations = shapes, tuple(annotations)
        self.image_shape = (image_size, image_size, channels)
        self.record_spec: RecordSpec = self._spec(image_size)
        self.identity = f"shapes split={split} images={len(self)} size={image_size} channels={channels} shapes={shapes}"

    def _spec(self, size: int) -> RecordSpec:
        known: dict[Annotation, dict[str, Field]] = {
            "boxes": {"boxes": Field((self._shapes, 4), "float32"), "box_labels": Field((self._shapes,), "int32")},
            "caption": {"caption": Field((), TEXT)},
            "mask": {"mask": Field((size, size), "uint8")},
            "segmentation": {"segmentation": Field((size, size), "uint8")},
        }
        spec = image_records(self.image_shape)
        for annotation in self._annotations:
            spec |= known[annotation]
        return spec

    def __len__(self) -> int:
        return self._train + self._test

    def scene(self, index: int) -> Scene:
        """What image `index`, 0 ≤ index < len(self), shows."""
        number = index if index < self._train else FIRST_TEST + index - self._train
        return draw_scene(SEED, number, self._shapes)

    def __getitem__(self, index: int) -> Record:
        """Record `index`, 0 ≤ index < len(self).

        Returns:
          `image` uint8 [H, W, C] and `label` int32 scalar; and of the annotations asked for: `boxes` float32
          [shapes, 4], (left, top, right, bottom) in 0 … 1, with `box_labels` int32 [shapes], largest first, empty
          places −1; `caption`, a str; `mask` uint8 [H, W], 1 in the hole to inpaint; `segmentation` uint8 [H, W], 0
          for background, else 1 + class.
        """
        scene, size = self.scene(index), self.image_shape[0]
        image = render(scene, size)
        if self.image_shape[2] == 1:
            image = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
        record: dict[str, object] = {"image": image, "label": np.int32(KINDS.index(scene.shapes[0].kind))}
        if "boxes" in self._annotations:
            boxes, labels = np.full((self._shapes, 4), -1, np.float32), np.full(self._shapes, -1, np.int32)
            for i, shape in enumerate(scene.shapes):
                boxes[i], labels[i] = shape.box, KINDS.index(shape.kind)
            record |= {"boxes": boxes, "box_labels": labels}
        if "caption" in self._annotations:
            record["caption"] = scene.caption
        if "mask" in self._annotations:
            left, top, right, bottom = (round(edge * size) for edge in scene.hole)
            record["mask"] = np.zeros((size, size), np.uint8)
            record["mask"][top:bottom, left:right] = 1  # type: ignore[index]
        if "segmentation" in self._annotations:
            record["segmentation"] = segment(scene, size)
        return record

    @classmethod
    def parse(cls, options: str, **arguments: Any) -> "Shapes":
        """Opens `shapes:images=20000,shapes=3`, of which `options` is the part behind the colon.

        Args:
          options: `images` and `shapes` with integers, in any order; may be empty.
          **arguments: of the constructor.

        Raises:
          UserError: another option, or one that is no integer.
        """
        for option in filter(None, options.split(",")):
            key, _, value = option.partition("=")
            if key not in ("images", "shapes"):
                raise UserError(f"data.name: shapes has no option {key!r}{did_you_mean(key, ('images', 'shapes'))}")
            if not value.isdecimal():
                raise UserError(f"data.name: shapes:{option} must be {key}=INTEGER")
            arguments[key] = int(value)
        return cls(**arguments)


def shows(image: np.ndarray, shape: Shape) -> float:
    """How well an image shows a shape where it should be.

    Args:
      image: uint8 [H, H, 3].
      shape: the shape.

    Returns:
      Intersection over union, 0 … 1, of the pixels of its colour around its box and the pixels it should cover.
    """
    rows, columns, coverage = cover(shape, image.shape[0])
    distance = _colour_distances(image[rows, columns])
    seen = (distance.argmin(-1) == list(COLOURS).index(shape.colour)) & (distance.min(-1) < 0.3)
    return _overlap(seen, coverage >= 0.5)


def recognise(image: np.ndarray, least: float = 0.7) -> Shape | None:
    """Finds the largest shape of an image, without being told what to look for.

    Args:
      image: uint8 [H, H, 3].
      least: overlap with its ideal outline, below which nothing is recognised.

    Returns:
      The shape, or None if the largest region brighter than any background does not look like one.
    """
    # By brightness and not by colour: a shape's may lie between two of the palette, or run from one into another.
    region = _largest(image.max(-1) > 255 * BRIGHTEST_GROUND)
    if not 0.005 <= region.mean() <= 0.5:  # no shape takes more than 0.37 of its image
        return None
    colour = list(COLOURS)[np.bincount(_colour_distances(image)[region].argmin(-1)).argmax()]
    shape, overlap = _best_fit(region, colour)
    return shape if overlap >= least else None


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected region of a mask [H, H], as a mask."""
    from scipy import ndimage

    regions, _ = ndimage.label(mask)
    areas = np.bincount(regions.ravel(), minlength=2)[1:]
    return mask & (regions == 1 + areas.argmax())


def _best_fit(region: np.ndarray, colour: str) -> tuple[Shape, float]:
    """The shape whose outline overlaps a region [H, H] most, and how much.

    Each kind is drawn to the region's bounding box, then moved and scaled for as long as the overlap grows: a blurred
    picture lacks the tips of a star, and a star drawn to the box of the rest overlaps less than a circle would.
    """
    size = region.shape[0]
    ys, xs = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    left, right, top, bottom = xs[0] / size, (xs[-1] + 1) / size, ys[0] / size, (ys[-1] + 1) / size
    fits = []
    for kind in KINDS:
        half, up, down = EXTENTS[kind]
        radius = ((right - left) / (2 * half) + (bottom - top) / (up + down)) / 2
        y = (top + bottom) / 2 + radius * (up - down) / 2
        fits.append(_climb(region, Shape(kind, colour, (left + right) / 2, y, radius)))
    return max(fits, key=lambda fit: fit[1])


def _climb(region: np.ndarray, shape: Shape) -> tuple[Shape, float]:
    """The shape where steps of half a pixel in place and radius no longer raise its overlap with a region [H, H]."""
    size = region.shape[0]

    def overlap(shape: Shape) -> float:
        ideal = np.zeros_like(region)
        rows, columns, coverage = cover(shape, size)
        ideal[rows, columns] = coverage >= 0.5
        return _overlap(region, ideal)

    best = overlap(shape)
    for step in (2 / size, 1 / size, 0.5 / size):
        better = True
        while better:
            better = False
            for field in ("x", "y", "radius"):
                for change in (step, -step):
                    moved = dataclasses.replace(shape, **{field: getattr(shape, field) + change})
                    if moved.radius > step and (found := overlap(moved)) > best:
                        shape, best, better = moved, found, True
    return shape, best


def _colour_distances(image: np.ndarray) -> np.ndarray:
    """Distance in RGB, 0 … 1, of each pixel from each colour at medium shade, [H, W, colours]."""
    palette = np.array(list(COLOURS.values()), np.float32)
    return np.linalg.norm(image[..., None, :].astype(np.float32) / 255 - 0.93 * palette, axis=-1)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0
