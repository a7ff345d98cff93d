"""Doing runs: data, split, original model, method, evaluation, record."""

import functools
from collections.abc import Iterable, Iterator
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
from hacore.encoders import encoder
from hacore.evaluate import evaluate
from hacore.experiments.provenance import CODE, TRAINING, environment
from hacore.experiments.settings import ASIDE, SCENARIOS, SET_ASIDE, Run
from hacore.geometry import space
from hacore.models import CONTRASTIVE, Classifier, ImageModel, Lift
from hacore.unlearning import METHODS, Outcome, Request, train_on

WHITENING = 5000  # images whose patches fit a whitening layer
QUEUE = 4096  # keys that MoCo compares with, as published


@functools.lru_cache(maxsize=2)
def _dataset(
    name: str, train_images: int | None, test_images: int | None, device: torch.device
) -> data.Dataset:
    whole = data.load(name, device=device)
    if train_images is None and test_images is None:
        return whole
    # The subset is part of the data set, not of a run: the same images for every seed.
    return whole.subset(train=train_images, test=test_images, seed=0)


def load(run: Run) -> tuple[data.Dataset, data.Split]:
    """The data of a run on the device, and what is forgotten of them."""
    settings = run.resolved()
    dataset = _dataset(run.data, settings.train_images, settings.test_images, train.device())
    return dataset, _split(run, dataset)


def _split(run: Run, dataset: data.Dataset) -> data.Split:
    noise = run.resolved().label_noise
    aside = SET_ASIDE.get(run.profile, ASIDE) if run.kind in CONTRASTIVE else ASIDE
    if run.scenario == "single-class":
        return data.Split.single_class(
            dataset, int(run.forget), seed=run.seed, validation=aside, label_noise=noise
        )
    share = 0 < run.forget < 1
    fraction, count = (float(run.forget), None) if share else (None, int(run.forget))
    return data.Split.samples(dataset, fraction, count, run.seed, aside, noise)


def build(run: Run, dataset: data.Dataset, index: Int64[Tensor, "k"]) -> ImageModel:
    """An untrained model for a run: the same weights for the same seed and geometry.

    A frozen first layer, where the encoder has one, is fitted to the training images in ``index``:
    give those the model is trained on, or Retrain would know the images it must never see.
    """
    settings = run.resolved()
    train.seed_everything(run.seed)
    manifold = space(run.space, run.curv)
    lift = Lift(manifold, run.lift, settings.scale, settings.radius)
    model: ImageModel
    if settings.head in CONTRASTIVE:
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
    return replace(run, method="original", scenario=SCENARIOS[0], forget=0)


def checkpoint(cache: Path | None, run: Run) -> Path | None:
    """Where a run's training leaves checkpoints: a folder of the run and of the code that trains."""
    if cache is None:
        return None
    return cache / f"{run.name}-{TRAINING if run.method in ('original', 'retrain') else CODE}"


def run(run: Run, prepared: Request | Prepared | None = None, cache: Path | None = None) -> dict[str, Any]:
    """Do one run and return its record.

    Args:
        run: what to do.
        prepared: for this run or one that differs only in method, what :func:`prepare` returned, or a
            :class:`Prepared`, which trains Retrain but once for all of them; None prepares it now.
        cache: see :func:`prepare`.

    Returns:
        The record: ``run`` (its fields), ``settings``, ``metrics`` (see :func:`hacore.evaluate.evaluate`),
        ``cost`` (seconds, steps, FLOPs, images/s, bytes), ``history`` (one entry an epoch),
        ``environment``, ``command``.
    """
    if not isinstance(prepared, Prepared):
        prepared = Prepared(run, prepared or prepare(run, cache))
    request = prepared.request
    answer = run.resolved().unlearning
    if run.method == "retrain":
        outcome = prepared.retrained
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
    }


def training_flops(run: Run, images: int = 45_000, channels: int = 3, size: int = 32) -> float:
    """FLOPs of one training of a run's encoder, forward and backward; nothing is computed, no data read.

    Without labels it sees every image in two views; MoCo's second encoder, which has no backward pass, is left out.

    Args:
        run: whose encoder, batch size and epochs count.
        images: how many it trains on; 45,000 are those of CIFAR-10 or CIFAR-100 without validation.
        channels, size: of the images, ``size`` in pixels a side.
    """
    settings = run.resolved()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        body = encoder(settings.encoder, channels=channels, dim=settings.dim)
        body(torch.empty(2, channels, size, size)).sum().backward()
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
    shared: Prepared | None = None
    for one in tqdm(list(runs), desc="runs", unit="run", disable=train.quiet()):
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
