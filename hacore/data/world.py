"""The concept world: drawings of sixteen shapes in four groups, with captions at four levels.

Everything is drawn from raw bits of a seeded PCG64, whose stream is the same in every version of NumPy, and
computed in float64 from sums, products and square roots, whose results are the same on every machine.
"""

import math
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import torch

from hacore.data.captioned import Captioned, captioned
from hacore.data.captions import questions
from hacore.data.dataset import Dataset
from hacore.data.tree import Tree
from hacore.errors import HacoreError

GROUPS: dict[str, tuple[str, ...]] = {
    "polygon": ("triangle", "square", "pentagon", "hexagon"),
    "round shape": ("disc", "ring", "ellipse", "crescent"),
    "star": ("caltrop", "sparkle", "pentagram", "sunburst"),  # of three, four, five and eight points
    "sign": ("cross", "arrow", "zigzag", "bolt"),
}
SHAPES = tuple(shape for group in GROUPS.values() for shape in group)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 36),
    "orange": (245, 140, 20),
    "yellow": (240, 225, 50),
    "green": (40, 160, 50),
    "turquoise": (50, 215, 215),
    "blue": (45, 75, 230),
    "purple": (150, 50, 190),
    "white": (245, 245, 245),
}
SIZES: dict[str, tuple[float, float]] = {"small": (7.0, 8.0), "large": (11.0, 13.0)}  # radii, in pixels

SIZE = 32  # pixels a side
FINE = 2  # samples a side of each pixel
CHUNK = 64  # images drawn at a time, so that the arrays stay in the processor's cache
TURN = 15  # degrees a shape is turned at most, to either side
SHIFT = 5.0  # pixels its centre is moved at most, as far as it stays within the image
GRAIN = 4  # pixels between the knots of the background
NOISE = 14  # the largest deviation of a pixel, of 255
CLUTTER = 4  # dots and strokes behind the shape

Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]


def world(train: int = 8000, test: int = 2000, seed: int = 0) -> Captioned:
    """Draw the concept world: 32 x 32 images in colour, and what is said of them at four levels.

    The tree is thing, four groups, sixteen shapes. Each image shows one shape in one of eight colours and two
    sizes, moved and turned a little, before a textured background with dots and strokes in the same colours.
    Of a small red hexagon it is said, in four wordings each, that it is a thing, a polygon, a hexagon, and a
    small red hexagon. Classes, and shapes with colours and sizes, are as equally many as the numbers allow.

    Args:
        train: training images, at least one per shape.
        test: test images, at least one per shape.
        seed: of everything; the same bytes on every machine.

    Raises:
        HacoreError: if there are fewer images than shapes.
    """
    for part, count in (("training", train), ("test", test)):
        if count < len(SHAPES):
            raise HacoreError(
                f"{count} {part} images of the world cannot show {len(SHAPES)} shapes; ask for at least {len(SHAPES)}"
            )
    drawn = [_draw(count, _Bits("world", seed, part)) for part, count in (("train", train), ("test", test))]
    tree = Tree.nested("thing", GROUPS)
    superclass_of = tuple(number for number, group in enumerate(GROUPS) for _ in GROUPS[group])
    dataset = Dataset(
        name="world",
        train_images=torch.from_numpy(drawn[0].images),
        train_labels=torch.from_numpy(drawn[0].shapes),
        test_images=torch.from_numpy(drawn[1].images),
        test_labels=torch.from_numpy(drawn[1].shapes),
        classes=SHAPES,
        superclasses=tuple(GROUPS),
        superclass_of=superclass_of,
    )
    wordings, unseen = questions(tree)
    sentences = []
    for shape in SHAPES:
        said = [wordings[node] for node in tree.ancestors(tree.node(shape))[::-1]]
        sentences.append([[*said, _detailed(shape, colour, size)] for colour in COLOURS for size in SIZES])
    first, second = (torch.from_numpy(part.colours * len(SIZES) + part.sizes) for part in drawn)
    return captioned(dataset, tree, sentences, wordings, unseen, variants=(first, second))


def _detailed(shape: str, colour: str, size: str) -> list[str]:
    return [
        f"a {size} {colour} {shape}",
        f"a drawing of a {size} {colour} {shape}",
        f"this is a {size} {colour} {shape}",
        f"a picture of a {shape} that is {size} and {colour}",
    ]


class _Bits:
    """Random numbers from the raw bits of a generator, whose meaning no version of NumPy changes."""

    def __init__(self, *key: int | str) -> None:
        self._raw = np.random.PCG64(int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big"))

    def raw(self, count: int) -> np.ndarray:
        return np.asarray(self._raw.random_raw(count))

    def integers(self, limit: int, *shape: int) -> np.ndarray:
        return ((self.raw(math.prod(shape)) >> 33).astype(np.int64) % limit).reshape(shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        return low + (high - low) * ((self.raw(math.prod(shape)) >> 11) * 2.0**-53).reshape(shape)

    def octets(self, *shape: int) -> np.ndarray:
        return self.raw(math.prod(shape) // 8).astype("<u8").view(np.uint8).reshape(shape)


class _Part(NamedTuple):
    """Training or test images and what they show, by number."""

    images: np.ndarray  # uint8 (n, 3, 32, 32)
    shapes: np.ndarray  # int64 (n,), as are colours and sizes
    colours: np.ndarray
    sizes: np.ndarray


def _draw(count: int, bits: _Bits) -> _Part:
    # Shapes, then colours, then sizes go round, in a random order.
    cell = np.argsort(bits.raw(count), kind="stable")
    shapes, rest = cell % len(SHAPES), cell // len(SHAPES)
    colours, sizes = rest % len(COLOURS), rest // len(COLOURS) % len(SIZES)
    cover = _cover(shapes, sizes, bits)
    paint = np.array(list(COLOURS.values()))[colours] + bits.uniform(-15.0, 15.0, count, 3)
    images = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        rows = slice(start, min(start + CHUNK, count))
        drawn = _background(len(cover[rows]), bits)
        _blend(drawn, cover[rows], paint[rows])
        noise = bits.octets(*drawn.shape) * (2 * NOISE / 255) - NOISE
        images[rows] = np.rint(np.clip(drawn + noise, 0, 255)).astype(np.uint8)
    return _Part(images, shapes, colours, sizes)


def _blend(images: np.ndarray, cover: np.ndarray, paint: np.ndarray) -> None:
    """Paint a colour (n, 3) over images (n, 3, h, w) where it covers them, a share (n, h, w) of each pixel."""
    images += cover[:, None] * (paint[:, :, None, None] - images)


def _background(count: int, bits: _Bits) -> np.ndarray:
    """Grey or nearly so, rougher than a plane, with dots and strokes."""
    knots = SIZE // GRAIN + 1
    grid = 50 + bits.integers(80, count, 1, 1, 1) + bits.integers(50, count, 3, knots, knots)
    # Linear between the knots. Whole numbers times eighths: exact, in whatever order they are summed up.
    place = (np.arange(SIZE) + 0.5) / GRAIN
    weights = np.clip(1 - np.abs(place[:, None] - np.arange(knots)), 0, 1)
    images = weights @ grid.astype(np.float64) @ weights.T
    palette = np.array(list(COLOURS.values()), dtype=np.float64)
    pixels = np.arange(SIZE) + 0.5
    for _ in range(CLUTTER):
        start = bits.uniform(0.0, float(SIZE), count, 2, 1, 1)
        # Every second one is a dot, a stroke without length, on average.
        way = bits.uniform(-6.0, 6.0, count, 2, 1, 1) * bits.integers(2, count, 1, 1, 1)
        x, y = pixels - start[:, 0], pixels[:, None] - start[:, 1]
        dx, dy = way[:, 0], way[:, 1]
        along = np.clip((x * dx + y * dy) / np.maximum(dx * dx + dy * dy, 1e-9), 0, 1)
        x, y = x - along * dx, y - along * dy
        cover = np.clip(bits.uniform(1.0, 1.6, count, 1, 1) - np.sqrt(x * x + y * y), 0, 1)
        _blend(images, cover, palette[bits.integers(len(COLOURS), count)])
    return images


def _cover(shapes: np.ndarray, sizes: np.ndarray, bits: _Bits) -> np.ndarray:
    """The share of each pixel that lies in the shape: float64 (n, 32, 32), in quarters."""
    count = len(shapes)
    low, high = np.array(list(SIZES.values())).T
    radius = low[sizes] + (high - low)[sizes] * bits.uniform(0.0, 1.0, count)
    room = np.minimum(SHIFT, SIZE / 2 - radius)
    centre = SIZE / 2 + room * bits.uniform(-1.0, 1.0, 2, count)
    turn = bits.integers(2 * TURN + 1, count)
    circle = np.array([_on_circle(float(degrees)) for degrees in range(-TURN, TURN + 1)])[turn].T
    cos, sin = (circle / radius)[:, :, None, None]
    samples = (np.arange(FINE * SIZE) + 0.5) / FINE
    cover = np.empty((count, SIZE, SIZE))
    for number, shape in enumerate(SHAPES):
        members = np.flatnonzero(shapes == number)
        for rows in np.split(members, range(CHUNK, len(members), CHUNK)):
            x = samples - centre[0, rows, None, None]
            y = samples[:, None] - centre[1, rows, None, None]
            inside = INSIDE[shape](x * cos[rows] + y * sin[rows], y * cos[rows] - x * sin[rows])
            cover[rows] = inside.reshape(len(rows), SIZE, FINE, SIZE, FINE).mean((2, 4))
    return cover


def _on_circle(degrees: float) -> tuple[float, float]:
    """Cosine and sine, rounded: their last bits differ between machines."""
    angle = math.radians(degrees)
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def _polygon(*corners: tuple[float, float]) -> Inside:
    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether a ray to the right leaves an odd number of times."""
        odd = np.zeros(x.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            if y0 != y1:
                slope = (x1 - x0) / (y1 - y0)
                odd ^= ((y < y0) != (y < y1)) & (x - slope * y < x0 - slope * y0)
        return odd

    return inside


def _regular(corners: int, first: float = -90.0) -> Inside:
    return _polygon(*(_on_circle(first + 360 / corners * corner) for corner in range(corners)))


def _star(points: int, inner: float) -> Inside:
    """A star whose first point is up, and whose dents lie at ``inner`` of the radius."""
    corners = []
    for point in range(points):
        corners.append(_on_circle(-90.0 + 360 / points * point))
        x, y = _on_circle(-90.0 + 360 / points * (point + 0.5))
        corners.append((inner * x, inner * y))
    return _polygon(*corners)


# In each shape's own coordinates: x to the right, y down, the centre at 0, nothing farther from it than 1.
INSIDE: dict[str, Inside] = {
    "triangle": _regular(3),
    "square": _regular(4, first=45.0),
    "pentagon": _regular(5),
    "hexagon": _regular(6, first=0.0),
    "disc": lambda x, y: x * x + y * y < 0.81,
    "ring": lambda x, y: np.abs(x * x + y * y - 0.6) < 0.35,
    "ellipse": lambda x, y: x * x + 3.5 * y * y < 1,
    "crescent": lambda x, y: (x * x + y * y < 1) & ((x - 0.45) * (x - 0.45) + y * y > 0.65),
    "caltrop": _star(3, 0.25),
    "sparkle": _star(4, 0.3),
    "pentagram": _star(5, 0.4),
    "sunburst": _star(8, 0.6),
    "cross": _polygon(
        (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
        (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
    ),
    "arrow": _polygon(
        (-0.96, -0.25), (0.05, -0.25), (0.05, -0.8), (1.0, 0.0), (0.05, 0.8), (0.05, 0.25), (-0.96, 0.25),
    ),
    "zigzag": _polygon(
        (-0.86, 0.05), (-0.43, -0.7), (0.0, 0.05), (0.43, -0.7), (0.86, 0.05),
        (0.86, 0.5), (0.43, -0.25), (0.0, 0.5), (-0.43, -0.25), (-0.86, 0.5),
    ),
    "bolt": _polygon((0.3, -0.95), (-0.6, 0.2), (-0.1, 0.2), (-0.35, 0.93), (0.65, -0.25), (0.1, -0.25), (0.6, -0.8)),
}  # fmt: skip
