"""What a model knows of concepts that it was asked to forget, by held-out pairs of images and texts alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hacore import train
from hacore.data import Captioned, Split, forgotten_nodes
from hacore.evaluate.concepts import ZeroShot
from hacore.evaluate.cones import inside
from hacore.evaluate.outputs import evaluating, outputs, wide
from hacore.evaluate.retrieval import retrieval
from hacore.evaluate.zero_shot import prompt_auc, zero_shot
from hacore.geometry import Hyperbolic
from hacore.losses import positives
from hacore.models import ImageText

TEXTS = 256  # read at a time

# Measure -> what it is called in the report, in the order of the report; percent unless the name has another unit.
NAMES = {
    "prompt_auc": "prompt finds its concept, AUC",
    "paraphrase_auc": "other wordings find it, AUC",
    "zero_shot_forget_accuracy": "forget images, zero-shot accuracy",
    "zero_shot_retain_accuracy": "retain images, zero-shot accuracy",
    "zero_shot_retain_accuracy_among_retain": "the same, over retained concepts only",
    "forget_image_to_text_recall_5": "forget image to text, recall@5",
    "forget_text_to_image_recall_5": "forget text to image, recall@5",
    "retain_image_to_text_recall_5": "retain image to text, recall@5",
    "retain_text_to_image_recall_5": "retain text to image, recall@5",
    "forget_agreement": "similarity of forget pairs, deviations",
    "retain_agreement": "similarity of retain pairs, deviations",
    "forget_in_cone": "forget images in the cone of their text",
    "retain_in_cone": "retain images in the cone of their text",
    "radius_prompt": "radius of the concept's prompt, distance",
    "aperture_prompt": "half-aperture of its cone, degrees",
    "radius_forget": "radius of forget images, distance",
    "radius_retain": "radius of retain images, distance",
}
PERCENT = tuple(
    name for name in NAMES if not name.startswith(("radius", "aperture")) and "agreement" not in name
)


@torch.no_grad()
def measures(model: ImageText, dataset: Captioned, split: Split) -> dict[str, float]:
    """What a model knows of the forgotten concepts, and of the rest, by the held-out pairs.

    In percent: ``prompt_auc``, of "a photo of a dog" against retained images, the mean over concepts, and
    ``prompt_auc_CONCEPT`` where there are several; ``paraphrase_auc``, of wordings that no caption uses; zero-shot
    accuracies over the concepts and "other" (:func:`hacore.evaluate.zero_shot.zero_shot`); recall both ways among all
    held-out pairs (``forget_...``, ``retain_...``). ``forget_agreement`` and ``retain_agreement`` are how far the mean
    similarity of true pairs lies above that of mismatched ones, in standard deviations of these. In hyperbolic space,
    the shares of images in the cone of their text, and median radii; ``aperture_prompt`` is in degrees.
    """
    precision = train.fast_precision()
    classifier = ZeroShot(model, dataset)
    index = torch.cat([split.test_forget, split.test])
    seen = outputs(classifier, dataset.test_images, dataset.test_labels, index, precision)
    forget = torch.arange(len(index)) < len(split.test_forget)
    gone = torch.zeros(len(dataset.classes), dtype=torch.bool)
    gone[list(split.forget_classes)] = True
    out = {name: value for name, value in zero_shot(seen.logits, seen.labels, gone).items() if name in NAMES}
    if (~gone).sum() == 1:  # over one label nobody can be wrong
        out.pop("zero_shot_retain_accuracy_among_retain")
    nodes = forgotten_nodes(dataset, split)
    out |= _prompts(classifier, dataset, seen.points, seen.labels, forget, nodes)
    statements = dataset.test_captions[index].flatten(1)
    numbers = statements.unique()
    numbers = numbers[numbers >= 0]
    with evaluating(model):
        texts = torch.cat([model.embed_text(part) for part in dataset.tokens[numbers].split(TEXTS)])
    similarity = wide(model.compare(seen.points, texts))
    true = positives(statements, numbers).cpu()
    about = dataset.about(nodes)[numbers].cpu()
    wrong = similarity[~true]
    within = None
    if isinstance(model.space, Hyperbolic):
        least = model.objective.min_radius
        within = inside(seen.points, texts, model.space, least).cpu()
        prompts = classifier.nodes[list(nodes)]
        out["radius_prompt"] = _median(model.space.radius(prompts))
        out["aperture_prompt"] = _median(model.space.half_aperture(prompts, least).rad2deg())
    for name, asking, words in (("forget", forget, about), ("retain", ~forget, ~about)):
        recall = retrieval(similarity, true, images=asking, texts=words)
        out |= {f"{name}_{key}": value for key, value in recall.items()}
        own = true & asking[:, None]
        out[f"{name}_agreement"] = ((similarity[own].mean() - wrong.mean()) / wrong.std()).item()
        if within is not None:
            out[f"{name}_in_cone"] = 100 * within[own].double().mean().item()
            out[f"radius_{name}"] = _median(model.space.radius(seen.points).cpu()[asking])
    return out


def _prompts(
    classifier: ZeroShot,
    dataset: Captioned,
    points: Tensor,
    labels: Tensor,
    forget: Tensor,
    nodes: Sequence[int],
) -> dict[str, float]:
    """AUCs of the prompts of each forgotten concept, and of unseen wordings, against retained images."""
    model, labels = classifier.model, labels.cpu()
    aucs, others = {}, []
    with evaluating(model):
        unseen = [model.embed_text(dataset.tokens[dataset.unseen[node]]) for node in nodes]
    for node, wordings in zip(nodes, unseen, strict=True):
        mine = labels == dataset.leaf_of.index(node)
        some = mine | ~forget
        found = wide(model.compare(points, torch.cat([classifier.nodes[node][None], wordings])))[some]
        scores = [prompt_auc(column, mine[some]) for column in found.unbind(1)]
        aucs[f"prompt_auc_{dataset.tree.names[node]}"] = scores[0]
        others += scores[1:]
    out = {"prompt_auc": sum(aucs.values()) / len(aucs)} | (aucs if len(aucs) > 1 else {})
    return out | ({"paraphrase_auc": sum(others) / len(others)} if others else {})


def _median(values: Tensor) -> float:
    return values.double().median().item()
