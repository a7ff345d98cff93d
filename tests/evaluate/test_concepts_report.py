"""All measures of a model that was asked to forget concepts: names, finite numbers, and what moves them."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny_world import tiny_model, tiny_request

from hacore.data import Split, as_float
from hacore.evaluate import evaluate
from hacore.evaluate.concepts import RELEARN_STEPS, ZeroShot, of_concepts, relearn_concepts, strength
from hacore.evaluate.outputs import outputs
from hacore.models import HIERARCHY

BOTH_WAYS = {
    f"{side}_{way}_recall_1" for side in ("forget", "retain") for way in ("image_to_text", "text_to_image")
}
LEAD = {
    "zero_shot_forget_accuracy", "zero_shot_retain_accuracy", "zero_shot_retain_accuracy_among_retain",
    "zero_shot_forget_rank", "prompt_auc", "prompt_separability", "hierarchy_forget_tie", "hierarchy_retain_jaccard",
    "knn_forget_test_accuracy", "delta_relative", "curvature", "scale_image", "scale_text", "temperature",
    "radius_image_median", "radius_text_0_median", "radius_text_2_median", "cka_before_forget", "cka_retain",
    "depth_radius_correlation", *(f"relearn_forget_accuracy_{steps}" for steps in RELEARN_STEPS),
}  # fmt: skip
CONES = {"forget_in_cone_own", "forget_in_cone_parent", "retain_in_cone_own", "aperture_2_median"}


@pytest.fixture(scope="module")
def tree():
    return tiny_request("lorentz", objective=HIERARCHY)


@pytest.fixture(scope="module")
def found(tree):
    return evaluate(tree.model, tree.dataset, tree.split, tree.model, before=tree.model)


@pytest.fixture(scope="module")
def flat():
    return tiny_request("euclidean", epochs=1)


def test_all_numbers_are_finite_and_named(found):
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
    assert found.keys() >= LEAD | CONES | BOTH_WAYS, (LEAD | CONES | BOTH_WAYS) - found.keys()


def test_shares_are_percentages(found):
    for name, value in found.items():
        if "accuracy" in name or "recall" in name or "in_cone" in name or name == "prompt_auc":
            assert 0 <= value <= 100, name


def test_a_model_is_like_itself(found):
    assert found["cka_before_forget"] == pytest.approx(100, abs=1e-3)
    assert found["cka_retain"] == pytest.approx(100, abs=1e-3)


def test_what_needs_another_model_is_absent_without_it(flat):
    found = of_concepts(flat.model, flat.dataset, flat.split)
    assert not any(name.startswith("cka") for name in found)
    assert not any("cone" in name or "aperture" in name for name in found), "flat space has no cones"
    assert LEAD - found.keys() == {"cka_before_forget", "cka_retain"}
    assert all(math.isfinite(value) for value in found.values())


def test_groups_and_several_concepts_are_measured_too(flat):
    data = flat.dataset
    star = [data.classes.index(data.tree.names[leaf]) for leaf in data.tree.leaves_of(data.tree.node("star"))]
    several = Split.classes(data, [*star, data.classes.index("disc"), data.classes.index("ring")], seed=0)
    found = of_concepts(flat.model, data, several, flat.model, before=flat.model)
    assert all(math.isfinite(value) for value in found.values())
    assert found.keys() >= LEAD
    assert "zero_shot_forget_accuracy_among_forget" in found


def test_a_trained_model_knows_the_concept_and_a_random_one_does_not(tree):
    measure = strength(tree.dataset, tree.split)
    trained, random = measure(tree.model), measure(tiny_model("lorentz", HIERARCHY, seed=5))
    assert trained["prompt_auc"] > max(95, random["prompt_auc"] + 10)
    assert trained["zero_shot_forget_accuracy"] > random["zero_shot_forget_accuracy"] + 50
    assert trained["zero_shot_forget_rank"] < random["zero_shot_forget_rank"] - 1


def test_strength_is_the_same_each_time_and_leaves_the_model_as_it_was(tree):
    measure = strength(tree.dataset, tree.split)
    model = copy.deepcopy(tree.model).train()
    before = {key: value.clone() for key, value in model.state_dict().items() if torch.is_tensor(value)}
    state = torch.get_rng_state()
    first, second = measure(model), measure(model)
    assert first == second
    assert model.training
    assert torch.equal(torch.get_rng_state(), state), "a method that is watched must go on as if it were not"
    assert all(value.equal(before[key]) for key, value in model.state_dict().items() if key in before)
    assert {
        "zero_shot_forget_accuracy",
        "zero_shot_retain_accuracy_among_retain",
        "prompt_auc",
    } <= first.keys()


def test_strength_for_searches_reads_no_test_image(tree):
    blind = replace(tree.dataset, test_images=torch.zeros_like(tree.dataset.test_images))
    ours, theirs = (strength(data, tree.split, validation=True)(tree.model) for data in (tree.dataset, blind))
    assert ours == theirs
    test = strength(blind, tree.split)(tree.model)
    assert test != ours


@pytest.mark.parametrize("name", ["tree", "flat"])
def test_zero_shot_is_a_comparison_with_each_class_prompts(name, request):
    asked = request.getfixturevalue(name)
    model, data = asked.model, asked.dataset
    classifier = ZeroShot(model, data)
    images = as_float(data.test_images[:8])
    with torch.no_grad():
        model.eval()
        logits = classifier(images)
        for label, leaf in enumerate(data.leaf_of):
            prompt = model.embed_mean(data.tokens[data.prompts[leaf]][None])
            expected = model.compare(model.embed(images), prompt)[:, 0]
            torch.testing.assert_close(logits[:, label], expected, atol=1e-4, rtol=1e-4)
    seen = outputs(classifier, data.test_images, data.test_labels, torch.arange(8))
    torch.testing.assert_close(seen.logits, logits, atol=1e-4, rtol=1e-4)
    assert classifier.nodes.shape[0] == len(data.tree)


def test_relearning_changes_a_copy_and_is_seeded(tree):
    before = {key: value.clone() for key, value in tree.model.state_dict().items() if torch.is_tensor(value)}
    first = relearn_concepts(tree.model, tree.dataset, tree.split)
    assert set(first) == {f"relearn_forget_accuracy_{steps}" for steps in RELEARN_STEPS}
    assert first == relearn_concepts(tree.model, tree.dataset, tree.split)
    assert all(value.equal(before[key]) for key, value in tree.model.state_dict().items() if key in before)
