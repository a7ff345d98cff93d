"""What a model of images and texts still knows of a concept: all measures of one model, from one pass over the data."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hacore.data import Captioned, PairedBatches, Reading, Split, forgotten_nodes
from hacore.evaluate.cones import apertures_by_level, cones, radii_by_level
from hacore.evaluate.destination import destination
from hacore.evaluate.embeddings import embeddings, linear_cka
from hacore.evaluate.hierarchy import (
    depth_radius_correlation,
    distances,
    gromov,
    hierarchy_errors,
)
from hacore.evaluate.outputs import Outputs, drawn, evaluating, on_split, outputs, to_compare
from hacore.evaluate.paraphrases import leakage
from hacore.evaluate.probing import knn_accuracy
from hacore.evaluate.retrieval import retrieval
from hacore.evaluate.zero_shot import prompt_scores, zero_shot
from hacore.losses import positives
from hacore.models import ImageText
from hacore.train import TrainConfig, fit

ASKED = 1000  # retained test images that are looked at, drawn at random; of forgotten concepts all are
DISTORTED = 300  # images whose distances are compared with those of a tree
CURVE = 500  # images a side while a method is at work
RELEARN_STEPS = (5, 10, 20)
RELEARN_SHARE = 0.1  # of the forget pairs, which the attacker has
RELEARN_LR = 3e-4


class ZeroShot(nn.Module):
    """A model of images and texts as a classifier: the logit of a class is how well its prompts suit the image.

    Prompts are the data set's, several wordings a class taken together (:meth:`ImageText.embed_mean`).
    """

    def __init__(self, model: ImageText, dataset: Captioned) -> None:
        super().__init__()
        self.model, self.space = model, model.space
        with torch.no_grad(), evaluating(model):
            self.nodes = model.embed_mean(dataset.tokens[dataset.prompts])  # (nodes, d)
        leaves = torch.tensor(dataset.leaf_of, device=self.nodes.device)
        self.prompts = self.nodes[leaves]  # (classes, d)

    def embed(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Points of images."""
        return self.model.embed(images)

    def logits(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """How well each class's prompts suit points of images, as the model compares."""
        return self.model.compare(points, self.prompts)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """The logits of images in [0, 1]."""
        return self.logits(self.embed(images))


def of_concepts(
    model: ImageText,
    dataset: Captioned,
    split: Split,
    reference: ImageText | None = None,
    precision: str = "no",
    before: ImageText | None = None,
) -> dict[str, float]:
    """All measures of a model that was asked to forget concepts; see the modules of ``hacore.evaluate`` for each.

    Accuracies and ranks (:func:`zero_shot`), the AUC of the concepts' prompts (:func:`prompt_scores`) and what other
    words find (:func:`leakage`), recall both ways (``forget_...`` and ``retain_...``), errors by the tree, places the
    forgotten images go to, radii and cones, distortion, probes, likeness to the reference and to the model before,
    relearning. Test images alone are asked about. With several concepts, those that are about one concept are means.

    Args:
        model: what a method answered with.
        dataset, split: what was to be forgotten.
        reference: Retrain's model, for CKA; absent without it.
        precision: of the encoders, as in training.
        before: the model that was asked, for CKA; absent without it.

    Raises:
        HacoreError: if a part that a measure needs is empty, or the split forgets no whole classes.
    """
    classifier = ZeroShot(model, dataset)
    seen = on_split(classifier, dataset, split, precision)
    seen["retain_test"] = seen["retain_test"].draw(ASKED, "asked")
    nodes = forgotten_nodes(dataset, split)
    out = _prompts(classifier, dataset, seen, nodes)
    out |= _searched(classifier, dataset, split, nodes, precision)
    out |= _places(classifier, dataset, seen, nodes)
    out |= _depth(classifier, dataset, split, precision)
    theirs = None
    if reference is not None:
        theirs = to_compare(ZeroShot(reference, dataset), dataset, split, precision)
    # Of the images compared with a reference, those that are looked at here are drawn anew.
    whole = seen | {"retain_test": on_part(classifier, dataset, split, precision)}
    out |= embeddings(whole, model.space, theirs)
    out |= _neighbours(seen)
    if before is not None:
        old = ZeroShot(before, dataset)
        asked = outputs(old, dataset.test_images, dataset.test_labels, split.test_forget, precision)
        out["cka_before_forget"] = linear_cka(seen["forget_test"].features, asked.features)
    out |= relearn_concepts(model, dataset, split, precision)
    out["curvature"] = float(model.space.curv.detach())
    out["scale_image"], out["scale_text"] = (
        float(alpha.detach().exp()) for alpha in (model.visual_alpha, model.textual_alpha)
    )
    out["temperature"] = float(model.temperature.detach())
    return out


def on_part(model: nn.Module, dataset: Captioned, split: Split, precision: str) -> Outputs:
    """What a model makes of all retained test images."""
    return outputs(model, dataset.test_images, dataset.test_labels, split.test, precision)


def strength(
    dataset: Captioned, split: Split, precision: str = "no", validation: bool = False
) -> Callable[[ImageText], dict[str, float]]:
    """A few measures of a model that is being changed: accuracies and the AUC of the concepts' prompts.

    Of at most 500 test images a side, the same each time, for a picture of what a method does at which price, which
    no method may read; or of ``validation`` images, for searches and stopping rules.
    """
    nodes = forgotten_nodes(dataset, split)
    if validation:
        images, labels = dataset.train_images, split.labels
        parts = {"forget_test": split.validation_forget, "retain_test": split.validation}
    else:
        images, labels = dataset.test_images, dataset.test_labels
        parts = {"forget_test": split.test_forget, "retain_test": split.test}
    some = {
        name: index[drawn(len(index), CURVE, "strength", name).to(index.device)]
        for name, index in parts.items()
    }

    def measure(model: ImageText) -> dict[str, float]:
        classifier = ZeroShot(model, dataset)
        seen = {name: outputs(classifier, images, labels, index, precision) for name, index in some.items()}
        return _prompts(classifier, dataset, seen, nodes, words=False)

    return measure


def _prompts(
    classifier: ZeroShot,
    dataset: Captioned,
    seen: dict[str, Outputs],
    nodes: tuple[int, ...],
    words: bool = True,
) -> dict[str, float]:
    """Classification, errors by the tree, and what prompts and other words find."""
    forget, retain = seen["forget_test"], seen["retain_test"]
    tree, model = dataset.tree, classifier.model
    both = forget.join(retain)
    gone = _forgotten_classes(dataset, nodes)
    out = zero_shot(both.logits, both.labels, gone)
    leaf_of = torch.tensor(dataset.leaf_of)
    if words:
        for name, part in (("forget", forget), ("retain", retain)):
            errors = hierarchy_errors(leaf_of[part.logits.argmax(1).cpu()], leaf_of[part.labels.cpu()], tree)
            out |= {f"hierarchy_{name}_{measure}": value for measure, value in errors.items()}
    scores = []
    for node in nodes:
        mine = torch.isin(leaf_of[forget.labels.cpu()], torch.tensor(tree.leaves_of(node)))
        own = forget.take(mine.nonzero().squeeze(1)).join(retain)
        shown = torch.arange(len(own.labels)) < mine.sum()
        found = prompt_scores(model.compare(own.points, classifier.nodes[node][None])[:, 0].cpu(), shown)
        if words:
            found |= _leakage(classifier, dataset, own, shown, node)
        scores.append(found)
    common = set.intersection(*(set(found) for found in scores))
    return out | {key: sum(found[key] for found in scores) / len(scores) for key in sorted(common)}


def _forgotten_classes(dataset: Captioned, nodes: tuple[int, ...]) -> Bool[Tensor, " classes"]:
    leaves = [leaf for node in nodes for leaf in dataset.tree.leaves_of(node)]
    return torch.isin(torch.tensor(dataset.leaf_of), torch.tensor(leaves))


@torch.no_grad()
def _leakage(
    classifier: ZeroShot, dataset: Captioned, own: Outputs, shown: Bool[Tensor, " n"], node: int
) -> dict[str, float]:
    """What each wording of the concept, wordings never trained, its kind, and its siblings find."""
    tree, model = dataset.tree, classifier.model
    kinds = {
        "prompt": dataset.prompts[node],
        "paraphrase": dataset.unseen[node],
        "hypernym": dataset.prompts[list(tree.ancestors(node)[1:-1])].flatten(),
        "sibling": dataset.prompts[list(tree.siblings(node))].flatten(),
    }
    texts = torch.cat(list(kinds.values()))
    with evaluating(model):
        points = model.embed_text(dataset.tokens[texts])
    found = model.compare(own.points, points).cpu()
    columns = torch.arange(len(texts)).split([len(index) for index in kinds.values()])
    return leakage(found, shown, dict(zip(kinds, columns, strict=True)))


@torch.no_grad()
def _searched(
    classifier: ZeroShot, dataset: Captioned, split: Split, nodes: tuple[int, ...], precision: str
) -> dict[str, float]:
    """Recall both ways among the captions of the test images: of the forgotten concepts, and of the rest."""
    model = classifier.model
    some = split.test[drawn(len(split.test), ASKED, "asked").to(split.test.device)]
    index = torch.cat([split.test_forget, some])
    points = outputs(classifier, dataset.test_images, dataset.test_labels, index, precision).points
    statements = dataset.test_captions[index].flatten(1)
    texts = statements.unique()
    texts = texts[texts >= 0]
    with evaluating(model):
        similarity = model.compare(points, model.embed_text(dataset.tokens[texts])).cpu()
    true = positives(statements, texts).cpu()
    of_concept = dataset.about(nodes)[texts].cpu()
    forgotten = torch.arange(len(index)) < len(split.test_forget)
    out: dict[str, float] = {}
    for name, asking, words in (
        ("forget", forgotten, of_concept),
        ("retain", ~forgotten, ~of_concept),
    ):
        # Of a forgotten image the words for the concept are looked for, not that it is a thing.
        found = retrieval(similarity, true & words, images=asking, texts=words & true.any(0))
        out |= {f"{name}_{key}": value for key, value in found.items()}
    return out


def _places(
    classifier: ZeroShot, dataset: Captioned, seen: dict[str, Outputs], nodes: tuple[int, ...]
) -> dict[str, float]:
    """Where forgotten images go, and radii, cones and distortion of texts and images."""
    model, tree = classifier.model, dataset.tree
    space, least = model.space, model.objective.min_radius
    forget, retain = seen["forget_test"], seen["retain_test"]
    leaf_of = torch.tensor(dataset.leaf_of)
    top = torch.arange(len(tree.names))
    for node in nodes:
        top[list(tree.subtree(node))] = node
    leaves = leaf_of[forget.labels.cpu()]
    out = destination(forget.points, top[leaves], classifier.nodes, tree, space, least)
    levels = torch.tensor(tree.depths)
    out |= radii_by_level(classifier.nodes, levels, retain.points, space)
    out |= apertures_by_level(classifier.nodes, levels, space, least)
    for name, part in (("forget", forget), ("retain", retain)):
        found = cones(part.points, leaf_of[part.labels.cpu()], classifier.nodes, tree, space, least)
        out |= {f"{name}_{key}": value for key, value in found.items()}
    return out | gromov(distances(retain.draw(DISTORTED, "distortion").points, space))


@torch.no_grad()
def _depth(classifier: ZeroShot, dataset: Captioned, split: Split, precision: str) -> dict[str, float]:
    """``depth_radius_correlation`` of equally many captions of every level and their images, which stand below all."""
    model = classifier.model
    some = split.test[drawn(len(split.test), DISTORTED, "depth").to(split.test.device)]
    images = outputs(classifier, dataset.test_images, dataset.test_labels, some, precision).points
    captions = dataset.test_captions[some, :, 0]
    level = torch.arange(dataset.levels, device=captions.device).expand_as(captions)
    said = captions >= 0
    with evaluating(model):
        texts = model.embed_text(dataset.tokens[captions[said]])
    depths = torch.cat([level[said], level.new_full((len(images),), dataset.levels)])
    found = depth_radius_correlation(torch.cat([texts, images]), depths, model.space)
    return {} if found is None else {"depth_radius_correlation": found}


def _neighbours(seen: dict[str, Outputs]) -> dict[str, float]:
    """``knn_forget_test_accuracy``: what nearest training images, retained and forgotten, say of forgotten images."""
    known = seen["retain_train"].draw(2000, "known").join(seen["forget_train"].draw(2000, "known"))
    asked = seen["forget_test"]
    return {
        "knn_forget_test_accuracy": knn_accuracy(known.features, known.labels, asked.features, asked.labels)
    }


def relearn_concepts(
    model: ImageText, dataset: Captioned, split: Split, precision: str = "no", seed: int = 0
) -> dict[str, float]:
    """The relearning curve: ``relearn_forget_accuracy_STEPS``, zero-shot accuracy of forgotten test images, percent.

    The attacker has a tenth of the forget pairs, and the retain pairs, and goes on with the loss of training, by
    AdamW; the model itself is not changed. After 5, 10 and 20 steps; Retrain relearns too, so only the distance to
    it tells what had stayed behind. As in :func:`hacore.evaluate.relearning.relearn`.
    """
    few = drawn(len(split.forget), max(2, round(RELEARN_SHARE * len(split.forget))), seed, "relearn")
    batches = PairedBatches(
        dataset.train_images, torch.arange(len(dataset.train_labels), device=split.labels.device),
        split.forget[few.to(split.forget.device)], split.retain, batch_size=32, omega=1, seed=seed,
    )  # fmt: skip
    last = max(RELEARN_STEPS)
    config = TrainConfig(
        epochs=-(-last // len(batches)), lr=RELEARN_LR, optimizer="adamw", schedule="constant",
        freeze_norm=True, precision=precision, seed=seed,
    )  # fmt: skip
    out: dict[str, float] = {}

    def ask(pupil: ImageText, step: int) -> bool:
        if step in RELEARN_STEPS:
            out[f"relearn_forget_accuracy_{step}"] = _forget_accuracy(pupil, dataset, split, precision)
        return step >= last

    fit(
        copy.deepcopy(model), Reading(batches, dataset, seed, split), _relearning, config,
        method="relearn", stop=ask, progress=False,
    )  # fmt: skip
    return out


def _relearning(model: Any, batch: Any) -> Tensor:
    return (model.loss(batch.forget) + model.loss(batch.retain)) / 2


def _forget_accuracy(model: ImageText, dataset: Captioned, split: Split, precision: str) -> float:
    classifier = ZeroShot(model, dataset)
    seen = outputs(classifier, dataset.test_images, dataset.test_labels, split.test_forget, precision)
    right: Int[Tensor, " n"] = seen.logits.argmax(1) == seen.labels
    return 100 * right.double().mean().item()
