"""Doing runs: data, split, original model, method, evaluation, record."""

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from hacore import data, results, train
from hacore.data.captions import LENGTH
from hacore.encoders import TextEncoder, encoder
from hacore.errors import HacoreError
from hacore.evaluate import evaluate
from hacore.evaluate.concepts import strength
from hacore.experiments.provenance import CODE, TRAINING, environment
from hacore.experiments.settings import ASIDE, CONCEPTS, SCENARIOS, SET_ASIDE, PairSettings, Run
from hacore.geometry import space
from hacore.models import CONTRASTIVE, Classifier, ImageModel, ImageText, Lift
from hacore.unlearning import METHODS, Method, Outcome, Request, train_on
from hacore.unlearning.cost import combined

WHITENING = 5000  # images whose patches fit a whitening layer
EXACT = ("original", "retrain", "retrain-lifted")  # what is trained, and not unlearned
LOOKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # steps at which an unlearning model is measured
QUEUE = 4096  # keys that MoCo compares with, as published


@functools.lru_cache(maxsize=2)
def _dataset(
    name: str,
    train_images: int | None,
    test_images: int | None,
    device: torch.device,
    captioned: bool = False,
) -> data.Dataset:
    whole = data.load(name, device=device)
    if captioned:
        whole = data.with_captions(whole)
    if train_images is None and test_images is None:
        return whole
    # The subset is part of the data set, not of a run: the same images for every seed.
    return whole.subset(train=train_images, test=test_images, seed=0)


def load(run: Run) -> tuple[data.Dataset, data.Split]:
    """The data of a run on the device, and what is forgotten of them."""
    settings = run.resolved()
    dataset = _dataset(
        run.data, settings.train_images, settings.test_images, train.device(), run.scenario in CONCEPTS
    )
    return dataset, _split(run, dataset)


def _split(run: Run, dataset: data.Dataset) -> data.Split:
    noise = run.resolved().label_noise
    aside = SET_ASIDE.get(run.profile, ASIDE) if run.kind in CONTRASTIVE else ASIDE
    if run.scenario in CONCEPTS:
        return concept_split(dataset, run.concepts, run.seed)
    if run.scenario == "single-class":
        return data.Split.single_class(
            dataset, int(run.forget), seed=run.seed, validation=aside, label_noise=noise
        )
    forget = float(run.forget)
    fraction, count = (forget, None) if 0 < forget < 1 else (None, int(forget))
    return data.Split.samples(dataset, fraction, count, run.seed, aside, noise)


def concept_split(dataset: data.Dataset, concepts: Sequence[str], seed: int) -> data.Split:
    """Forget every image of the leaves below these nodes of the tree.

    Raises:
        HacoreError: if the data have no tree, a name is none of it, or everything or nothing is to be forgotten.
    """
    if not isinstance(dataset, data.Captioned):
        raise HacoreError(f"{dataset.name} has no tree of concepts; load it with captions")
    leaves = {leaf for name in concepts for leaf in dataset.tree.leaves_of(dataset.tree.node(name))}
    wanted = [label for label, leaf in enumerate(dataset.leaf_of) if leaf in leaves]
    return data.Split.classes(dataset, wanted, seed=seed, validation=ASIDE)


def build(run: Run, dataset: data.Dataset, index: Int64[Tensor, "k"]) -> ImageModel:
    """An untrained model for a run: the same weights for the same seed and geometry.

    A frozen first layer, where the encoder has one, is fitted to the training images in ``index``:
    give those the model is trained on, or Retrain would know the images it must never see.
    """
    settings = run.resolved()
    train.seed_everything(run.seed)
    manifold = space(run.space, run.curv, learnable=isinstance(settings, PairSettings) and settings.learnable)
    lift = Lift(manifold, run.lift, settings.scale, settings.radius)
    model: ImageModel
    if isinstance(settings, PairSettings):
        if not isinstance(dataset, data.Captioned):
            raise HacoreError(f"{dataset.name} has no captions to learn from; load it with captions")
        words = dataset.tokenizer
        text = TextEncoder(
            words.size, words.length, settings.text_width, settings.text_layers, settings.text_heads
        )
        body = encoder(settings.encoder, channels=dataset.channels)
        model = ImageText(
            body, manifold, dataset.mean, dataset.std, text, words, settings.dim, lift, settings.objective
        )
    elif settings.head in CONTRASTIVE:
        # The encoder keeps its own features, which downstream users read; the projector makes ``dim`` of them.
        # A queue of more than half of the images would hold keys of the very image that is asked about.
        body = encoder(settings.encoder, channels=dataset.channels)
        longest = {"queue": min(QUEUE, len(dataset.train_images) // 2)} if settings.head == "moco" else {}
        model = CONTRASTIVE[settings.head](
            body, manifold, dataset.mean, dataset.std, settings.dim, lift, **longest
        )
    else:
        body = encoder(settings.encoder, channels=dataset.channels, dim=settings.dim)
        model = Classifier(
            body, len(dataset.classes), manifold, dataset.mean, dataset.std, settings.head, lift
        )
    model.to(dataset.train_images.device)
    model.whiten(data.as_float(dataset.train_images[index[:WHITENING]]))
    return model


class Prepared:
    """What runs share that differ only in method: the request, and Retrain's answer, made once when asked."""

    def __init__(self, run: Run, request: Request) -> None:
        self.run, self.request = run, request

    @functools.cached_property
    def retrained(self) -> Outcome:
        """The gold standard of this request, which every other answer is compared with."""
        return METHODS["retrain"](self.request)


def prepare(run: Run, cache: Path | None = None) -> Request:
    """Load the data, make the split and train the original model of a run.

    Args:
        run: what to prepare; its method decides only where checkpoints go.
        cache: folder where trainings leave checkpoints, so that an interrupted one goes on and a
            finished one is read back; None trains in memory.
    """
    settings = run.resolved()
    dataset, split = load(run)
    everything = torch.cat([split.retain, split.forget]).sort().values
    original = train_on(
        build(run, dataset, everything), dataset, split, everything, settings.training,
        "original", checkpoint(cache, _original(run)),
    )  # fmt: skip
    return Request(
        model=original.model,
        trained=original.fit,
        fresh=lambda index: build(run, dataset, index),
        dataset=dataset,
        split=split,
        training=settings.training,
        checkpoint=checkpoint(cache, run),
    )


def _original(run: Run) -> Run:
    """The run whose answer is the original model, the same for every request of a seed."""
    if run.scenario in CONCEPTS:
        return replace(run, method="original", scenario=CONCEPTS[0], forget="")
    return replace(run, method="original", scenario=SCENARIOS[0], forget=0)


def checkpoint(cache: Path | None, run: Run) -> Path | None:
    """Where a run's training leaves checkpoints: a folder of the run and of the code that trains."""
    if cache is None:
        return None
    training = run.method in EXACT
    if training and run.scenario in CONCEPTS:
        # In whichever order concepts are forgotten, the models that never learned them are the same.
        run = replace(run, scenario=CONCEPTS[0], forget=",".join(sorted(run.concepts)))
    return cache / f"{run.name}-{TRAINING if training else CODE}"


def run(run: Run, prepared: Request | Prepared | None = None, cache: Path | None = None) -> dict[str, Any]:
    """Do one run and return its record.

    Args:
        run: what to do.
        prepared: for this run or one that differs only in method, what :func:`prepare` returned, or a
            :class:`Prepared`, which trains Retrain but once for all of them; None prepares it now.
        cache: see :func:`prepare`.

    Returns:
        The record: ``run`` (its fields), ``settings``, ``metrics`` (see :func:`hacore.evaluate.evaluate`),
        ``cost`` (seconds, steps, FLOPs, images/s, bytes), ``history`` (one entry an epoch), of concepts ``curve``
        (measures after 1, 2, 4, ... steps of unlearning, :func:`hacore.evaluate.concepts.strength`),
        ``environment``, ``command``.
    """
    METHODS[run.method].check_space(run.space)
    if not isinstance(prepared, Prepared):
        prepared = Prepared(run, prepared or prepare(run, cache))
    request = prepared.request
    answer = run.resolved().unlearning
    curve: list[dict[str, float]] = []
    if run.method == "retrain":
        outcome = prepared.retrained
    elif run.scenario == CONCEPTS[0] and run.method not in EXACT:
        outcome = _watched(answer, request, curve)
    elif run.scenario == "concepts-in-turn" and run.method not in EXACT:
        outcome = _in_turn(run, request)
    else:
        outcome = answer(replace(request, checkpoint=checkpoint(cache, run)))
    cost = asdict(outcome.fit)
    history = cost.pop("history")
    return {
        "schema": results.SCHEMA,
        "name": run.name,
        "run": {field.name: getattr(run, field.name) for field in fields(run) if field.name != "settings"},
        "settings": asdict(run.resolved()),
        "metrics": evaluate(
            outcome.model,
            request.dataset,
            request.split,
            prepared.retrained.model,
            request.training.loop.precision,
            request.training.augment,
            request.model,
        ),
        "cost": cost,
        "history": history,
        "environment": environment(),
        "command": run.command,
    } | ({"curve": curve} if curve else {})


def _watched(answer: Method, request: Request, curve: list[dict[str, float]]) -> Outcome:
    """Answer the request and fill ``curve`` on the way; the cost is that without the looking.

    Nothing is kept to resume from: a resumed curve would lack its beginning, and unlearning is short.
    """
    measure = strength(request.dataset, request.split, request.training.loop.precision)  # type: ignore[arg-type]
    looked = 0.0

    def look(model: Any, step: int) -> None:
        nonlocal looked
        if step in LOOKS:
            began = time.perf_counter()
            curve.append({"step": float(step)} | measure(model))
            looked += time.perf_counter() - began

    outcome = answer(replace(request, watch=look, checkpoint=None))
    seconds = outcome.fit.seconds - looked
    speed = outcome.fit.images_per_second * outcome.fit.seconds / seconds if curve else 0.0
    cost = replace(outcome.fit, seconds=seconds, images_per_second=speed)
    return replace(outcome, fit=cost) if curve else outcome


def _in_turn(run: Run, request: Request) -> Outcome:
    """Answer one request after the other, each with the model the one before left and without the data it took."""
    answer, split = run.resolved().unlearning, request.split
    model, cost, gone = request.model, None, torch.zeros_like(split.labels, dtype=torch.bool)
    for concept in run.concepts:
        own = concept_split(request.dataset, [concept], run.seed)
        gone[own.forget] = True
        # Concepts that are asked for later are still there to be retained.
        rest = torch.cat([split.retain, split.forget]).sort().values
        one = replace(own, retain=rest[~gone[rest]])
        outcome = answer(replace(request, model=model, split=one, checkpoint=None))
        model, cost = outcome.model, outcome.fit if cost is None else combined(cost, outcome.fit)
    if cost is None:
        raise HacoreError("no concept is named to forget; name at least one")
    return Outcome(model, cost)


def training_flops(run: Run, images: int = 45_000, channels: int = 3, size: int = 32) -> float:
    """FLOPs of one training of a run's encoders, forward and backward; nothing is computed, no data read.

    Without labels it sees every image in two views; MoCo's second encoder, which has no backward pass, is left out.
    With captions it reads a text with every image, though texts that several images share are read but once.

    Args:
        run: whose encoder, batch size and epochs count.
        images: how many it trains on; 45,000 are those of CIFAR-10 or CIFAR-100 without validation.
        channels, size: of the images, ``size`` in pixels a side.
    """
    settings = run.resolved()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        body = encoder(settings.encoder, channels=channels, dim=settings.dim)
        body(torch.empty(2, channels, size, size)).sum().backward()
        if isinstance(settings, PairSettings):
            text = TextEncoder(512, LENGTH, settings.text_width, settings.text_layers, settings.text_heads)
            text(torch.zeros(2, LENGTH, dtype=torch.long)).sum().backward()
    views = CONTRASTIVE[settings.head].views if settings.head in CONTRASTIVE else 1
    return counter.get_total_flops() / 2 * views * images * settings.training.loop.epochs


def grid(
    methods: Iterable[str],
    spaces: Iterable[str] = ("euclidean",),
    lifts: Iterable[str] = ("clipped",),
    seeds: Iterable[int] = (0,),
    **common: Any,
) -> list[Run]:
    """All combinations as runs, ordered so that runs which share an original model follow each other."""
    return [
        Run(method=method, space=space, lift=lift, seed=seed, **common)
        for space, lift, seed, method in product(spaces, lifts, seeds, methods)
    ]


def run_grid(
    runs: Iterable[Run], folder: Path, cache: Path | None = None, redo: bool = False
) -> Iterator[dict[str, Any]]:
    """Do the runs whose record is missing from ``folder``, write each as it is done, yield all records.

    Killed and started again, it redoes only what is missing; with ``redo``, everything.
    """
    runs = list(runs)
    for one in runs:  # now, and not once the first of them is trained
        METHODS[one.method].check_space(one.space)
    shared: Prepared | None = None
    for one in tqdm(runs, desc="runs", unit="run", disable=train.quiet()):
        path = Path(folder) / f"{one.name}.json"
        if path.exists() and not redo:
            yield results.read(path)
            continue
        twin = replace(one, method="retrain")
        if shared is None or shared.run != twin:
            shared = Prepared(twin, prepare(twin, cache))
        record = run(one, shared, cache)
        results.write(record, folder)
        yield record
