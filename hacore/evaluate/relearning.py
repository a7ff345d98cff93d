"""Relearning: how much of what was forgotten do a few steps on a few forget images bring back?"""

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hacore.data import Batch, Batches, Dataset, Split
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.evaluate.accuracy import accuracy
from hacore.models import Classifier
from hacore.train import TrainConfig, fit

STEPS = 10
SHARE = 0.1  # of the forget images, which the attacker has
# So little that Retrain does not learn a class anew on digits, in any geometry, while a class that is only
# hidden comes back whole; at ten times the rate Retrain too learns it in the hyperbolic spaces.
LR = 1e-3


def relearn(
    model: Classifier,
    dataset: Dataset,
    split: Split,
    reference: Classifier | None = None,
    precision: str = "no",
    steps: int = STEPS,
    share: float = SHARE,
    lr: float = LR,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """The relearning attack: fine-tune a copy on few forget images, then ask it about the others.

    The attacker has a ``share`` of the forget images, and as many retain images so that the rest is not
    lost, and takes ``steps`` steps of SGD on the cross-entropy of their labels. The idea is that of
    :cite:t:`hu2025jogging`, for language models; where classes are forgotten, Retrain relearns too, so only
    the distance to it tells what had stayed behind. The models themselves are not changed.

    Returns:
        In percent: ``relearn_forget_accuracy``, on the forget training images the attacker does not have, and
        with a reference ``relearn_gap``, the absolute difference to the same of the reference.

    Raises:
        HacoreError: if there are fewer than two forget images: one to learn from, one to ask about.
    """
    if len(split.forget) < 2:
        raise HacoreError(
            "relearning needs a forget image to learn from and one to ask about; forget more images"
        )
    few = min(max(1, round(share * len(split.forget))), len(split.forget) - 1)
    forget, held_out = _drawn(split.forget, few, seed, "forget")
    retain, _ = _drawn(split.retain, few, seed, "retain")
    batches = Batches(
        dataset.train_images, split.labels, torch.cat([forget, retain]), batch_size=batch_size, seed=seed
    )
    config = TrainConfig(
        epochs=-(-steps // len(batches)),
        lr=lr,
        schedule="constant",
        nesterov=False,
        freeze_norm=True,
        precision=precision,
        seed=seed,
    )

    def relearned(model: Classifier) -> float:
        pupil = copy.deepcopy(model)
        fit(
            pupil, batches, _loss, config,
            method="relearn", stop=lambda _, step: step >= steps, progress=False,
        )  # fmt: skip
        return accuracy(pupil, dataset.train_images, split.labels, held_out)

    out = {"relearn_forget_accuracy": relearned(model)}
    if reference is not None:
        theirs = out["relearn_forget_accuracy"] if reference is model else relearned(reference)
        out["relearn_gap"] = abs(out["relearn_forget_accuracy"] - theirs)
    return out


def _drawn(index: Tensor, count: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    order = index[torch.randperm(len(index), generator=generator(seed, "relearn", name)).to(index.device)]
    return order[:count], order[count:]


def _loss(model: Classifier, batch: Batch) -> Tensor:
    return cross_entropy(model(batch.images), batch.labels)
