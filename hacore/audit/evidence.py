"""What an audit looks at: two views of the owner's images before and after, from files of any of two kinds."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from hacore import geometry
from hacore.data import Augment
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.evaluate.alignment import simclr, views
from hacore.geometry import Space
from hacore.train import device, load_model

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIEWS = ("first", "second", "control_first", "control_second")
THUMBNAIL = 96  # pixels, at most


@dataclass(frozen=True, eq=False)
class Side:
    """What a service makes of the images at one time: points of ``space`` of their first and second views."""

    source: str  # the file it comes from
    space: Space
    first: Float[Tensor, "..."]
    second: Float[Tensor, "..."]
    control_first: Float[Tensor, "..."] | None = None
    control_second: Float[Tensor, "..."] | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """Both sides of an audit.

    Attributes:
        before, after: the service at both times.
        origin: in words, how the embeddings were made.
        names: of the own images, if they were given.
        thumbnails: number of an own image -> the image (h, w, 3), small; of some, all or none.
    """

    before: Side
    after: Side
    origin: str
    names: tuple[str, ...] = ()
    thumbnails: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def own(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both views before, both views after."""
        return self.before.first, self.before.second, self.after.first, self.after.second

    @property
    def control(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The same of the control images, if there are any."""
        b, a = self.before, self.after
        if b.control_first is None or b.control_second is None:
            return None
        if a.control_first is None or a.control_second is None:
            return None
        return b.control_first, b.control_second, a.control_first, a.control_second

    @property
    def one_geometry(self) -> bool:
        """Whether similarities before and after are in the same units."""
        b, a = self.before.space, self.after.space
        return b.name == a.name and math.isclose(float(b.curv), float(a.curv), rel_tol=1e-6)


def gather(
    before: str | Path,
    after: str | Path,
    images: str | Path | None = None,
    control: str | Path | None = None,
    seed: int = 0,
    augmentation: str | None = None,
    layer: str = "embed",
) -> Evidence:
    """Read or make the embeddings of an audit.

    Args:
        before, after: two files of embeddings, or two checkpoints of :func:`hacore.train.save_model`. A file of
            embeddings, .npz or .safetensors, holds arrays ``first`` and ``second`` (n, d), two augmented views of
            the same n images, and may hold ``control_first`` and ``control_second``, the name of a ``space`` and
            its curvature ``curv``, Euclidean unless told otherwise.
        images: folder of the owner's images; needed with checkpoints, else only shown.
        control: folder of control images, with checkpoints.
        seed: of the views, which are the same for both models.
        augmentation: see :class:`hacore.data.Augment`; None takes that of SimCLR for such images.
        layer: with checkpoints, "embed" for the points that the loss compares, or "features" for the vectors
            that a downstream user is served, see :func:`hacore.evaluate.alignment.views`.

    Raises:
        HacoreError: if a file is missing, damaged or of another kind, or images and models do not fit.
    """
    paths = [Path(before), Path(after)]
    kinds = [_is_embeddings(path) for path in paths]
    if kinds[0] != kinds[1]:
        raise HacoreError(
            f"{paths[kinds.index(True)]} holds embeddings and {paths[kinds.index(False)]} does not, so that their "
            "views cannot be the same; give two files of embeddings, or two checkpoints"
        )
    if kinds[0]:
        if control is not None:
            raise HacoreError(
                "--control is a folder for checkpoints, which make embeddings of it; put control_first and "
                "control_second into both files of embeddings instead"
            )
        return _from_embeddings(paths[0], paths[1], images)
    if images is None:
        raise HacoreError("checkpoints need images to look at; name their folder with --images")
    return _from_checkpoints(paths[0], paths[1], Path(images), control, seed, augmentation, layer)


def _is_embeddings(path: Path) -> bool:
    if not path.is_file():
        raise HacoreError(f"there is no file {path}; check the path")
    if path.suffix == ".npz":
        return True
    if path.suffix != ".safetensors":
        raise HacoreError(
            f"{path} is neither .npz nor .safetensors; give embeddings, or a checkpoint that hacore wrote"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            return "config" not in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise HacoreError(f"{path} is truncated or damaged ({error}); copy or make it again") from error


# Embeddings


def _from_embeddings(before: Path, after: Path, images: str | Path | None) -> Evidence:
    sides = _read_side(before), _read_side(after)
    with_control = [side.control_first is not None for side in sides]
    if with_control[0] != with_control[1]:
        raise HacoreError(
            f"{sides[with_control.index(True)].source} has control images and "
            f"{sides[with_control.index(False)].source} has none; put the same ones into both files"
        )
    files = [] if images is None else image_files(Path(images))
    if files and len(files) != len(sides[0].first):
        raise HacoreError(
            f"{images} has {len(files)} images and {before} embeddings of {len(sides[0].first)}; name the folder "
            "of exactly those images, sorted as the rows are"
        )
    return Evidence(
        *sides,
        origin="two files of embeddings",
        names=tuple(path.name for path in files),
        thumbnails={i: _thumbnail(_decode(path)) for i, path in enumerate(files)},
    )


def _read_side(path: Path) -> Side:
    arrays, name, curv = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    missing = [view for view in VIEWS[:2] if view not in arrays]
    if missing:
        raise HacoreError(
            f"{path} has no {' and no '.join(missing)}; it must hold embeddings first and second (n, d) of two views, "
            "or be a checkpoint that hacore wrote"
        )
    if ("control_first" in arrays) != ("control_second" in arrays):
        raise HacoreError(f"{path} has one view of control images; it needs control_first and control_second")
    try:
        where = geometry.space(name, curv)
    except HacoreError as error:
        raise HacoreError(f"{path}: {error}") from error
    for view, points in arrays.items():
        if points.ndim != 2 or not points.is_floating_point():
            raise HacoreError(
                f"{path}: {view} must be floats of shape (n, d), not {points.dtype} {tuple(points.shape)}; "
                "give one row per image"
            )
        if not points.isfinite().all():
            raise HacoreError(f"{path}: {view} holds NaN or infinite numbers; ask the service again")
        if name == "poincare" and not (points.double().square().sum(1) * curv < 1).all():
            raise HacoreError(
                f"{path}: {view} has points outside the ball of curvature -{curv:g}; check space and curv"
            )
    # Half precision is how some services answer; sums are taken in more.
    wide = {
        view: points if points.dtype == torch.float64 else points.float() for view, points in arrays.items()
    }
    return Side(str(path), where, **wide)


def _read_npz(path: Path) -> tuple[dict[str, Tensor], str, float]:
    try:
        # Opened here, because numpy leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in (*VIEWS, "space", "curv") if name in file}
        name, curv = str(found.pop("space", "euclidean")), _number(path, found.pop("curv", 1.0))
        return {view: torch.from_numpy(array) for view, array in found.items()}, name, curv
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, HacoreError):
            raise
        raise HacoreError(f"{path} cannot be read as arrays of numbers ({error}); make it again") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str, float]:
    """Names are text, so that ``space`` and ``curv`` stand in the metadata; ``curv`` may be a tensor as well."""
    with safetensors.safe_open(path, "pt") as file:
        text = file.metadata() or {}
        found = {name: file.get_tensor(name) for name in file.keys() if name in (*VIEWS, "curv")}  # noqa: SIM118
    curv: Any = found.pop("curv", text.get("curv", 1.0))
    return found, text.get("space", "euclidean"), _number(path, curv)


def _number(path: Path, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HacoreError(f"{path}: curv must be one number, not {value!r}; give c > 0") from error


# Checkpoints


def _from_checkpoints(
    before: Path,
    after: Path,
    images: Path,
    control: str | Path | None,
    seed: int,
    augmentation: str | None,
    layer: str,
) -> Evidence:
    models: list[Any] = [_model(path) for path in (before, after)]
    channels = [model.config["encoder"]["channels"] for model in models]
    if channels[0] != channels[1]:
        raise HacoreError(
            f"{before} takes images of {channels[0]} channels and {after} of {channels[1]}; audit one service"
        )
    parts = {"own": images}
    if control is not None:
        parts["control"] = Path(control)
        if parts["control"].resolve() == images.resolve():
            raise HacoreError(
                f"{control} is the folder of your own images; control images must be others that the service was "
                "never asked to forget"
            )
    files = {name: image_files(folder) for name, folder in parts.items()}
    pixels = {name: _stack(files[name], channels[0]) for name in parts}
    if control is not None and pixels["own"].shape[2:] != pixels["control"].shape[2:]:
        raise HacoreError(
            f"images in {images} and {control} differ in size; resize them to that of the training images"
        )
    name = augmentation or simclr(channels[0])
    where = device()
    sides: list[Side] = []
    for path, model in zip((before, after), models, strict=True):
        model.to(where)
        points: list[Tensor] = []
        for part, tensor in pixels.items():
            # One augmentation for both models; another one for the control than for the own images.
            varied = Augment(name, generator(seed, "audit", part).initial_seed())
            index = torch.arange(len(tensor), device=where)
            points += views(model, tensor.to(where), index, varied, count=2, layer=layer).cpu().unbind()
        space = model.space if layer == "embed" else geometry.Euclidean()
        sides.append(Side(str(path), space.cpu(), *points))
    what = "points that the loss compares" if layer == "embed" else "features"
    return Evidence(
        sides[0],
        sides[1],
        origin=f"two checkpoints, the same two views of every image made with {name!r}, seed {seed}; {what}",
        names=tuple(path.name for path in files["own"]),
        thumbnails={i: _thumbnail(p) for i, p in enumerate(pixels["own"].movedim(1, 3).numpy())},
    )


def _model(path: Path) -> Any:
    try:
        return load_model(path)
    except (ValueError, TypeError) as error:  # of JSON that is damaged, or describes something else
        if isinstance(error, HacoreError) and str(path) in str(error):
            raise
        raise HacoreError(f"{path} is no checkpoint of a model that can be audited: {error}") from error


# Images


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name.

    Raises:
        HacoreError: if there is no such folder or none in it.
    """
    if not folder.is_dir():
        raise HacoreError(f"there is no folder {folder}; name one with image files")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())
    if not found:
        raise HacoreError(f"there are no images in {folder}; put files {', '.join(PICTURES)} there")
    return found


def _decode(path: Path) -> NDArray[np.uint8]:
    """An image as (h, w) if it is grey, else (h, w, 3)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise HacoreError(f"{path} has more than 8 bits a channel; save it with 8 bits")
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    # Pillow's decoders raise whatever their formats suggest.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, HacoreError):
            raise
        raise HacoreError(f"{path} cannot be read as an image; remove or replace it") from error


def _stack(files: list[Path], channels: int) -> UInt8[Tensor, "n c h w"]:
    pictures = [_decode(path) for path in files]
    sizes = {picture.shape[:2]: path for path, picture in zip(files, pictures, strict=True)}
    if len(sizes) > 1:
        (a, one), (b, other) = list(sizes.items())[:2]
        raise HacoreError(
            f"images must share one size, but {one} has {a[1]} x {a[0]} pixels and {other} {b[1]} x {b[0]}; "
            "resize them to that of the training images"
        )
    # A grey picture among coloured ones is one of them; a folder of grey ones is not for a model of colours.
    found = 3 if any(picture.ndim == 3 for picture in pictures) else 1
    if found != channels:
        kinds = {1: "grey", 3: "coloured"}
        raise HacoreError(
            f"the images in {files[0].parent} are {kinds[found]} and the models take {channels} "
            f"{'channel' if channels == 1 else 'channels'}; name the folder of images that the service is for"
        )
    alike = [np.repeat(p[..., None], 3, axis=2) if p.ndim == 2 and channels == 3 else p for p in pictures]
    return torch.from_numpy(np.stack(alike).reshape(len(alike), *alike[0].shape[:2], channels)).movedim(3, 1)


def _thumbnail(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture (h, w, 3), small; pictures that are small already are as they were."""
    from PIL import Image

    image = Image.fromarray(picture.squeeze()).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)
