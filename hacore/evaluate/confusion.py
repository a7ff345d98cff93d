r"""What a model takes forgotten images for.

Zero accuracy on a forgotten class is not yet forgetting: Retrain, which never saw the class, sends its
images to the classes they resemble, and so should the answer. :cite:t:`khalil2025coun` report those shares.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hacore.evaluate.outputs import Outputs, numbered


def predicted_shares(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "classes"]:
    """The share of n images that is predicted as each class, in percent."""
    counts = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
    return 100 * counts.double().cpu() / len(logits)


def total_variation(p: Float[Tensor, "k"], q: Float[Tensor, "k"]) -> float:
    r""":math:`\tfrac12 \sum_k |p_k - q_k|`, in the unit of p and q (shares in percent give percent)."""
    return 0.5 * (p - q).abs().sum().item()


def confusion(seen: dict[str, Outputs], reference: dict[str, Outputs] | None = None) -> dict[str, float]:
    """Where forgotten images go, in percent.

    Keys: ``forget_train_as_K`` for every class K, ``forget_test_as_K`` where whole classes are forgotten,
    and with a reference's outputs, from :func:`~hacore.evaluate.outputs.to_compare`, ``confusion_gap``: the
    total variation distance between the shares of both models on (at most 2,000) forget training images.
    """
    shares = {
        name: predicted_shares(seen[name].logits) for name in ("forget_train", "forget_test") if name in seen
    }
    out: dict[str, float] = {}
    for name, values in shares.items():
        out |= numbered(values, f"{name}_as")
    if reference is not None:
        models = (seen["forget_train"].compared("forget_train"), reference["forget_train"])
        out["confusion_gap"] = total_variation(*(predicted_shares(side.logits) for side in models))
    return out
