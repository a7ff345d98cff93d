"""Everything this project measures about a model that was asked to forget, as ``dict[str, float]``."""

import torch
from torch import Tensor, nn

from hacore.data import Augment, Captioned, Dataset, Split
from hacore.data.dataset import generator
from hacore.evaluate.accuracy import accuracies
from hacore.evaluate.alignment import representation, simclr, views
from hacore.evaluate.attacks import membership
from hacore.evaluate.auditing import FORGOTTEN, audit
from hacore.evaluate.concepts import of_concepts
from hacore.evaluate.confusion import confusion
from hacore.evaluate.embeddings import embeddings
from hacore.evaluate.outputs import Outputs, drawn, on_split, to_compare
from hacore.evaluate.probing import Probed, knn_accuracy, probe
from hacore.evaluate.relearning import relearn
from hacore.models import Classifier, ContrastiveEncoder, ImageText

AUDITED = 1000  # images a side


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    reference: nn.Module | None = None,
    precision: str = "no",
    augment: str | None = None,
    before: nn.Module | None = None,
) -> dict[str, float]:
    """All measures of one model, from one pass over the images.

    Accuracies on every part (``PART_accuracy`` with PART one of ``retain_train``, ``forget_train``,
    ``retain_validation``, ``retain_test`` and, where whole classes are forgotten, ``forget_validation``
    and ``forget_test``; training and validation parts are scored against the labels the model was
    given, noise included); :func:`~hacore.evaluate.attacks.membership`;
    :func:`~hacore.evaluate.confusion.confusion`; :func:`~hacore.evaluate.embeddings.embeddings`;
    :func:`~hacore.evaluate.relearning.relearn`, of a :class:`~hacore.models.Classifier` (the members of an
    ensemble are fine-tuned as one).

    Of an encoder that learnt without labels, all of that is read from a linear probe of its features, fitted to
    the retain images with their labels, and :func:`~hacore.evaluate.alignment.representation` comes on top.

    Of a model of images and texts, all of :func:`~hacore.evaluate.concepts.of_concepts` instead.

    Args:
        model: a :class:`hacore.models.Classifier`, or a module with ``embed``, ``logits`` and ``space`` of one.
        dataset, split: what it was asked to forget.
        reference: Retrain's model, for the measures that compare with it; without one they are absent.
        precision: that of the encoders, as in training.
        augment: that of training, which makes the views of encoders that learnt without labels; None is SimCLR's.
        before: the model that was asked, for :func:`owners_audit` of such an encoder; without it that is absent.

    Returns:
        Finite numbers by name. A measure that is not defined for this request is absent.

    Raises:
        HacoreError: if a part that a measure needs is empty.
    """
    if isinstance(model, ImageText) and isinstance(dataset, Captioned):
        theirs, old = (one if isinstance(one, ImageText) else None for one in (reference, before))
        return of_concepts(model, dataset, split, theirs, precision, old)
    if isinstance(model, ContrastiveEncoder):
        return _of_encoder(model, dataset, split, reference, precision, augment, before)
    return _measured(model, on_split(model, dataset, split, precision), dataset, split, reference, precision)


def _measured(
    model: nn.Module,
    seen: dict[str, Outputs],
    dataset: Dataset,
    split: Split,
    reference: nn.Module | None,
    precision: str,
) -> dict[str, float]:
    theirs = None if reference is None else to_compare(reference, dataset, split, precision)
    clean = torch.equal(split.labels, dataset.train_labels)
    out = accuracies(seen) | membership(seen, clean) | confusion(seen, theirs)
    out |= embeddings(seen, model.space, theirs)  # type: ignore[arg-type]
    if isinstance(model, Classifier) and len(split.forget) > 1:
        out |= relearn(
            model, dataset, split, reference if isinstance(reference, Classifier) else None, precision
        )
    return out


def _of_encoder(
    model: ContrastiveEncoder,
    dataset: Dataset,
    split: Split,
    reference: nn.Module | None,
    precision: str,
    augment: str | None,
    before: nn.Module | None,
) -> dict[str, float]:
    def probed(encoder: nn.Module) -> Probed:
        images, labels, retain = dataset.train_images, split.labels, split.retain
        return probe(encoder, images, labels, retain, len(dataset.classes), precision)

    augment = augment or simclr(dataset.channels)
    mine = probed(model)
    theirs = None if reference is None else probed(reference)
    seen = on_split(mine, dataset, split, precision)
    out = _measured(mine, seen, dataset, split, theirs, precision) | neighbours(seen)
    out |= representation(model, dataset, split, precision, augment)
    if before is not None:
        out |= owners_audit(before, model, dataset, split, precision, augment)
    return out


def neighbours(seen: dict[str, Outputs]) -> dict[str, float]:
    """Accuracy in percent of nearest retain neighbours: ``knn_PART_accuracy`` of retain, forget and test images.

    PART is ``retain_train``, ``forget_train`` or ``retain_test``; ``seen`` is of :func:`on_split`. The
    neighbours are half of at most 5,000 retain images, drawn at random, and ``retain_train`` is the other half: an
    image is no neighbour of its own. See :func:`~hacore.evaluate.probing.knn_accuracy`.
    """
    retain = seen["retain_train"]
    order = torch.randperm(len(retain.labels), generator=generator("neighbours"))
    known, rest = (retain.take(half) for half in order.tensor_split(2))
    asked = {"retain_train": rest, "forget_train": seen["forget_train"], "retain_test": seen["retain_test"]}
    return {
        f"knn_{part}_accuracy": knn_accuracy(known.features, known.labels, one.features, one.labels)
        for part, one in asked.items()
    }


def owners_audit(
    before: nn.Module,
    after: nn.Module,
    dataset: Dataset,
    split: Split,
    precision: str = "no",
    augment: str = "simclr",
    seed: int = 0,
) -> dict[str, float]:
    """What the owner of the forget images sees of two encoders, with test images as control.

    Numbers of :func:`~hacore.evaluate.auditing.audit` of at most 1,000 images a side: ``audit_raw``, the mean
    drop of alignment in units of the similarity, ``audit_score``, standardised and corrected by the control, with
    ``audit_low`` and ``audit_high``, ``audit_p_value``, and ``audit_visible``, 1 for the verdict that a change is
    visible, else 0. Both encoders get the same views.
    """
    sides = {"forget": (dataset.train_images, split.forget), "test": (dataset.test_images, split.test)}
    seen: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
    for side, (images, index) in sides.items():
        some = index[drawn(len(index), AUDITED, seed, "audit", side).to(index.device)]
        varied = Augment(augment, generator(seed, "audit views", side).initial_seed())
        first, second = (views(model, images, some, varied, 2, precision) for model in (before, after))
        seen[side] = (first[0], first[1], second[0], second[1])
    old, new = (network.space for network in (before, after))
    found = audit(*seen["forget"], old, new, control=seen["test"], seed=seed)  # type: ignore[arg-type]
    return {
        "audit_raw": found.raw,
        "audit_score": found.score,
        "audit_low": found.low,
        "audit_high": found.high,
        "audit_p_value": found.p_value,
        "audit_visible": float(found.verdict == FORGOTTEN),
    }
