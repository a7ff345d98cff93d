"""The hierarchy recipe makes a tree that can be seen, and costs little accuracy: one training of it, one of CLIP."""

import pytest
import torch

from hacore.evaluate.concepts import ZeroShot
from hacore.evaluate.cones import cones
from hacore.evaluate.hierarchy import depth_radius_correlation
from hacore.evaluate.outputs import outputs
from hacore.evaluate.zero_shot import zero_shot_accuracy
from hacore.experiments import Run, prepare

SEED = 7  # other than those the recipe was made with and records are of


def trained(space, recipe):
    one = Run(
        scenario="concepts", data="world", recipe=recipe, method="original", space=space, lift="free",
        forget="triangle", seed=SEED,
    )  # fmt: skip
    request = prepare(one)
    classifier = ZeroShot(request.model, request.dataset)
    data = request.dataset
    everything = torch.arange(len(data.test_images))
    return (
        request.model,
        data,
        classifier,
        outputs(classifier, data.test_images, data.test_labels, everything),
    )


@pytest.fixture(scope="module")
def clip():
    return trained("euclidean", "image-text")


@pytest.fixture(scope="module")
def hierarchy():
    return trained("lorentz", "hierarchy")


def test_images_are_in_the_cone_of_their_leaf_and_in_few_others(hierarchy):
    model, data, classifier, seen = hierarchy
    own = torch.tensor(data.leaf_of)[seen.labels]
    found = cones(seen.points, own, classifier.nodes, data.tree, model.space, model.objective.min_radius)
    assert found["in_cone_own"] >= 80
    assert found["in_cone_others"] <= 10


def test_the_more_special_a_text_the_farther_out_and_images_beyond(hierarchy):
    model, data, _, seen = hierarchy
    # One caption of every level for each of 400 images, and the images: equally many of each.
    some = torch.randperm(len(data.test_labels), generator=torch.Generator().manual_seed(0))[:400]
    texts = data.test_captions[some, :, 0]
    assert (texts >= 0).all()
    with torch.no_grad():
        points = model.eval().embed_text(data.tokens[texts.flatten()])
    levels = torch.arange(data.levels).expand_as(texts).flatten()
    depth = torch.cat([levels, torch.full((len(some),), data.levels)])
    assert depth_radius_correlation(torch.cat([points, seen.points[some]]), depth, model.space) >= 0.85


def test_the_tree_costs_at_most_two_points_of_zero_shot_accuracy(clip, hierarchy):
    flat, tree = (zero_shot_accuracy(seen.logits, seen.labels) for *_, seen in (clip, hierarchy))
    assert flat > 80, "CLIP itself has learned something"
    assert tree >= flat - 2
