"""Everything this project measures about a model that was asked to forget, as ``dict[str, float]``."""

from hacore.data import Dataset, Split
from hacore.evaluate.accuracy import accuracy
from hacore.models import Classifier


def evaluate(
    model: Classifier, dataset: Dataset, split: Split, reference: Classifier | None = None
) -> dict[str, float]:
    """All measures of one model; ``reference`` is Retrain's, for those that compare with it."""
    return accuracies(model, dataset, split)


def accuracies(model: Classifier, dataset: Dataset, split: Split) -> dict[str, float]:
    """Accuracies in percent on every part of a split that has images.

    Keys: ``retain_train_accuracy``, ``forget_train_accuracy``, ``retain_validation_accuracy``,
    ``retain_test_accuracy`` and, where the scenario forgets whole classes,
    ``forget_validation_accuracy`` and ``forget_test_accuracy``. Training and validation parts
    are scored against the labels the model was given (``split.labels``, noise included), test
    parts against the true ones.
    """
    train = {
        "retain_train": split.retain,
        "forget_train": split.forget,
        "retain_validation": split.validation,
        "forget_validation": split.validation_forget,
    }
    test = {"retain_test": split.test, "forget_test": split.test_forget}
    parts = [(name, dataset.train_images, split.labels, index) for name, index in train.items()]
    parts += [(name, dataset.test_images, dataset.test_labels, index) for name, index in test.items()]
    return {
        f"{name}_accuracy": accuracy(model, images, labels, index)
        for name, images, labels, index in parts
        if len(index)
    }
