"""What unlearning does to the embedding: radii, class separation, likeness to Retrain, what a probe reads."""

import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from hacore.data.dataset import generator, stratified
from hacore.evaluate.outputs import Outputs, wide
from hacore.geometry import Space

PAIRED = 1000  # images whose pairwise distances are taken
PROBED = 4000  # images a probe is fitted to


def radii(points: Float[Tensor, "n d"], space: Space) -> dict[str, float]:
    """Median, 5 % and 95 % quantile of the geodesic distance from the origin."""
    q05, median, q95 = wide(space.radius(points)).quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
    return {"median": median, "q05": q05, "q95": q95}


def class_separation(points: Float[Tensor, "n d"], labels: Int[Tensor, "n"], space: Space) -> float | None:
    """Mean distance of points of different classes over that of different points of one class.

    Both means are over pairs, with the distance of the space. Above 1 classes are apart; no number where
    no two points share a class, none differ in class, or all classes have shrunk to points.
    """
    distances = wide(space.pairwise(points, points))
    same = labels.cpu()[:, None] == labels.cpu()[None]
    other = ~torch.eye(len(labels), dtype=torch.bool)
    within, between = distances[same & other], distances[~same]
    if not len(within) or not len(between) or within.mean() == 0:
        return None
    return (between.mean() / within.mean()).item()


def linear_cka(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    r"""Linear centred kernel alignment of two models' features of the same n images, in percent.

    .. math:: \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F \, \|Y^\top Y\|_F}

    with centred columns (:cite:t:`kornblith2019`): 100 for features equal up to rotation and
    scale, 0 for uncorrelated ones, and for features that do not vary.
    """
    x, y = (wide(f) - wide(f).mean(0) for f in (x, y))
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return 100 * ((y.T @ x).square().sum() / scale).item() if scale > 0 else 0.0


def probe_accuracy(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    asked: Float[Tensor, "m d"],
    answers: Int[Tensor, "m"],
) -> float:
    """Accuracy in percent, on ``asked``, of a logistic regression fitted to frozen ``features``."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, tol=1e-3))
    probe.fit(wide(features).numpy(), labels.cpu().numpy())
    return 100 * float((probe.predict(wide(asked).numpy()) == answers.cpu().numpy()).mean())


def probe(seen: dict[str, Outputs], seed: int = 0) -> dict[str, float]:
    """``probe_forget_accuracy``: what a linear probe on frozen features still reads of what was forgotten.

    Where classes are forgotten, the probe learns them anew from retain and forget images and is scored on
    test images of those classes: did the encoder keep the class, though the head denies it? Where random
    samples are, it learns from retain images alone and is scored on the forget images with the labels
    given in training: are they still where their labels are? At most 4,000 images, of every class in
    proportion, are learned from. :cite:t:`kim2025forgetting` show why the encoder has to be asked.
    """
    by_class = "forget_test" in seen
    learned = seen["retain_train"].join(seen["forget_train"]) if by_class else seen["retain_train"]
    asked = seen["forget_test" if by_class else "forget_train"]
    if len(learned.labels) > PROBED:
        share = PROBED / len(learned.labels)
        learned = learned.take(stratified(learned.labels.cpu(), share, generator(seed, "probe")))
    if len(learned.labels.unique()) < 2:
        return {}
    score = probe_accuracy(learned.features, learned.labels, asked.features, asked.labels)
    return {"probe_forget_accuracy": score}


def embeddings(
    seen: dict[str, Outputs], space: Space, reference: dict[str, Outputs] | None = None, seed: int = 0
) -> dict[str, float]:
    """How the points of a model lie, alone and beside a reference's.

    - ``radius_retain_median``, ``_q05``, ``_q95``: of retained test points; ``radius_forget_...``: of
      forgotten test points, or of the forget images where random samples are forgotten;
    - ``class_separation`` of at most 1,000 retained test points (absent where it is not defined);
    - ``probe_forget_accuracy``, see :func:`probe`;
    - with a reference's outputs, ``cka_retain`` and ``cka_forget``: linear CKA with its features, on at most
      2,000 retained test and forget training images.

    Args:
        seen: from :func:`hacore.evaluate.outputs.on_split`.
        space: of the model.
        reference: of the model to compare with, from :func:`hacore.evaluate.outputs.to_compare`.
        seed: of the draws.
    """
    retain, forget = seen["retain_test"], seen.get("forget_test", seen["forget_train"])
    out = {f"radius_retain_{name}": value for name, value in radii(retain.points, space).items()}
    out |= {f"radius_forget_{name}": value for name, value in radii(forget.points, space).items()}
    some = retain.draw(PAIRED, seed, "separation")
    separation = class_separation(some.points, some.labels, space)
    if separation is not None:
        out["class_separation"] = separation
    out |= probe(seen, seed)
    if reference is not None:
        for name, part in (("cka_retain", "retain_test"), ("cka_forget", "forget_train")):
            out[name] = linear_cka(seen[part].compared(part).features, reference[part].features)
    return out
