r"""Zero-shot classification: which class's prompt is an image most similar to, and does a prompt still find its own?

Similarities are of n images to one prompt (or the mean of several) per class, larger being nearer. Accuracy
saturates within a few steps of unlearning; the AUC of a concept's own prompt and the rank of the true class do
not, and they see what accuracy cannot: a concept that is turned away so far that its sign can be flipped.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hacore.errors import HacoreError
from hacore.evaluate.attacks import auc
from hacore.evaluate.outputs import wide


def zero_shot_accuracy(
    similarity: Float[Tensor, "n classes"],
    labels: Int[Tensor, "n"],
    allowed: Bool[Tensor, "classes"] | None = None,
) -> float:
    """Share of images most similar to the prompt of their own class, in percent.

    k prompts that are equally near count 1/k each, as if one of them were drawn: a model whose prompts have
    all become one point has the accuracy of a guess, and not that of the class that stands first.

    Args:
        similarity: of images to the prompt of every class.
        labels: the true classes.
        allowed: the classes to choose from; None is all.

    Raises:
        HacoreError: if there are no images, similarities are not finite, or a true class is not allowed, whose
            images could only be wrong.
    """
    similarity, labels = _checked(similarity, labels, allowed)
    best = similarity == similarity.amax(1, keepdim=True)
    right = best.gather(1, labels[:, None]).squeeze(1)
    return 100 * (right.double() / best.sum(1)).mean().item()


def mean_rank(
    similarity: Float[Tensor, "n classes"],
    labels: Int[Tensor, "n"],
    allowed: Bool[Tensor, "classes"] | None = None,
) -> float:
    """Mean place of the true class among all by similarity: 1 is the nearest, the number of classes the farthest.

    Classes that are equally near share their places: of k classes all alike each has (k + 1) / 2, which is
    also the mean of guesses. Far behind it is forgotten too well. Arguments and errors are those of
    :func:`zero_shot_accuracy`.
    """
    similarity, labels = _checked(similarity, labels, allowed)
    own = similarity.gather(1, labels[:, None])
    nearer = (similarity > own).sum(1).double()
    alike = (similarity == own).sum(1).double() - 1
    return (1 + nearer + alike / 2).mean().item()


def zero_shot(
    similarity: Float[Tensor, "n classes"],
    labels: Int[Tensor, "n"],
    forgotten: Bool[Tensor, "classes"],
) -> dict[str, float]:
    """Zero-shot classification of forgotten and of retained images.

    In percent, KIND being ``forget`` or ``retain``:

    - ``zero_shot_KIND_accuracy``: over all labels;
    - ``zero_shot_retain_accuracy_among_retain``: of retained images over retained labels only. The first one
      rises when forgotten labels stop competing, this one does not;
    - ``zero_shot_forget_accuracy_among_forget``: of forgotten images over forgotten labels only, whether the
      model still tells the forgotten classes from each other; absent where there is only one.

    And ``zero_shot_KIND_rank``, the :func:`mean_rank` of the true class among all.

    Args:
        similarity: of images of all kinds to the prompt of every class.
        labels: the true classes.
        forgotten: which classes were to be forgotten.

    Raises:
        HacoreError: if there are no images of forgotten or none of retained classes, or similarities are not finite.
    """
    forgotten, labels = forgotten.cpu(), labels.cpu()
    similarity, labels = _checked(similarity, labels, None)
    out: dict[str, float] = {}
    for kind, classes in (("forget", forgotten), ("retain", ~forgotten)):
        mine = classes[labels]
        if not mine.any():
            raise HacoreError(f"there are no images of the {kind} classes to classify; check the split")
        out[f"zero_shot_{kind}_accuracy"] = zero_shot_accuracy(similarity[mine], labels[mine])
        if kind == "retain" or classes.sum() > 1:
            among = zero_shot_accuracy(similarity[mine], labels[mine], classes)
            out[f"zero_shot_{kind}_accuracy_among_{kind}"] = among
        out[f"zero_shot_{kind}_rank"] = mean_rank(similarity[mine], labels[mine])
    return out


def prompt_auc(similarity: Float[Tensor, "n"], is_concept: Bool[Tensor, "n"]) -> float:
    """Chance that a concept's prompt is more similar to an image of it than to another image, in percent.

    Ties count half. 100 where the prompt finds all images of its concept, 50 where it knows nothing of them.
    **Far below 50 nothing is forgotten**: the images are where the prompt points away from, and who flips the
    sign finds them; see :func:`separability`.

    Args:
        similarity: of all images to the prompt.
        is_concept: which images show the concept.

    Raises:
        HacoreError: if all images or none show the concept, or a similarity is not finite.
    """
    if is_concept.all() or not is_concept.any():
        raise HacoreError(
            "a prompt is judged by images of its concept and by others; give images of both kinds"
        )
    if not similarity.isfinite().all():
        raise HacoreError("the similarities to the prompt are not all finite; check the model")
    return auc(similarity[is_concept], similarity[~is_concept])


def separability(auc: float) -> float:
    """What an AUC in percent is worth to one who may flip the sign: max(AUC, 100 - AUC), 50 for nothing."""
    return max(auc, 100 - auc)


def prompt_scores(similarity: Float[Tensor, "n"], is_concept: Bool[Tensor, "n"]) -> dict[str, float]:
    """``prompt_auc`` and ``prompt_separability`` of a concept's prompt; see :func:`prompt_auc`."""
    score = prompt_auc(similarity, is_concept)
    return {"prompt_auc": score, "prompt_separability": separability(score)}


def _checked(similarity: Tensor, labels: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Similarities in float64, minus infinity for classes that are not allowed, and labels, both on the CPU."""
    similarity, labels = wide(similarity), labels.cpu()
    if not len(labels):
        raise HacoreError("there are no images to classify; check the split")
    if labels.min() < 0 or labels.max() >= similarity.shape[1]:
        raise HacoreError(
            f"labels lie in {labels.min()}..{labels.max()}, but there are prompts of {similarity.shape[1]} classes; "
            "give one prompt per class"
        )
    if not similarity.isfinite().all():
        raise HacoreError("the similarities of images to prompts are not all finite; check the model")
    if allowed is None:
        return similarity, labels
    allowed = allowed.cpu()
    if not allowed[labels].all():
        raise HacoreError(
            "some images are of a class that is not among those allowed and could only be wrong; leave them out"
        )
    return similarity.where(allowed, -torch.inf), labels
