"""Where images come from: scikit-learn's digits, drawings, parquet files in a folder, or those on the hub."""

import io
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hacore.data.dataset import Dataset, generator, stratified
from hacore.data.names import CIFAR10, CIFAR100, CIFAR100_SUPERCLASSES, DIGITS
from hacore.data.world import GROUPS, SHAPES, world
from hacore.errors import HacoreError
from hacore.files import cache_folder, replacing

log = logging.getLogger(__name__)

_CACHE_FORMAT = 1  # raise it when the meaning of cached tensors changes


@dataclass(frozen=True)
class Source:
    """A dataset that ``load`` knows: its class names, image shape (c, h, w), and place on the hub."""

    classes: tuple[str, ...]
    superclasses: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (3, 32, 32)
    repository: str = ""
    folder: str = ""  # within the repository


DATASETS: dict[str, Source] = {
    "digits": Source(DIGITS, shape=(1, 8, 8)),
    "world": Source(SHAPES, tuple(GROUPS)),
    "cifar10": Source(CIFAR10, repository="uoft-cs/cifar10", folder="plain_text"),
    "cifar100": Source(CIFAR100, CIFAR100_SUPERCLASSES, repository="uoft-cs/cifar100", folder="cifar100"),
    "svhn": Source(DIGITS, repository="ufldl-stanford/svhn", folder="cropped_digits"),
}


def load(name: str, root: str | Path | None = None, device: str | torch.device = "cpu") -> Dataset:
    """Load a dataset by name, decoded, onto ``device``.

    ``digits`` comes with scikit-learn: 1,797 images (1, 8, 8), values 0..16 scaled to 0..255, divided once
    and for all, by class, into 1,078 for training and 719 for testing.

    ``world`` is drawn by :func:`hacore.data.world.world`, with captions.

    The others are read from ``root/<name>/train-*.parquet`` and ``test-*.parquet``, where ``root`` is the
    argument or the environment variable ``HACORE_DATA``, and are downloaded from the hub when neither is
    given. The columns are ``img`` or ``image`` (a struct with encoded ``bytes``) and ``label``, or
    ``fine_label`` and ``coarse_label`` for cifar100.

    Decoded images are kept in ``HACORE_CACHE`` (default ``~/.cache/hacore``) and used again while the names,
    sizes and times of the parquet files stay the same.

    Raises:
        HacoreError: if the name is unknown, or a file is missing, truncated or does not hold this dataset.
    """
    if name not in DATASETS:
        raise HacoreError(f"unknown dataset {name!r}; choose one of: {', '.join(DATASETS)}")
    if name == "digits":
        return _digits().to(device)
    if name == "world":
        return world().to(device)
    source = DATASETS[name]
    root = root or os.environ.get("HACORE_DATA")
    folder = Path(root).expanduser() / name if root else _download(name, source)
    files = {part: _find(folder, source, part, name) for part in ("train", "test")}
    return _cached(name, source, files).to(device)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).long().view(-1, 1, 8, 8)
    images = ((images * 255 + 8) // 16).to(torch.uint8)  # rounded; 0 -> 0 and 16 -> 255
    labels = torch.from_numpy(target).long()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[stratified(labels, 0.4, generator("digits"))] = True
    return Dataset("digits", images[~held_out], labels[~held_out], images[held_out], labels[held_out], DIGITS)


def _download(name: str, source: Source) -> Path:
    """Fetch the parquet files of ``source`` into the hub's own cache, or find them there."""
    from huggingface_hub import errors, snapshot_download

    patterns = [f"{source.folder}/{part}-*.parquet" for part in ("train", "test")]
    # The storage backend reports its failures as RuntimeError, or by a class of its own in newer hub clients.
    storage = getattr(errors, "XetDownloadError", RuntimeError)
    try:
        return Path(snapshot_download(source.repository, repo_type="dataset", allow_patterns=patterns))
    except (OSError, RuntimeError, storage, errors.HTTPError, errors.EntryNotFoundError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HacoreError(
            f"cannot download {name} from the hub ({source.repository}: {reason}); set HACORE_DATA to a folder "
            f"that holds {name}/train-*.parquet and {name}/test-*.parquet"
        ) from error


def _find(folder: Path, source: Source, part: str, name: str) -> list[Path]:
    """List the parquet files of one part, in ``folder`` or laid out in it as on the hub."""
    pattern = f"{part}-*.parquet"
    found = list(folder.glob(pattern)) or list((folder / source.folder).glob(pattern))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise HacoreError(f"no {pattern} in {folder}; set HACORE_DATA to the folder that holds {name}/")
    # "train-00000-of-00004.parquet" says how many files belong together.
    for total in {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)\.parquet$", file.name))}:
        if total != len(files):
            raise HacoreError(
                f"{files[0].parent} holds {len(files)} of {total} {part} files; fetch the missing ones"
            )
    return files


def _cached(name: str, source: Source, files: dict[str, list[Path]]) -> Dataset:
    """Return the dataset of ``files``, from the cache when it holds them, else decoded and then cached."""
    stats = [(str(file.resolve()), file.stat()) for part in files.values() for file in part]
    key = json.dumps([_CACHE_FORMAT, name, [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]])
    path = cache_folder() / f"{name}-{sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        try:
            return _dataset(name, source, _read_cache(path))
        except HacoreError as error:
            log.warning("%s; decoding %s again", error, name)
    tensors = _decode(name, source, files)
    dataset = _dataset(name, source, tensors)
    try:
        _write_cache(path, tensors)
    except HacoreError as error:  # the images are in memory and good; only the next start is slower
        log.warning("%s (or set HACORE_CACHE); %s is decoded again next time", error, name)
    return dataset


def _dataset(name: str, source: Source, tensors: dict[str, Tensor]) -> Dataset:
    return Dataset(
        name,
        tensors["train_images"],
        tensors["train_labels"],
        tensors["test_images"],
        tensors["test_labels"],
        source.classes,
        source.superclasses,
        tuple(tensors["superclass_of"].tolist()),
    )


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.contiguous().numpy(), total)
    return f"{total:08x}"


def _write_cache(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"checksum": _checksum(tensors)})
    except SafetensorError as error:  # how safetensors reports a full disk
        raise HacoreError(f"cannot write {path} ({error}); free some space") from error


def _read_cache(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no plain iteration)
            expected = (file.metadata() or {}).get("checksum")
    except (SafetensorError, OSError) as error:
        raise HacoreError(f"the cache {path} is damaged ({error})") from error
    if _checksum(tensors) != expected:
        raise HacoreError(f"the cache {path} is damaged (its checksum differs)")
    return tensors


def _decode(name: str, source: Source, files: dict[str, list[Path]]) -> dict[str, Tensor]:
    """Read and decode all parquet files: images, labels and the superclass of every class."""
    tensors: dict[str, Tensor] = {}
    superclasses: set[tuple[int, int]] = set()
    hidden = True if os.environ.get("CI") else None  # None: hidden when stderr is no terminal
    with tqdm(desc=f"decoding {name}", unit=" images", disable=hidden, file=sys.stderr) as progress:
        for part, paths in files.items():
            images, labels = [], []
            for path in paths:
                encoded, label, *coarse = _read_parquet(path, source)
                images.append(_decode_images(path, encoded, source.shape, progress))
                labels.append(label)
                if coarse:
                    superclasses |= set(zip(label.tolist(), coarse[0].tolist(), strict=True))
            tensors[f"{part}_images"] = torch.cat(images)
            tensors[f"{part}_labels"] = torch.cat(labels)
    pairs = sorted(superclasses)
    if source.superclasses and [label for label, _ in pairs] != list(range(len(source.classes))):
        raise HacoreError(
            f"the labels in {files['train'][0].parent} do not put each of the {len(source.classes)} classes into "
            "exactly one superclass; fetch the original files"
        )
    tensors["superclass_of"] = torch.tensor([superclass for _, superclass in pairs], dtype=torch.int64)
    return tensors


def _read_parquet(path: Path, source: Source) -> tuple[Any, ...]:
    """Return encoded images, labels, and superclass labels if there are superclasses, of one file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image = "image" if "image" in names else "img"
            wanted = [image, "fine_label", "coarse_label"] if source.superclasses else [image, "label"]
            missing = [column for column in wanted if column not in names]
            table = None if missing else file.read(columns=wanted)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise HacoreError(f"cannot read {path} ({reason}); fetch the file again") from error
    if table is None:
        raise HacoreError(
            f"{path} has no column {missing[0]!r} but {names}; use the files of {source.repository}"
        )
    kind = table.schema.field(image).type
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not has_bytes or not pa.types.is_binary(kind.field("bytes").type):
        raise HacoreError(
            f"column {image!r} of {path} is {kind}, not a struct with binary bytes; use hub-style parquet"
        )
    labels = [_labels(path, wanted[1], table[wanted[1]], len(source.classes))]
    if source.superclasses:
        labels.append(_labels(path, wanted[2], table[wanted[2]], len(source.superclasses)))
    return pc.struct_field(table[image], "bytes").to_pylist(), *labels


def _labels(path: Path, name: str, column: Any, limit: int) -> Tensor:
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        raise HacoreError(
            f"column {name!r} of {path} is not free of gaps and integer; fetch the original file"
        )
    labels = torch.from_numpy(column.to_numpy().astype(np.int64))
    if len(labels) and (labels.min() < 0 or labels.max() >= limit):
        raise HacoreError(
            f"column {name!r} of {path} leaves the range 0..{limit - 1}; fetch the original file"
        )
    return labels


def _decode_images(
    path: Path, encoded: Sequence[bytes | None], shape: tuple[int, int, int], progress: tqdm
) -> Tensor:
    """Decode PNG, WebP or any other format Pillow knows into uint8 (n, c, h, w)."""
    channels, height, width = shape
    pixels = np.empty((len(encoded), height, width, channels), dtype=np.uint8)
    # One thread: for 32 x 32 pixels Pillow's work is mostly under Python's lock, and more threads are slower.
    for row, image in enumerate(encoded):
        pixels[row] = _decode_image(image, height, width, f"image {row} of {path}")
        progress.update()
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _decode_image(encoded: bytes | None, height: int, width: int, where: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded or b"")) as image:
            if image.size == (width, height):
                return np.asarray(image.convert("RGB"))
            size = image.size
    # Pillow's plugins raise all of these on damaged bytes.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise HacoreError(f"{where} cannot be decoded ({error}); fetch the file again") from error
    raise HacoreError(
        f"{where} is {size[0]} x {size[1]} pixels, not {width} x {height}; use the original images"
    )
