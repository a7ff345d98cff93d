"""Image-text samples out of tars and folders, one after the other, with a count of what could not be used.

A shard is a tar in the layout of webdataset, or a folder laid out in the same way: files ``KEY.jpg`` (or
``.jpeg``, ``.png``, ``.webp``) beside ``KEY.txt`` and/or ``KEY.json``, where KEY ends at the first dot. Only
one sample at a time is in memory, and those that wait in the shuffling buffer.
"""

import glob
import itertools
import json
import lzma
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import distributed

from hacore.data.dataset import generator
from hacore.data.tokenizer import clean
from hacore.errors import HacoreError

PICTURES = ("jpg", "jpeg", "png", "webp")
TARS = (".tar", ".tar.gz", ".tgz")
LARGEST = 2**26  # bytes of one member, and pixels of one image
EXAMPLES = 3

# What is raised on reading a tar, compressed or not, that is cut off, overwritten or out of reach.
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError)

Source: TypeAlias = str | Path | Sequence[str | Path]


class Sample(NamedTuple):
    """An image as it is stored, with what is said of it."""

    key: str
    image: bytes
    captions: tuple[str, ...]  # at least one, none empty or twice; in lower case, as they are tokenized
    subreddit: str = ""  # where the image was posted, in RedCaps, in lower case
    shard: str = ""


class Unusable(Exception):
    """Why a sample cannot be used: a reason to count by, and a detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass
class Report:
    """How many samples of a pass were seen and kept, and why the others were skipped.

    Attributes:
        seen: ``kept`` and skipped samples together; a tar that breaks off counts as the sample it breaks off in.
        skipped: reason -> how many.
        examples: reason -> the first few, as "shard: key (detail)".
    """

    seen: int = 0
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def keep(self) -> None:
        """Count a sample that is used."""
        self.seen += 1
        self.kept += 1

    def skip(self, reason: str, where: str, detail: str = "") -> None:
        """Count a sample that is not used."""
        self.seen += 1
        self.skipped[reason] += 1
        known = self.examples.setdefault(reason, [])
        if len(known) < EXAMPLES:
            known.append(f"{where} ({detail})" if detail else where)

    def check(self, least: float) -> None:
        """Raise a HacoreError if nothing was kept, or less than the share ``least`` of what was seen."""
        if self.seen == 0:
            raise HacoreError(
                "there are no image-text samples; put KEY.jpg and KEY.txt or KEY.json side by side into the tar "
                "or folder, without other dots in their names"
            )
        if self.kept == 0 or self.kept < least * self.seen:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.skipped.most_common())
            reason = self.skipped.most_common(1)[0][0]
            raise HacoreError(
                f"only {self.kept:,} of {self.seen:,} samples can be used ({reasons}; {reason}, for example, "
                f"{self.examples[reason][0]}); repair the shards, or ask for a smaller share than {least:g}"
            )

    def __str__(self) -> str:
        """A line for what was kept and one for each reason."""
        lines = [f"{self.kept:,} of {self.seen:,} samples kept"]
        for reason, count in self.skipped.most_common():
            lines.append(f"{count:,} skipped, {reason}: {'; '.join(self.examples[reason])}")
        return "\n".join(lines)


class Shard(NamedTuple):
    """A tar or folder, and what its keys begin with: a folder within a folder gives its name to them."""

    path: Path
    prefix: str = ""


def find(source: Source) -> list[Shard]:
    """The shards that ``source`` names, in order.

    Args:
        source: a tar; a folder of tars, or else of images and texts, folders within it included; a pattern such
            as ``"shards/{00000..00331}.tar"`` or ``"shards/*.tar"``; or several of these.

    Raises:
        HacoreError: if something is not there or holds no shard.
    """
    if not isinstance(source, str | Path):
        found = [shard for part in source for shard in find(part)]
    else:
        found = [shard for path in _paths(source) for shard in _shards(path)]
    if not found:
        raise HacoreError(f"no shards are named in {source!r}; give at least one tar or folder")
    return list(dict.fromkeys(found))


def _paths(source: str | Path) -> list[Path]:
    text = os.path.expanduser(source)
    if os.path.exists(text):  # even where its name looks like a pattern
        return [Path(text)]
    found: list[Path] = []
    missing: list[str] = []
    names = _braces(text)
    for name in names:
        matches = sorted(glob.glob(name, recursive=True))
        found += map(Path, matches)
        if not matches:
            missing.append(name)
    if missing:
        raise HacoreError(
            f"{len(missing)} of {len(names)} shards of {source} are missing, the first is {missing[0]}; "
            "check the path and its numbers"
        )
    return found


def _braces(pattern: str) -> list[str]:
    """Write out ``{000..331}``, with as many digits as the first number has, and ``{train,test}``."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is None:
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        parts = words.split(",")
    return [
        pattern[: match.start()] + part + rest for part in parts for rest in _braces(pattern[match.end() :])
    ]


def _shards(path: Path) -> list[Shard]:
    if path.is_file():
        if not path.name.lower().endswith(TARS):
            raise HacoreError(f"{path} is no tar; give {', '.join(TARS)} or a folder")
        return [Shard(path)]
    tars = sorted(file for file in path.rglob("*") if file.name.lower().endswith(TARS) and file.is_file())
    if tars:
        return [Shard(file) for file in tars]
    folders = sorted(Path(name) for name, _, files in os.walk(path) if any(map(_is_picture, files)))
    if not folders:
        raise HacoreError(f"{path} holds neither tars nor images; name the folder of the shards")
    prefixes = ["/".join(folder.relative_to(path).parts) for folder in folders]
    return [Shard(folder, f"{p}/" if p else "") for folder, p in zip(folders, prefixes, strict=True)]


def _is_picture(name: str) -> bool:
    return _split(name)[1] in PICTURES


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member: "images/0001.seg.PNG" gives "images/0001" and "seg.png"."""
    path = PurePosixPath(name)  # drops a leading "./"
    stem, _, extension = path.name.partition(".")
    if not stem or stem.startswith("__"):  # hidden files, and webdataset's own
        return "", ""
    return str(path.parent / stem), extension.lower()


class Shards:
    """A stream of samples out of shards, shuffled anew in every epoch and divided among processes.

    With as many shards as processes or more, each process reads shards of its own, else each reads every k-th
    sample of all: in either way every sample is seen by exactly one process. The order depends on (seed, epoch) only.

    Args:
        source: see :func:`find`.
        seed: of the order.
        buffer: samples, still encoded, that wait to be drawn from; the shards are shuffled as a whole, too.
        process: number of this process and how many there are; None asks torch.distributed, or what the launcher
            (torchrun, accelerate) says before that has started.

    Raises:
        HacoreError: if a shard is missing, or an argument does not fit.
    """

    def __init__(
        self, source: Source, seed: int = 0, buffer: int = 1000, process: tuple[int, int] | None = None
    ) -> None:
        if buffer < 1:
            raise HacoreError(
                f"a buffer of {buffer} samples cannot be drawn from; use 1 for no shuffling in it"
            )
        if process is not None and not 0 <= process[0] < process[1]:
            raise HacoreError(f"there is no process {process[0]} of {process[1]}; count from 0")
        self.shards = find(source)
        self.seed, self.buffer, self._process = seed, buffer, process

    @property
    def process(self) -> tuple[int, int]:
        """The number of this process and how many there are."""
        if self._process is not None:
            return self._process
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return 0, 1

    def samples(self, report: Report, epoch: int | None = None, with_images: bool = True) -> Iterator[Sample]:
        """The samples of one pass, shuffled as in ``epoch``; as they are stored for None.

        ``report`` counts those that are skipped. Those that are yielded it does not count: whether they are kept
        turns out when their image is decoded. Without images, which are then empty, a pass is much faster.
        """
        shards = self.shards
        if epoch is not None:
            order = torch.randperm(len(shards), generator=generator(self.seed, "shards", epoch))
            shards = [shards[number] for number in order.tolist()]
        rank, processes = self.process
        if len(shards) >= processes:
            shards, rank, processes = shards[rank::processes], 0, 1
        numbers = itertools.count()
        stream = itertools.chain.from_iterable(
            _read(shard, report, lambda: next(numbers) % processes == rank, with_images) for shard in shards
        )
        if epoch is None:
            return stream
        return _shuffled(stream, self.buffer, generator(self.seed, "samples", epoch, rank))


def _shuffled(samples: Iterator[Sample], size: int, stream: torch.Generator) -> Iterator[Sample]:
    """Draw from a buffer that is kept full as long as there are samples."""
    buffer = list(itertools.islice(samples, size))
    for sample in samples:
        place = int(torch.randint(size, (), generator=stream))
        drawn, buffer[place] = buffer[place], sample
        yield drawn
    for place in torch.randperm(len(buffer), generator=stream).tolist():
        yield buffer[place]


def _read(shard: Shard, report: Report, mine: Callable[[], bool], with_images: bool) -> Iterator[Sample]:
    """The usable samples of one shard; ``mine`` is asked once for each whether this process takes it."""
    group: _Group | None = None
    members = _folder if shard.path.is_dir() else _tar
    try:
        for name, size, read in members(shard.path):
            key, extension = _split(shard.prefix + name)
            if not key:
                continue
            if group is None or group.key != key:
                yield from _closed(group, report)
                group = _Group(key, str(shard.path), mine())
            group.add(extension, size, read if with_images or extension not in PICTURES else bytes)
    except _DAMAGE as error:
        # The sample it breaks off in is lost. Where it cannot be opened, that is the first one.
        if group.mine if group is not None else mine():
            where = f"{shard.path}: {group.key}" if group is not None else str(shard.path)
            report.skip("truncated or damaged tar", where, str(error) or type(error).__name__)
        return
    yield from _closed(group, report)


def _closed(group: "_Group | None", report: Report) -> Iterator[Sample]:
    if group is None or not group.mine or not group.parts.keys() | group.bad.keys():
        return
    where = f"{group.shard}: {group.key}"
    for _ in range(group.repeated):
        report.skip("duplicate key", where)
    try:
        yield group.sample()
    except Unusable as error:
        report.skip(error.reason, where, error.detail)


class _Group:
    """The members that share a key, as far as they have been read: the first image, text and JSON."""

    def __init__(self, key: str, shard: str, mine: bool) -> None:
        self.key, self.shard, self.mine = key, shard, mine
        self.parts: dict[str, bytes] = {}
        self.bad: dict[str, Unusable] = {}
        self.repeated = 0

    def add(self, extension: str, size: int, read: Callable[[], bytes]) -> None:
        part = "image" if extension in PICTURES else extension
        if not self.mine or part not in ("image", "txt", "json"):
            return
        if part in self.parts or part in self.bad:
            self.repeated += part == "image"  # a sample is an image
            return
        try:
            if size > LARGEST:
                raise Unusable("absurd size", f"{size:,} bytes")
            self.parts[part] = read()
        except Unusable as error:
            self.bad[part] = error

    def sample(self) -> Sample:
        """Put the parts together; raises Unusable where one is missing or bad."""
        for error in self.bad.values():
            raise error
        if "image" not in self.parts:
            raise Unusable("no image")
        about = _json(self.parts["json"]) if "json" in self.parts else {}
        captions = _captions(about, self.parts.get("txt"))
        subreddit = about.get("subreddit")
        subreddit = _tidy(subreddit) if isinstance(subreddit, str) else ""
        return Sample(self.key, self.parts["image"], captions, subreddit, self.shard)


def _captions(about: dict[str, Any], text: bytes | None) -> tuple[str, ...]:
    """The caption of the JSON, a string or several; else the lines of the text."""
    said = about.get("caption", about.get("captions"))
    said = [said] if isinstance(said, str) else said
    if not isinstance(said, list):
        if text is None:
            raise Unusable("no caption")
        said = text.decode("utf-8-sig", errors="replace").splitlines()
    captions = [_tidy(caption) for caption in said if isinstance(caption, str)]
    captions = list(dict.fromkeys(caption for caption in captions if caption))
    if not captions:
        raise Unusable("empty caption")
    return tuple(captions)


def _json(content: bytes) -> dict[str, Any]:
    try:
        about = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unusable("damaged json", str(error)) from error
    if not isinstance(about, dict):
        raise Unusable("damaged json", "it holds no object")
    return about


def _tidy(text: str) -> str:
    """As it is tokenized; halves of surrogate pairs, which JSON can hold and no encoder takes, as question marks."""
    return clean(text.encode("utf-8", errors="replace").decode())


# Members: name, bytes, and a function that reads them as long as the next one is not asked for


class _Strict(tarfile.TarInfo):
    """tarfile takes any damage after the first member for the end of the archive; here only the end mark is one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Strict":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(str(error)) from error


def _tar(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with tarfile.open(path, "r", tarinfo=_Strict) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would remember them all
            if member.isfile():
                yield member.name, member.size, partial(_member, tar, member)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    return opened.read() if opened else b""


def _folder(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with os.scandir(path) as entries:
        files = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
    for name, size in files:
        yield name, size, partial(_file, path / name)


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable("unreadable file", error.strerror or "") from error
