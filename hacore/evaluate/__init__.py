"""What a model still knows: numbers read from a trained model, as ``dict[str, float]``."""

from hacore.evaluate.accuracy import accuracy, logits
from hacore.evaluate.report import accuracies, evaluate

__all__ = ["accuracies", "accuracy", "evaluate", "logits"]
