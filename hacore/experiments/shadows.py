"""Shadow models: many trainings of one request to forget, for attacks that judge each example by itself.

A pool of training images is drawn once. Shadow model :math:`k` trains on the retain images and a random
half of the pool, then forgets that half; the other half it never sees. So every image of the pool was
forgotten by half of the models and is unseen by the rest, with everything else alike.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from hacore import data, results, train
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.evaluate import logits
from hacore.evaluate.shadows import klom, log_odds, ulira
from hacore.experiments.perform import Prepared, build, checkpoint, load
from hacore.experiments.provenance import environment
from hacore.experiments.settings import Run
from hacore.models import Classifier
from hacore.unlearning import Request, train_on

MODELS = 32
POOL = 200


def shadow_splits(
    split: data.Split, models: int, seed: int
) -> tuple[list[data.Split], Int64[Tensor, "pool"], Bool[Tensor, "models pool"]]:
    """Divide the forget images of a split in halves: random ones for every other model, the rest for the next.

    Returns:
        The splits, each with one half to forget and the other half unseen; the pool, which is
        ``split.forget``; and whether model k forgot image i of the pool.

    Raises:
        HacoreError: if there are fewer than two models or the split forgets fewer than four images.
    """
    pool = split.forget
    if models < 2 or len(pool) < 4:
        raise HacoreError(
            f"{models} shadow models of a pool of {len(pool)} images say nothing; use at least 2 and 4"
        )
    forgot = torch.zeros(models, len(pool), dtype=torch.bool)
    for k in range(0, models, 2):
        forgot[k, torch.randperm(len(pool), generator=generator(seed, "shadow", k))[: len(pool) // 2]] = True
    # The next model forgets what this one never sees, so that every image has as many models on both sides.
    forgot[1::2] = ~forgot[: 2 * (models // 2) : 2]
    forgot = forgot.to(pool.device)
    return [replace(split, forget=pool[half]) for half in forgot], pool, forgot


def shadows(
    run: Run, methods: Iterable[str], folder: Path, models: int = MODELS, cache: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Attack each method with shadow models, write a record for each, yield all records.

    ``run`` is a run of random samples; its forget images are the pool, and ``seed`` fixes pool, labels and
    halves, while shadow model k trains with the seed ``run.seed + k``. Records that are in ``folder`` are
    not made again, and with a ``cache`` no training is repeated.

    The metrics of a record (see :mod:`hacore.evaluate.shadows`): ``ulira_*``, the likelihood-ratio
    attack on the pool, and ``klom_*`` on the images of each kind, compared with Retrain's ensemble.
    """
    if run.scenario != "random-samples":
        raise HacoreError("shadow models need random samples to forget; use Run(scenario='random-samples')")
    missing = []
    for name in methods:
        one = replace(run, method=name)
        path = Path(folder) / f"shadows-{models}-{one.name}.json"
        if path.exists():
            yield results.read(path)
        else:
            missing.append(one)
    if not missing:
        return
    dataset, whole = load(run)
    splits, pool, forgot = shadow_splits(whole, models, run.seed)
    parts = {"forget": pool, "retain": whole.retain, "validation": whole.validation}
    everything = torch.cat(list(parts.values()))
    margins: dict[str, list[Tensor]] = {name: [] for name in ["retrain", *(one.method for one in missing)]}
    seconds = dict.fromkeys(margins, 0.0)
    for k in tqdm(range(models), desc="shadow models", unit="model", disable=train.quiet()):
        # The k-th model has its own seed, but the data, the labels and the pool of the run.
        prepared = _shadow(replace(run, seed=run.seed + k), dataset, splits[k], _place(cache, run, k, models))
        for name in margins:
            if name == "retrain":
                outcome = prepared.retrained
            else:
                outcome = replace(run, method=name).resolved().unlearning(prepared.request)
            margins[name].append(_margins(outcome.model, dataset, whole.labels, everything))
            seconds[name] += outcome.fit.seconds
    reference = torch.stack(margins["retrain"])
    sizes = [len(part) for part in parts.values()]
    for one in missing:
        ours = torch.stack(margins[one.method])
        metrics = {f"ulira_{name}": value for name, value in ulira(ours[:, : len(pool)], forgot).items()}
        for part, here, there in zip(parts, ours.split(sizes, 1), reference.split(sizes, 1), strict=True):
            if one.method == "retrain":
                break  # it is no distance from itself
            # An image of the pool counts where the model forgot it; Retrain never saw any of them.
            kept = forgot if part == "forget" else None
            metrics |= {f"klom_{part}_{name}": value for name, value in klom(here, there, kept).items()}
        record = {
            "schema": results.SCHEMA,
            "name": f"shadows-{models}-{one.name}",
            "run": {f.name: getattr(one, f.name) for f in fields(one) if f.name != "settings"}
            | {"models": models, "pool": len(pool)},
            "settings": asdict(one.resolved()),
            "metrics": metrics,
            "cost": {"seconds": seconds[one.method]},
            "environment": environment(),
        }
        results.write(record, folder)
        yield record


def _place(cache: Path | None, run: Run, k: int, models: int) -> Path | None:
    folder = checkpoint(cache, replace(run, method="retrain"))
    return folder and folder.with_name(f"{folder.name}-shadow{k}of{models}")


def _shadow(run: Run, dataset: data.Dataset, split: data.Split, place: Path | None) -> Prepared:
    """The request of one shadow model, and Retrain's answer, both with checkpoints in ``place``."""
    training = run.resolved().training
    seen = torch.cat([split.retain, split.forget]).sort().values
    original = train_on(
        build(run, dataset, seen), dataset, split, seen, training, "original", place and place / "original"
    )
    request = Request(
        model=original.model,
        trained=original.fit,
        fresh=lambda index: build(run, dataset, index),
        dataset=dataset,
        split=split,
        training=training,
        checkpoint=place and place / "retrain",
    )
    prepared = Prepared(run, request)
    _ = prepared.retrained  # while the checkpoint folder is its own
    prepared.request = replace(request, checkpoint=None)
    return prepared


@torch.no_grad()
def _margins(
    model: Classifier, dataset: data.Dataset, labels: Int64[Tensor, "n"], index: Int64[Tensor, "k"]
) -> Float[Tensor, "k"]:
    """Log-odds of the label of each training image in ``index``."""
    return log_odds(logits(model, dataset.train_images, index), labels[index]).cpu()
