"""What a model still knows: numbers read from a trained model, as ``dict[str, float]``.

``evaluate`` gives them all; the modules behind it hold each kind of measure as pure functions:
``accuracy``, ``attacks`` (membership), ``confusion``, ``embeddings``, ``relearning``, and ``shadows``
(attacks that need many models).
"""

from hacore.evaluate.accuracy import accuracies, accuracy, logits
from hacore.evaluate.report import evaluate

__all__ = ["accuracies", "accuracy", "evaluate", "logits"]
