"""Scenes of coloured shapes on textured backgrounds: drawn from a seed, described in words, rendered at any size.

All lengths are fractions of the image, so a scene looks the same at every resolution.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

KINDS = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "bar")
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.75, 0.20),
    "blue": (0.12, 0.25, 0.92),
    "yellow": (0.96, 0.90, 0.10),
    "purple": (0.65, 0.15, 0.80),
    "cyan": (0.10, 0.85, 0.90),
    "orange": (0.98, 0.55, 0.08),
    "white": (0.97, 0.97, 0.97),
}
TEXTURES = ("plain", "striped", "checked", "dotted", "wavy", "cloudy")

# Half width, and reach upwards and downwards, of each kind over its radius.
EXTENTS = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.88, 0.88, 0.88),
    "triangle": (0.95, 0.95, 0.7),
    "diamond": (1.0, 1.0, 1.0),
    "cross": (0.95, 0.95, 0.95),
    "star": (0.9511, 1.0, 0.809),
    "ring": (1.0, 1.0, 1.0),
    "bar": (1.0, 0.38, 0.38),
}

SHADE = 0.15  # how much darker a shape is at its lower end
BRIGHTEST_GROUND = 0.59  # of any channel of a background; the brightest of a shape has 0.637 at least, that of green
CLOUD_CELLS = 6
PLACING_TRIES = 8


@dataclass(frozen=True)
class Shape:
    """One shape of a scene.

    Attributes:
      kind: one of `KINDS`.
      colour: a key of `COLOURS`.
      x: centre from the left, 0 … 1.
      y: centre from the top, 0 … 1.
      radius: of the circle around the kind's outline.
    """

    kind: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in 0 … 1."""
        half, up, down = (self.radius * extent for extent in EXTENTS[self.kind])
        return self.x - half, self.y - up, self.x + half, self.y + down

    def __str__(self) -> str:
        size = "small " if self.radius < 0.17 else "large " if self.radius > 0.28 else ""
        return f"{size}{self.colour} {self.kind}"


@dataclass(frozen=True)
class Background:
    """What is behind the shapes.

    Attributes:
      texture: one of `TEXTURES`.
      tones: the two colours it mixes, muted so that no shape is lost in it.
      frequency: cycles over the image.
      angle: direction of stripes and gradients, radians.
      phase: 0 … 1.
      cells: levels of the clouds, [CLOUD_CELLS, CLOUD_CELLS] in −1 … 1.
    """

    texture: str
    tones: np.ndarray
    frequency: float
    angle: float
    phase: float
    cells: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture before it is rendered.

    Attributes:
      shapes: largest first; they do not overlap and lie wholly inside.
      background: what is behind them.
      hole: (left, top, right, bottom) in 0 … 1 of the part to be inpainted.
    """

    shapes: tuple[Shape, ...]
    background: Background
    hole: tuple[float, float, float, float]

    @property
    def caption(self) -> str:
        """The scene in English, such as "a large red circle left of a blue star on a striped background"."""
        ground = f"on a {self.background.texture} background"
        first, *rest = self.shapes
        if not rest:
            return f"{_article(first)} {ground}"
        dx, dy = rest[0].x - first.x, rest[0].y - first.y
        relation = ("left of" if dx > 0 else "right of") if abs(dx) > abs(dy) else ("above" if dy > 0 else "below")
        others = "".join(f" and {_article(shape)}" for shape in rest[1:])
        return f"{_article(first)} {relation} {_article(rest[0])}{others} {ground}"


def _article(shape: Shape) -> str:
    name = str(shape)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def draw_scene(seed: int, index: int, max_shapes: int) -> Scene:
    """The scene that a seed and an index name.

    Args:
      seed: of the data set, 0 ≤ seed < 2⁶⁴.
      index: of the scene, 0 ≤ index < 2⁶⁴.
      max_shapes: largest number of shapes, ≥ 1; each number from 1 on is equally likely.

    Returns:
      The scene; the same on every machine, since it is made of the bits of Philox (Salmon et al. 2011) alone.
    """
    bits = np.random.Philox(key=np.array([seed, index], np.uint64))
    raw = bits.random_raw(64 + max_shapes * (3 + 2 * PLACING_TRIES))
    draws = iter(((raw >> np.uint64(11)) * 2.0**-53).tolist())  # uniform in [0, 1)
    count = 1 + int(next(draws) * max_shapes)
    smallest, largest = (0.18, 0.34) if count == 1 else (0.11, 0.24)
    radii = sorted((smallest + (largest - smallest) * next(draws) for _ in range(count)), reverse=True)
    shapes: list[Shape] = []
    for radius in radii:
        kind, colour = _choice(draws, KINDS), _choice(draws, tuple(COLOURS))
        half, up, down = (radius * extent + 0.02 for extent in EXTENTS[kind])
        for _ in range(PLACING_TRIES):
            x = half + (1 - 2 * half) * next(draws)
            y = up + (1 - up - down) * next(draws)
            if all(np.hypot(x - other.x, y - other.y) > radius + other.radius + 0.02 for other in shapes):
                shapes.append(Shape(kind, colour, x, y, radius))
                break
    width, height = 0.25 + 0.35 * next(draws), 0.25 + 0.35 * next(draws)
    left, top = (1 - width) * next(draws), (1 - height) * next(draws)
    return Scene(tuple(shapes), _draw_background(draws), (left, top, left + width, top + height))


def _draw_background(draws: Iterator[float]) -> Background:
    texture = _choice(draws, TEXTURES)
    dark, light = 0.16 + 0.14 * next(draws), 0.36 + 0.16 * next(draws)
    tones = np.array([[level + 0.14 * (next(draws) - 0.5) for _ in range(3)] for level in (dark, light)], np.float32)
    frequency, angle, phase = 2 + 3 * next(draws), np.pi * next(draws), next(draws)
    cells = np.array([next(draws) for _ in range(CLOUD_CELLS**2)], np.float32).reshape(CLOUD_CELLS, CLOUD_CELLS)
    return Background(texture, tones, frequency, angle, phase, 2 * cells - 1)


def _choice(draws: Iterator[float], options: tuple[str, ...]) -> str:
    return options[int(next(draws) * len(options))]


def render(scene: Scene, size: int) -> np.ndarray:
    """The picture of a scene, uint8 [size, size, 3]; edges are antialiased."""
    ground = scene.background
    level = 0.5 + 0.5 * _texture(ground, size)[..., None]  # H W 1, in 0 … 1
    image = ground.tones[0] + (ground.tones[1] - ground.tones[0]) * level  # H W 3
    for shape in scene.shapes:
        rows, columns, coverage = cover(shape, size)
        shading = 1 - SHADE * np.linspace(0, 1, coverage.shape[0], dtype=np.float32)[:, None, None]
        part = image[rows, columns]
        part += coverage[..., None] * (np.array(COLOURS[shape.colour], np.float32) * shading - part)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def segment(scene: Scene, size: int) -> np.ndarray:
    """The kind at each pixel, uint8 [size, size]: 0 for background, 1 + its number in `KINDS` for a shape."""
    labels = np.zeros((size, size), np.uint8)
    for shape in scene.shapes:
        rows, columns, coverage = cover(shape, size)
        labels[rows, columns][coverage >= 0.5] = 1 + KINDS.index(shape.kind)
    return labels


def cover(shape: Shape, size: int) -> tuple[slice, slice, np.ndarray]:
    """How much of each pixel a shape covers.

    Args:
      shape: the shape.
      size: of the image, pixels.

    Returns:
      The rows and columns around the shape, and float32 [rows, columns] in 0 … 1.
    """
    left, top, right, bottom = (edge * size for edge in shape.box)
    rows = slice(max(int(top) - 1, 0), min(int(bottom) + 2, size))
    columns = slice(max(int(left) - 1, 0), min(int(right) + 2, size))
    radius = shape.radius * size
    v = ((np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - shape.y * size) / radius)[:, None]
    u = ((np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - shape.x * size) / radius)[None]
    return rows, columns, np.clip(0.5 + radius * _depth(shape.kind, u, v), 0, 1)


def _depth(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far inside the outline of a kind of radius 1 the points (u to the right, v downwards) lie; < 0 outside."""
    if kind == "circle":
        return 1 - np.sqrt(u**2 + v**2)
    if kind == "ring":
        r = np.sqrt(u**2 + v**2)
        return np.minimum(1 - r, r - 0.55)
    u = np.abs(u)
    if kind == "square":
        return 0.88 - np.maximum(u, np.abs(v))
    if kind == "bar":
        return np.minimum(1 - u, 0.38 - np.abs(v))
    if kind == "diamond":
        return (1 - u - np.abs(v)) * np.float32(0.5**0.5)
    if kind == "triangle":
        # From the apex (0, −0.95) to the corner (0.95, 0.7): 1.65 u = 0.95 (v + 0.95).
        return np.minimum(0.7 - v, (0.95 * (v + 0.95) - 1.65 * u) / np.float32(1.904))
    if kind == "cross":
        v = np.abs(v)
        return np.maximum(np.minimum(0.33 - u, 0.95 - v), np.minimum(0.95 - u, 0.33 - v))
    # Star: fold the angle from the apex into one tenth of the circle, where the outline is one straight edge.
    r, angle = np.sqrt(u**2 + v**2), np.arctan2(u, -v)
    folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    x, y = r * np.sin(folded), r * np.cos(folded)
    # The edge runs from the tip (0, 1) to the notch at radius 0.5, 36° away.
    notch = (0.5 * np.sin(np.pi / 5), 0.5 * np.cos(np.pi / 5))
    edge = (notch[0], notch[1] - 1)
    return ((1 - y) * edge[0] + x * edge[1]) / np.float32(np.hypot(*edge))


def _texture(ground: Background, size: int) -> np.ndarray:
    """The level of a texture, float32 [size, size] in −1 … 1."""
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)  # from 0 to 1, both axes
    turn = np.float32(2 * np.pi)
    cycles, phase = np.float32(ground.frequency), np.float32(ground.phase)
    along_x, along_y = np.float32(np.cos(ground.angle)), np.float32(np.sin(ground.angle))
    if ground.texture == "plain":
        return (along_x * (2 * place - 1)[None] + along_y * (2 * place - 1)[:, None]) / np.float32(2**0.5)
    if ground.texture == "striped":
        x, y = turn * cycles * along_x * place, turn * (cycles * along_y * place + phase)
        return np.sin(y)[:, None] * np.cos(x)[None] + np.cos(y)[:, None] * np.sin(x)[None]  # sin(x + y)
    if ground.texture == "cloudy":
        # Cosine interpolation between the cells, one axis after the other.
        at = place * (CLOUD_CELLS - 1)
        cell = np.minimum(at.astype(np.int64), CLOUD_CELLS - 2)
        share = np.float32(0.5) - np.float32(0.5) * np.cos(np.float32(np.pi) * (at - cell.astype(np.float32)))
        weights = np.zeros((size, CLOUD_CELLS), np.float32)
        weights[np.arange(size), cell], weights[np.arange(size), cell + 1] = 1 - share, share
        return weights @ ground.cells @ weights.T
    wave_x, wave_y = np.sin(turn * (cycles * place + phase)), np.sin(turn * cycles * place)
    if ground.texture == "checked":
        return np.clip(3 * wave_y[:, None] * wave_x[None], -1, 1)
    if ground.texture == "dotted":
        return np.clip(2 * (wave_y[:, None] + wave_x[None]) - 1.5, -1, 1)
    bend = np.float32(0.06) * np.sin(2 * turn * place)
    return np.sin(turn * (cycles * (place[:, None] + bend[None]) + phase))  # wavy
