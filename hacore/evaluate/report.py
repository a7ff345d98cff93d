"""Everything this project measures about a model that was asked to forget, as ``dict[str, float]``."""

import torch
from torch import nn

from hacore.data import Dataset, Split
from hacore.evaluate.accuracy import accuracies
from hacore.evaluate.attacks import membership
from hacore.evaluate.confusion import confusion
from hacore.evaluate.embeddings import embeddings
from hacore.evaluate.outputs import on_split, to_compare
from hacore.evaluate.relearning import relearn
from hacore.models import Classifier


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    reference: nn.Module | None = None,
    precision: str = "no",
) -> dict[str, float]:
    """All measures of one model, from one pass over the images.

    Accuracies on every part (``PART_accuracy`` with PART one of ``retain_train``, ``forget_train``,
    ``retain_validation``, ``retain_test`` and, where whole classes are forgotten, ``forget_validation``
    and ``forget_test``; training and validation parts are scored against the labels the model was
    given, noise included); :func:`~hacore.evaluate.attacks.membership`;
    :func:`~hacore.evaluate.confusion.confusion`; :func:`~hacore.evaluate.embeddings.embeddings`;
    :func:`~hacore.evaluate.relearning.relearn`, of a :class:`~hacore.models.Classifier` (the members of an
    ensemble are fine-tuned as one).

    Args:
        model: a :class:`hacore.models.Classifier`, or a module with ``embed``, ``logits`` and ``space`` of one.
        dataset, split: what it was asked to forget.
        reference: Retrain's model, for the measures that compare with it; without one they are absent.
        precision: that of the encoders, as in training.

    Returns:
        Finite numbers by name. A measure that is not defined for this request is absent.

    Raises:
        HacoreError: if a part that a measure needs is empty.
    """
    seen = on_split(model, dataset, split, precision)
    theirs = None if reference is None else to_compare(reference, dataset, split, precision)
    clean = torch.equal(split.labels, dataset.train_labels)
    out = accuracies(seen) | membership(seen, clean) | confusion(seen, theirs)
    out |= embeddings(seen, model.space, theirs)  # type: ignore[arg-type]
    if isinstance(model, Classifier) and len(split.forget) > 1:
        out |= relearn(
            model, dataset, split, reference if isinstance(reference, Classifier) else None, precision
        )
    return out
