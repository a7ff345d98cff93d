"""Encoded images to squares of one size, several at once."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from hacore.data.shards.read import LARGEST, Report, Sample, Unusable
from hacore.errors import HacoreError

if TYPE_CHECKING:
    from PIL import Image

SMALLEST = 8  # pixels on a side: what is smaller on the web is a tracking pixel or a ruler
FITS = ("crop", "pad")
AHEAD = 4  # images a thread that are decoded before they are asked for

T = TypeVar("T")
R = TypeVar("R")


def decode(image: bytes, size: int, fit: str = "crop") -> UInt8[Tensor, "3 size size"]:
    """Decode an image and resize it to ``size`` by ``size`` pixels of red, green and blue.

    Args:
        image: JPEG, PNG or WebP; what is transparent becomes white.
        size: pixels on a side.
        fit: "crop" to the square in the middle, or "pad" with black to the square around it.

    Raises:
        Unusable: if it cannot be decoded, or its size is absurd.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(image), formats=("JPEG", "PNG", "WEBP")) as opened:
            width, height = opened.size
            if min(width, height) < SMALLEST or width * height > LARGEST:
                raise Unusable("absurd size", f"{width} x {height} pixels")
            opened.draft(
                "RGB", (size, size)
            )  # a JPEG is decoded at a fraction of its size where that is enough
            pixels = _rgb(opened)
        square = (ImageOps.fit if fit == "crop" else ImageOps.pad)(pixels, (size, size))
    except Unusable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unusable("absurd size", str(error)) from error
    except UnidentifiedImageError as error:  # whose message has an address in memory
        raise Unusable("undecodable image", "no JPEG, PNG or WebP") from error
    # Pillow's decoders raise whatever their formats suggest, and one image in millions must not stop a training.
    except Exception as error:
        raise Unusable("undecodable image", str(error)) from error
    return torch.from_numpy(np.array(square)).movedim(2, 0).contiguous()


def _rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        raise Unusable("undecodable image", "it has more than 8 bits a channel")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def decoded(
    samples: Iterable[Sample], report: Report, size: int, fit: str = "crop", workers: int = 4
) -> Iterator[tuple[Sample, Tensor]]:
    """The samples whose image can be decoded, in order, with it; counts them all in ``report``.

    Args:
        samples: a stream.
        report: counts.
        size: pixels on a side, see :func:`decode`.
        fit: see :func:`decode`.
        workers: threads that decode ahead; 0 decodes one image at a time as it is asked for.
    """

    def work(sample: Sample) -> Tensor | Unusable:
        try:
            return decode(sample.image, size, fit)
        except Unusable as error:
            return error

    for sample, image in _ahead(work, samples, workers):
        if isinstance(image, Unusable):
            report.skip(image.reason, f"{sample.shard}: {sample.key}", image.detail)
        else:
            report.keep()
            yield sample, image


def check(size: int, fit: str, workers: int) -> None:
    """Raise a HacoreError where :func:`decoded` cannot do this."""
    if fit not in FITS:
        raise HacoreError(f"unknown way {fit!r} to make images square; choose one of: {', '.join(FITS)}")
    if size < 1 or workers < 0:
        raise HacoreError(
            f"images of {size} pixels with {workers} threads cannot be made; use a size of 1 or more"
        )


def _ahead(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """Items in order with what ``work`` makes of them, a bounded number in advance."""
    if workers == 0:
        for item in items:
            yield item, work(item)
        return
    waiting: deque[tuple[T, Future[R]]] = deque()
    # Threads, not processes: Pillow decodes without Python's lock, and nothing has to be copied.
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > AHEAD * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:  # of what nobody asks for any more
            for _, future in waiting:
                future.cancel()
