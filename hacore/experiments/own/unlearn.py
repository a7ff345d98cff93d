"""From a released checkpoint and image-text pairs to an unlearned checkpoint in the same layout, and a report of it.

Everything else here trains what it unlearns; of a checkpoint that somebody else trained there is neither the data nor
a Retrain to compare with. What is measured is therefore before against after, on pairs that no step has seen.
"""

import difflib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from hacore import train
from hacore.data import Captioned, Split, Tokenizer, shards
from hacore.data.shards.concepts import OTHER, Concepts
from hacore.data.shards.read import Source
from hacore.errors import HacoreError
from hacore.experiments.own.measures import measures
from hacore.experiments.own.report import NUMBERS, PAGE, Report
from hacore.experiments.provenance import environment
from hacore.geometry import Hyperbolic
from hacore.models import ImageText, load_released, save_released
from hacore.train import Fit, TrainConfig
from hacore.unlearning import METHODS, Descent, Method, Outcome, Request, Training
from hacore.unlearning import method as method_named

EXACT = ("original", "retrain", "retrain-lifted")  # need what the checkpoint was trained on, or do nothing
# A twentieth of the rate released MERU models were trained with, as on the concept world.
LR = 2.5e-5
BATCH_SIZE = 64
LIMIT = 20_000  # pairs: 3 GB of images at 224 pixels
LEAST = 10  # pairs of a concept, and of what is kept: one is held out, one set aside
CONTEXT = 77  # tokens of CLIP's texts, and of those of MERU and HyCoCLIP
SAFE = ".safetensors"
WORDS = re.compile(r"[^\W\d_]{3,}")
# Words that say nothing about what an image shows.
EMPTY = frozenset(
    ("and", "are", "but", "for", "from", "has", "her", "his", "image", "into", "its", "not", "one", "our", "out",
     "over", "photo", "picture", "that", "the", "their", "this", "was", "were", "who", "with", "you", "your")
)  # fmt: skip


def answering() -> tuple[str, ...]:
    """The methods that start from a trained model of images and texts, by name."""
    return tuple(
        name
        for name, method in METHODS.items()
        if method.fits("concepts", ImageText.kind) and name not in EXACT
    )


def unlearn_checkpoint(
    checkpoint: str | Path,
    pairs: Source,
    forget: Mapping[str, Sequence[str]] | Sequence[str],
    out: str | Path,
    method: str | Method = "hac",
    *,
    keep: Mapping[str, Sequence[str]] | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    limit: int | None = LIMIT,
    seed: int = 0,
    report: str | Path | None = None,
    force: bool = False,
    kind: str | None = None,
    heads: tuple[int, int] | None = None,
) -> Report:
    """Unlearn concepts in a released checkpoint; write one in the same layout, and a report.

    A tenth of the pairs of every concept is held out for the report, a tenth of the others set aside. Nothing is
    written unless all went well.

    Args:
        checkpoint: a MERU, CLIP, HyCoCLIP or OpenCLIP file, see :func:`hacore.models.load_released`.
        pairs: tars or a folder of images and texts, see :func:`hacore.data.shards.find`.
        forget: concept -> further words that mention it, or the concepts alone; a pair whose caption mentions one is
            a forget pair.
        out: the new checkpoint, of the same format as ``checkpoint``.
        method: a name of :func:`answering`, or a method with settings of its own.
        keep: concepts to be told apart from each other in zero-shot classification; all else is "other". They are
            retained, as all that is not to be forgotten.
        tokenizer, kind, heads: see :func:`hacore.models.load_released`.
        lr: of AdamW; None is 2.5e-5, or that of a method given as such.
        epochs: over the pairs the method walks over; None is the method's.
        steps: the most steps, in place of epochs.
        batch_size: pairs a step, of each kind; None is 64, or that of a method given as such.
        limit: the most pairs to read; None reads all, 150 kB each at 224 pixels.
        seed: of order, draws and what is held out.
        report: folder of the report; None is ``out`` without its suffix and with ``-report``.
        force: replace ``out`` and the report.
        kind: of the checkpoint, where its names do not tell.
        heads: of the attentions, where the widths do not tell.

    Raises:
        HacoreError: if a file is missing, damaged or in the way, the method does not fit, the captions do not mention
            a concept often enough, training diverges, or the disk is full.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    folder = out.with_name(f"{out.stem}-report") if report is None else Path(report)
    if steps is not None and epochs is not None:
        raise HacoreError("both epochs and steps are given; give one of them")
    if steps is not None and steps < 1:
        raise HacoreError(f"{steps} steps change nothing; take one or more")
    answer = _method(method, {"lr": lr, "epochs": epochs, "batch_size": batch_size}, steps)
    _check_places(checkpoint, out, folder, force)
    concepts = _concepts(forget, keep)
    model: Any = load_released(checkpoint, tokenizer, kind, heads)
    if answer.needs_cones and not isinstance(model.space, Hyperbolic):
        raise HacoreError(
            f"{answer.name} needs cones, and {checkpoint} is a CLIP model, whose flat space has none; choose ac"
        )
    forgotten = len(_of(forget))
    _scan(pairs, concepts, limit, seed)
    dataset, usable = shards.image_text(
        pairs, dict(concepts.words), model.encoder.size, limit, model.tokenizer, seed
    )
    _check_counts(Counter(torch.cat([dataset.train_labels, dataset.test_labels]).tolist()), concepts)
    dataset, model = dataset.to(train.device()), model.to(train.device())
    split = Split.classes(dataset, range(forgotten), seed)
    before = measures(model, dataset, split)
    outcome = _answered(answer, model, dataset, split, seed, steps)
    old = {name: weight.detach().cpu() for name, weight in model.named_parameters()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as drafts:
            draft = Path(drafts) / out.name
            save_released(outcome.model, draft, like=checkpoint)
            # What a type of 16 bits has rounded away is gone for the users too.
            written = load_released(draft, model.tokenizer, kind, heads)
            changed = sum(not torch.equal(weight, old[name]) for name, weight in written.named_parameters())
            found = Report(
                checkpoint=checkpoint.name,
                out=out.name,
                method=answer.name,
                settings=_settings(answer, steps) | {"seed": seed},
                forget=concepts.names[:forgotten],
                keep=concepts.names[forgotten:-1],
                pairs={
                    "forget": len(split.forget),
                    "retain": len(split.retain),
                    "forget_held_out": len(split.test_forget),
                    "retain_held_out": len(split.test),
                    "aside": len(split.validation) + len(split.validation_forget),
                },
                before=before,
                after=measures(written.to(train.device()), dataset, split),
                changed=(changed, len(old)),
                cost={name: value for name, value in asdict(outcome.fit).items() if name != "history"},
                skipped=str(usable),
                environment=environment(),
            )
            found.write(folder)
            draft.chmod(0o644)
            os.replace(draft, out)
    except OSError as error:
        raise HacoreError(
            f"cannot write {out}: {error.strerror}; free some space or choose another folder"
        ) from error
    return found


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a file: CLIP's merges, or a ``.json`` of what :attr:`Tokenizer.config` gives.

    Raises:
        HacoreError: if the file cannot be read or is another one.
    """
    path = Path(path)
    if path.suffix != ".json":
        return Tokenizer.clip(path, CONTEXT)
    try:
        return Tokenizer.from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise HacoreError(
            f"cannot read a tokenizer from {path} ({error}); give what Tokenizer.config wrote"
        ) from error


def _method(method: str | Method, changes: dict[str, Any], steps: int | None) -> Method:
    """The method with these settings, None leaving one as it is."""
    given = {name: value for name, value in changes.items() if value is not None}
    if isinstance(method, str):
        answer = method_named(method)
        usual = {"lr": LR, "batch_size": BATCH_SIZE} if isinstance(answer, Descent) else {}
    else:
        answer, usual = method, {}
    if answer.name not in answering():
        why = (
            "is about training on data that a checkpoint comes without"
            if answer.name in EXACT
            else "does not unlearn models of images and texts"
        )
        raise HacoreError(f"{answer.name} {why}; choose one of {', '.join(answering())}")
    if not isinstance(answer, Descent) and (given or steps):
        settings = ", ".join([*given, *(["steps"] if steps else [])])
        raise HacoreError(f"{answer.name} trains nothing; leave out {settings}")
    return replace(answer, **usual | given)


def _settings(answer: Method, steps: int | None) -> dict[str, Any]:
    """The method's settings; where steps were asked for, they stand in place of epochs."""
    settings = asdict(answer)
    if steps is not None:
        settings = {name: value for name, value in settings.items() if name != "epochs"} | {"steps": steps}
    return settings


def _answered(
    answer: Method, model: ImageText, dataset: Captioned, split: Split, seed: int, steps: int | None
) -> Outcome:
    """What the method makes of the model, at most so many steps of it."""

    def fresh(index: Tensor) -> NoReturn:
        raise HacoreError("of a released checkpoint there is no untrained model; choose another method")

    loop = TrainConfig(optimizer="adamw", precision=train.fast_precision(), seed=seed)
    training = Training(loop, batch_size=getattr(answer, "batch_size", BATCH_SIZE))
    nothing = Fit(0.0, 0, 0.0, 0.0, 0, False, [])  # what training it cost, nobody here knows
    request = Request(model, nothing, fresh, dataset, split, training)
    if steps is not None and isinstance(answer, Descent):
        answer = _stopping(answer, steps)
    return answer(request)


def _stopping(answer: Descent, steps: int) -> Descent:
    """The method, which goes on for as many epochs as these steps take, and stops after them."""
    kind: Any = type(answer)

    class Stopping(kind):
        def descend(
            self, request: Any, batches: Any, loss: Any, model: Any = None, stop: Any = None, **changes: Any
        ) -> Outcome:
            def enough(model: Any, step: int) -> bool:
                return step >= steps or (stop is not None and bool(stop(model, step)))

            changes["epochs"] = -(-steps // len(batches))
            outcome: Outcome = super().descend(request, batches, loss, model, enough, **changes)
            return outcome

    stopping: Descent = Stopping(**{field.name: getattr(answer, field.name) for field in fields(answer)})
    return stopping


def _check_places(checkpoint: Path, out: Path, folder: Path, force: bool) -> None:
    """Raise HacoreError now if the files could not be written after an hour's work."""
    if not checkpoint.is_file():
        raise HacoreError(f"there is no checkpoint {checkpoint}; check the path")
    if (out.suffix == SAFE) != (checkpoint.suffix == SAFE):
        raise HacoreError(f"{out} and {checkpoint} are of different formats; give both the same suffix")
    if out.resolve() == checkpoint.resolve():
        raise HacoreError(f"{out} is the checkpoint itself, which is kept; choose another file")
    if out.is_dir() or folder.is_file():
        raise HacoreError(
            f"{out if out.is_dir() else folder} is in the way; choose another file, or another folder for the report"
        )
    for path in (out, folder / NUMBERS, folder / PAGE):
        if path.exists() and not force:
            raise HacoreError(f"{path} is there already; choose another place, or force to replace it")
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not os.access(there, os.W_OK):
        raise HacoreError(f"cannot write into {there}; choose a folder with write access")
    size, free = checkpoint.stat().st_size, shutil.disk_usage(there).free
    if free < size:
        raise HacoreError(
            f"{there} has {free / 1e9:.2g} GB left, and a checkpoint takes {size / 1e9:.2g} GB; free some space"
        )


def _of(names: Mapping[str, Sequence[str]] | Sequence[str]) -> dict[str, tuple[str, ...]]:
    if isinstance(names, str):
        names = [names]
    if isinstance(names, Mapping):
        return {
            name: tuple(words) if not isinstance(words, str) else (words,) for name, words in names.items()
        }
    return dict.fromkeys(names, ())


def _concepts(
    forget: Mapping[str, Sequence[str]] | Sequence[str], keep: Mapping[str, Sequence[str]] | Sequence[str]
) -> Concepts:
    """The concepts, those to be forgotten first: a pair that mentions both is to be forgotten."""
    gone, kept = _of(forget), _of(keep)
    if not gone:
        raise HacoreError("nothing is named to be forgotten; name a concept")
    both = sorted(gone.keys() & kept.keys())
    if both:
        raise HacoreError(f"{both[0]!r} is both to be forgotten and to be kept; choose one")
    return Concepts.of(gone | kept)


def _scan(pairs: Source, concepts: Concepts, limit: int | None, seed: int) -> None:
    """Read the captions alone, which is quick, and raise HacoreError if a concept is mentioned too rarely."""
    counts: Counter[int] = Counter()
    words: Counter[str] = Counter()
    stream = shards.Shards(pairs, seed, process=(0, 1)).samples(shards.Report(), epoch=0, with_images=False)
    for sample in islice(stream, limit):
        # As image_text counts: a concept that is told first takes the pair.
        counts[concepts.read(sample)[0]] += 1
        words.update({word for text in sample.captions for word in WORDS.findall(text)} - EMPTY)
    if counts:  # where there is nothing at all, image_text says what was skipped
        _check_counts(counts, concepts, words)


def _check_counts(counts: Counter[int], concepts: Concepts, words: Counter[str] | None = None) -> None:
    total = counts.total()
    for label, name in enumerate(concepts.names):
        count = counts[label]
        if count >= LEAST:
            continue
        if name == OTHER:
            raise HacoreError(
                f"only {count} of {total:,} pairs mention no concept, and what is to be kept has to be shown: add "
                f"{LEAST} or more other pairs"
            )
        if count or words is None:
            raise HacoreError(
                f"only {count} of {total:,} pairs are about {name!r}, too few to forget and to measure; give more "
                f"pairs, {LEAST} or more of it, or further words for it"
            )
        raise HacoreError(
            f"none of {total:,} pairs mentions {name!r}; among their words are {', '.join(_near(name, words))}: name "
            "one of these, or give other words for the concept"
        )


def _near(name: str, words: Counter[str], most: int = 12) -> Iterable[str]:
    """The words most like a name, and then the most frequent ones."""
    frequent = [word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0]))]
    alike = difflib.get_close_matches(name.lower(), frequent, n=3, cutoff=0.6)
    return list(dict.fromkeys([*alike, *frequent]))[:most]
