r"""Membership inference: can an attacker tell forgotten training images from images never seen?

Every attack here is a population attack: one attacker for all images. Attacks tailored to each image,
which are stronger and need many models, are in :mod:`hacore.evaluate.shadows`.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from hacore.errors import HacoreError
from hacore.evaluate.outputs import Outputs, wide

LARGEST = 2000  # images a side: the error of an AUC is then about one point
FOLDS = 5


def log_odds(logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    r"""The margin of the true class, exact where :math:`p_y` rounds to 1.

    .. math:: \log\frac{p_y}{1 - p_y} = l_y - \log \sum_{i \ne y} e^{l_i}

    The statistic of the likelihood-ratio attacks (:cite:t:`carlini2022lira`); it orders images as the
    confidence :math:`p_y` does.
    """
    logits, column = wide(logits), labels.cpu()[:, None]
    others = logits.scatter(1, column, -torch.inf).logsumexp(1)
    return logits.gather(1, column).squeeze(1) - others


def entropy(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n"]:
    r"""Entropy of the prediction, :math:`-\sum_i p_i \log p_i`, in nats."""
    log_p = wide(logits).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def modified_entropy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    r"""Entropy that knows the true class (:cite:t:`song2021`), in nats.

    .. math:: -(1 - p_y) \log p_y - \sum_{i \ne y} p_i \log(1 - p_i)

    Zero for a certain and right prediction, large for a certain and wrong one. A version copied between
    unlearning repositories takes :math:`\log p_i` for :math:`\log(1 - p_i)` and exchanges the columns of
    all labels in the batch in every row: it gives 3.47 where 0.16 is right, see the tests.
    """
    logits, column = wide(logits), labels.cpu()[:, None]
    log_p = logits.log_softmax(1)
    # Only the largest probability can round to 1; its complement is summed from the others instead.
    top = logits.argmax(1, keepdim=True)
    rest = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
    log_q = torch.log1p(-log_p.exp()).scatter(1, top, rest)
    wrong = (log_p.exp() * log_q).scatter(1, column, 0.0).sum(1)
    return -(log_q.exp() * log_p).gather(1, column).squeeze(1) - wrong


def auc(members: Float[Tensor, "m"], non_members: Float[Tensor, "n"]) -> float:
    """Chance that a member's score is above a non-member's, ties counting half, in percent (50 is chance)."""
    scores = torch.cat([wide(members), wide(non_members)]).numpy()
    return 100 * float(roc_auc_score(_truth(len(members), len(non_members)), scores))


def cross_validated_auc(
    members: Float[Tensor, "m d"], non_members: Float[Tensor, "n d"], seed: int = 0
) -> float:
    """AUC in percent of a logistic regression that must tell members from non-members it was not fitted to.

    Stratified 5-fold cross-validation (fewer folds where a side has fewer images); columns are
    standardised and both sides weighted alike, the scores of all folds make one AUC.

    Raises:
        HacoreError: if a side has fewer than two images.
    """
    fewest = min(len(members), len(non_members))
    if fewest < 2:
        raise HacoreError("a cross-validated attack needs two members and two non-members; use more images")
    truth = _truth(len(members), len(non_members))
    attacker = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000, tol=1e-3)
    )
    folds = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    both = torch.cat([wide(members), wide(non_members)]).numpy()
    scores = cross_val_predict(attacker, both, truth, cv=folds, method="decision_function")
    return 100 * float(roc_auc_score(truth, scores))


def logit_columns(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "n 2*classes+1"]:
    """All that an attacker can line up from logits and the label: by class, by size, and the log-odds.

    Columns by class alone would blind a linear attacker where images of all classes are forgotten: what
    gives a member away is that *its own* class is certain, whichever that is.
    """
    by_size = wide(logits).sort(1, descending=True).values
    return torch.cat([wide(logits), by_size, log_odds(logits, labels)[:, None]], dim=1)


def feature_columns(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    known: Float[Tensor, "k d"],
    known_labels: Int[Tensor, "k"],
) -> Float[Tensor, "n d+1"]:
    """The features, and how far each lies from the mean of the known (retain) features of its label.

    From the origin where no known image has that label, as where the class is forgotten. As for logits, the
    last column is what a linear attacker could not work out across classes.
    """
    features, known, labels, known_labels = wide(features), wide(known), labels.cpu(), known_labels.cpu()
    classes = 1 + int(torch.cat([labels, known_labels]).max())
    counts = torch.bincount(known_labels, minlength=classes)[:, None]
    sums = torch.zeros(classes, features.shape[1]).double().index_add_(0, known_labels, known)
    away = features - (sums / counts.clamp(min=1))[labels]
    return torch.cat([features, away.norm(dim=1, keepdim=True)], dim=1)


def softmax_features(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "n classes+1"]:
    """What the attack model sees of an answer: probabilities from largest to smallest, and the true class's."""
    p = wide(logits).softmax(1)
    return torch.cat([p.sort(1, descending=True).values, p.gather(1, labels.cpu()[:, None])], dim=1)


def attack_model(members: Float[Tensor, "m d"], non_members: Float[Tensor, "n d"]) -> Any:
    """A logistic regression, on standardised columns, fitted to call members 1 and non-members 0."""
    attacker = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, tol=1e-3))
    return _fitted(attacker, members, non_members)


def confidence_svc(members: Float[Tensor, "m"], non_members: Float[Tensor, "n"]) -> Any:
    r"""The support vector machine of :cite:t:`jia2023` on the true class's confidence, as fitted classifier.

    :math:`C = 3`, kernel :math:`e^{-\gamma (p - p')^2}` with :math:`\gamma = 1` over the number of columns,
    which is one: the setting of their code, which :cite:t:`wang2025muc` share.
    """
    return _fitted(SVC(C=3.0, kernel="rbf", gamma="auto"), members[:, None], non_members[:, None])


def member_rate(attacker: Any, asked: Float[Tensor, "n d"]) -> float:
    """The share of images that a fitted attacker calls members, in percent."""
    return 100 * float(attacker.predict(wide(asked).numpy()).mean())


def unseen(seen: dict[str, Outputs], clean: bool) -> tuple[Outputs, Outputs]:
    """Images no model trained on: of the forgotten kind, and of the retained kind.

    Of the validation part always; of the test part only where the training labels are ``clean``. Test
    labels are, and an attacker would otherwise see which labels are noise, not who is a member. Where
    random samples are forgotten both kinds are the same.
    """
    sets = []
    for kind in ("forget", "retain"):
        names = [f"{kind}_validation", f"{kind}_test"][: 2 if clean else 1]
        found = [seen[name] for name in names if name in seen]
        sets.append(found[0].join(*found[1:]) if found else None)
    forgotten, retained = sets
    if retained is None:
        raise HacoreError("there are no unseen images of the retained kind; set validation images aside")
    return retained if forgotten is None else forgotten, retained


def membership(seen: dict[str, Outputs], clean: bool, seed: int = 0) -> dict[str, float]:
    r"""All membership attacks on one model, from what it makes of the parts of a split.

    At most 2,000 images a side, drawn with ``seed``. First the two that are hardest to fool, and
    that compare models best: cross-validated logistic attacks of the forget images against
    :func:`unseen` images of their kind, AUC in percent, 50 for an attacker that guesses:

    - ``attack_logits_auc``: on all logits and the label, see :func:`logit_columns`;
    - ``attack_features_auc``: on the features :math:`\log_0 z` and the label, see :func:`feature_columns`.

    Then thresholds on one number, as they are: below 50 the forget images look *less* like members
    than unseen ones do, which gives them away as much:

    - ``attack_confidence_auc``, ``attack_entropy_auc``, ``attack_modified_entropy_auc``.

    And attackers fitted to images of the retained kind, members against as many non-members:

    - ``attack_member_rate_forget``, ``attack_member_rate_retain``: the share of forget images, and of
      retain images the attacker was not fitted to, that :func:`attack_model` calls members, the measure of
      :cite:t:`lee2024contrastive`. The paper does not say what its attack model is, nor does the
      authors' code; ours is a logistic regression on :func:`softmax_features`;
    - ``svc_forget_nonmember_rate``: the share of forget images that :func:`confidence_svc` calls non-members.

    The first two are left out where a side has fewer than two images, which no attacker can learn from.

    Args:
        seen: from :func:`hacore.evaluate.outputs.on_split`.
        clean: whether the training labels carry no noise, see :func:`unseen`.
        seed: of the draws and folds.
    """
    strangers, others = unseen(seen, clean)
    forget = seen["forget_train"].draw(LARGEST, seed, "attack", "forget")
    strangers = strangers.draw(LARGEST, seed, "attack", "unseen")
    out: dict[str, float] = {}
    if min(len(forget.labels), len(strangers.labels)) > 1:
        known = seen["retain_train"]
        mine, theirs = (logit_columns(o.logits, o.labels) for o in (forget, strangers))
        out["attack_logits_auc"] = cross_validated_auc(mine, theirs, seed)
        mine, theirs = (
            feature_columns(o.features, o.labels, known.features, known.labels) for o in (forget, strangers)
        )
        out["attack_features_auc"] = cross_validated_auc(mine, theirs, seed)
    out["attack_confidence_auc"] = auc(
        log_odds(forget.logits, forget.labels), log_odds(strangers.logits, strangers.labels)
    )
    out["attack_entropy_auc"] = auc(-entropy(forget.logits), -entropy(strangers.logits))
    out["attack_modified_entropy_auc"] = auc(
        -modified_entropy(forget.logits, forget.labels), -modified_entropy(strangers.logits, strangers.labels)
    )
    # An attacker that calls by majority needs as many of one kind as of the other.
    retain = seen["retain_train"]
    fair = min(LARGEST, len(others.labels), len(retain.labels) // 2)
    if fair < 1:
        raise HacoreError("an attack model needs two retain images; choose a smaller request")
    retain = retain.draw(2 * fair, seed, "attack", "retain")
    half = torch.randperm(2 * fair, generator=torch.Generator().manual_seed(seed)).split(fair)
    known, held_out = retain.take(half[0]), retain.take(half[1])
    others = others.draw(fair, seed, "attack", "others")
    answers = [softmax_features(o.logits, o.labels) for o in (known, others, forget, held_out)]
    attacker = attack_model(answers[0], answers[1])
    out["attack_member_rate_forget"] = member_rate(attacker, answers[2])
    out["attack_member_rate_retain"] = member_rate(attacker, answers[3])
    svc = confidence_svc(answers[0][:, -1], answers[1][:, -1])
    out["svc_forget_nonmember_rate"] = 100 - member_rate(svc, answers[2][:, -1:])
    return out


def _truth(members: int, non_members: int) -> np.ndarray:
    return np.repeat([1, 0], [members, non_members])


def _fitted(attacker: Any, members: Tensor, non_members: Tensor) -> Any:
    both = torch.cat([wide(members), wide(non_members)]).numpy()
    return attacker.fit(both, _truth(len(members), len(non_members)))
