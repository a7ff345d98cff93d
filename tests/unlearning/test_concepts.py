"""Forgetting concepts: each method does what it says, to a copy, and reads what it may read."""

import contextlib
import copy
from dataclasses import replace

import pytest
import torch
from tiny_world import tiny_concept_run, tiny_request

from hacore.data import Captioned, Dataset, PairedBatches, Reading, Split, as_float, forgotten_nodes
from hacore.errors import HacoreError
from hacore.evaluate.outputs import evaluating
from hacore.experiments.perform import _in_turn
from hacore.geometry import Space
from hacore.models import HIERARCHY
from hacore.unlearning import AC, HAC, METHODS, HACKeepParent, ImageContrast, NullSpace, Outcome
from hacore.unlearning.concepts import parents_of

CONCEPT = {"ac", "hac", "hac-keep-parent", "image-contrast", "null-space", "retrain-lifted"}
WITHOUT = {f"hac-without-{part}" for part in ("negative", "positive", "preserving", "entailment", "norm")}
GENERIC = {"original", "retrain", "finetune", "gradient-ascent", "neggrad-plus", "l1-sparse"}
STRONG = {"lr": 3e-3, "epochs": 10, "batch_size": 32}


@pytest.fixture(scope="module")
def clip():
    return tiny_request()


@pytest.fixture(scope="module")
def tree():
    """The hierarchy recipe: its cones are narrow enough to be left."""
    return tiny_request("lorentz", objective=HIERARCHY)


@torch.no_grad()
def points(model, request, index=None):
    """Forget images, the text of their concept, that of its parent."""
    data, split = request.dataset, request.split
    (node,) = forgotten_nodes(data, split)
    with evaluating(model):
        images = model.embed(as_float(data.train_images[split.forget if index is None else index]))
        texts = model.embed_text(data.tokens[data.prompts[[node, data.tree.parents[node]], 0]])
    return images, texts[:1], texts[1:]


def true_similarity(model, request):
    """Of forget images to their concept, less that of retain images: not that everything comes or goes."""
    images, text, _ = points(model, request)
    others, *_ = points(model, request, request.split.retain)
    return (model.space.similarity(images, text).mean() - model.space.similarity(others, text).mean()).item()


@torch.no_grad()
def outside(model, request, parent=False):
    """How many radians forget images are outside of the cone, a mean; negative is inside."""
    images, text, above = points(model, request)
    apex = above if parent else text
    angle = model.space.pairwise_exterior_angle(apex, images)[0]
    return (angle - model.space.half_aperture(apex, model.objective.min_radius)).mean().item()


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}


def test_models_of_images_and_texts_are_asked_by_their_methods_only():
    fitting = {name for name, one in METHODS.items() if one.fits("concepts", "image-text")}
    assert fitting == CONCEPT | WITHOUT | GENERIC
    flat = {name for name, one in METHODS.items() if one.fits("concepts", "image-text", "euclidean")}
    assert fitting - flat == WITHOUT | {"hac", "hac-keep-parent"}
    assert not any(METHODS[name].fits("single-class") for name in CONCEPT | WITHOUT)


def test_without_a_part_is_hac_with_that_weight_zero():
    whole = HAC().weights
    for name in WITHOUT:
        part = name.removeprefix("hac-without-")
        assert METHODS[name].weights == replace(whole, **{part: 0.0})
        assert getattr(whole, part) > 0
    flat = AC().weights
    assert (flat.entailment, flat.norm, flat.parent) == (0, 0, 0)
    assert (HACKeepParent().weights.parent, HACKeepParent().weights.norm) == (1, 0)


def test_hac_in_flat_space_is_one_clear_sentence(clip):
    for name in ("hac", "hac-keep-parent", *WITHOUT):
        with pytest.raises(HacoreError, match=rf"{name} needs cones, and euclidean space has none; choose"):
            METHODS[name](clip)


def test_methods_of_classifiers_are_refused(clip):
    with pytest.raises(HacoreError, match="salun answers for models of kind classifier, not image-text"):
        METHODS["salun"](clip)


def test_ac_lowers_the_similarity_of_true_pairs(clip):
    outcome = AC(**STRONG)(clip)
    assert true_similarity(outcome.model, clip) < true_similarity(clip.model, clip) - 0.2
    assert set(outcome.fit.history[-1]) == {
        "epoch", "lr", "loss", "retain", "negative calibration", "positive calibration", "preserving"
    }  # fmt: skip


def test_hac_makes_images_leave_the_cone_of_their_concept(tree):
    outcome = HAC(**STRONG, entailment=10.0)(tree)
    before, after = outside(tree.model, tree), outside(outcome.model, tree)
    assert after > max(before + 0.2, 0.0)
    assert {"entailment calibration", "norm regularisation"} <= set(outcome.fit.history[-1])


def test_keeping_the_parent_ends_in_its_cone_and_outside_of_the_concepts(tree):
    kept = HACKeepParent(**STRONG, entailment=10.0, parent=10.0)(tree).model
    left = HAC(**STRONG, entailment=10.0)(tree).model
    assert outside(kept, tree) > outside(tree.model, tree) + 0.1
    assert outside(kept, tree, parent=True) < 0.05
    assert outside(kept, tree, parent=True) < outside(left, tree, parent=True) - 0.1


def test_image_contrast_moves_images_to_others_and_leaves_texts(clip):
    def to_others(model):
        images, *_ = points(model, clip)
        others, *_ = points(model, clip, clip.split.retain)
        own, rest = model.space.similarity(images, images), model.space.similarity(images, others)
        return (rest.mean() - own.mean()).item()

    after = ImageContrast(**STRONG, weight_ul=3.0)(clip).model
    assert to_others(after) > to_others(clip.model) + 0.1


@pytest.mark.parametrize("name", ["clip", "tree"])
def test_the_null_space_is_exactly_the_direction_of_the_concept(name, request):
    asked = request.getfixturevalue(name)
    model, data = asked.model, asked.dataset
    outcome = NullSpace()(asked)
    with torch.no_grad():
        (node,) = forgotten_nodes(data, asked.split)
        prompts = data.prompts[[node, data.tree.parents[node]]]
        found = model.space.log0(model.embed_mean(data.tokens[prompts])).double()
        own, parent = torch.nn.functional.normalize(found, dim=1)
        unit = torch.nn.functional.normalize(own - (own @ parent) * parent, dim=0)
        images = as_float(data.train_images[:50])
        old, new = (one.space.log0(one.eval().embed(images)).double() for one in (model, outcome.model))
    torch.testing.assert_close(new @ unit, torch.zeros(50).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(new, old - (old @ unit)[:, None] * unit, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(new @ parent, old @ parent, atol=1e-4, rtol=1e-4)
    changed = {key for key, value in weights(outcome.model).items() if not value.equal(weights(model)[key])}
    assert changed == {"visual_proj.weight"}
    assert outcome.fit.steps == 0


def test_several_concepts_take_several_directions(clip):
    data = clip.dataset
    wanted = [data.classes.index(name) for name in ("triangle", "disc", "bolt")]
    several = replace(clip, split=Split.classes(data, wanted, seed=0))
    lost = clip.model.visual_proj.weight - NullSpace()(several).model.visual_proj.weight
    assert torch.linalg.matrix_rank(lost.detach(), atol=1e-4) == 3


def test_the_parent_of_a_class_is_that_of_the_forgotten_concept(clip):
    data = clip.dataset
    node = data.tree.node
    one = parents_of(data, (node("star"), node("triangle")))
    for name, above in (
        ("caltrop", "thing"),
        ("triangle", "polygon"),
        ("square", "polygon"),
        ("disc", "round shape"),
    ):
        assert torch.equal(one[data.classes.index(name)], data.tokens[data.prompts[node(above), 0]])
    with pytest.raises(HacoreError, match="the root of the tree is everything"):
        parents_of(data, (0,))


def listened(monkeypatch):
    """All batches that are read from now on."""
    seen = []
    read = Reading.read

    def listen(self, *arguments):
        seen.append(read(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(Reading, "read", listen)
    return seen


@pytest.mark.parametrize("name", ["retrain-lifted", "retrain"])
def test_a_retrained_model_never_reads_a_forgotten_word(clip, monkeypatch, name):
    loop = replace(clip.training.loop, epochs=1)
    short = replace(clip, training=replace(clip.training, loop=loop))
    seen = listened(monkeypatch)
    METHODS[name](short)
    data = clip.dataset
    concept = data.about(forgotten_nodes(data, clip.split))
    for batch in seen:
        for part in (batch.texts, batch.statements):
            assert not concept[part[part >= 0]].any()
    labels = torch.cat([batch.labels for batch in seen])
    images = (labels == data.classes.index("triangle")).sum().item()
    # Lifting keeps the images, removing the pairs does not; images set aside are never seen.
    assert images == (len(clip.split.forget) if name == "retrain-lifted" else 0)
    assert len(labels) == images + len(clip.split.retain)


QUICK = {name: {"epochs": 1, "batch_size": 32} for name in METHODS if hasattr(METHODS[name], "epochs")}


@pytest.mark.parametrize("name", sorted((CONCEPT | WITHOUT | GENERIC) - {"retrain", "retrain-lifted"}))
def test_the_original_is_never_changed(tree, name):
    before = weights(tree.model)
    few = replace(tree, split=replace(tree.split, retain=tree.split.retain[:64]))
    after = replace(METHODS[name], **QUICK.get(name, {}))(few).model
    assert after is not tree.model
    assert all(value.equal(before[key]) for key, value in weights(tree.model).items())
    changed = any(not value.equal(before[key]) for key, value in weights(after).items())
    assert changed == (name != "original")
    assert all(value.isfinite().all() for value in weights(after).values())


def test_a_watched_answer_is_the_same_answer(clip):
    steps = []
    method = AC(epochs=1, batch_size=8)
    seen = method(replace(clip, watch=lambda model, step: steps.append(step))).model
    plain = method(clip).model
    assert steps == list(range(1, len(steps) + 1))
    assert all(value.equal(weights(plain)[key]) for key, value in weights(seen).items())


def test_negative_weights_are_refused(tree):
    for field in ("negative", "positive", "preserving", "entailment", "norm", "parent"):
        with pytest.raises(HacoreError, match=rf"{field} of the calibration is -1"):
            HAC(**{field: -1.0})(tree)
    with pytest.raises(HacoreError, match="unknown bound"):
        AC(bound="rope")(tree)


def test_without_captions_there_is_no_concept_to_forget(clip):
    bare = Dataset(**{name: getattr(clip.dataset, name) for name in Dataset.__dataclass_fields__})
    for name in ("ac", "null-space", "retrain-lifted"):
        with pytest.raises(HacoreError, match="world has no captions; load it with captions"):
            METHODS[name](replace(clip, dataset=bare))


def test_requests_in_turn_each_take_their_data(clip, monkeypatch):
    asked = []

    class Spy(AC):
        def answer(self, request):
            asked.append(request)
            return Outcome(copy.deepcopy(request.model), request.trained)

    data = clip.dataset
    run = tiny_concept_run(scenario="concepts-in-turn", forget="star,triangle,disc")
    run = replace(run, settings=replace(run.resolved(), unlearning=Spy()))
    names = [name for concept in run.concepts for name in names_below(data, concept)]
    whole = Split.classes(data, [data.classes.index(name) for name in names], seed=0)
    outcome = _in_turn(run, replace(clip, split=whole))
    everything = set(whole.retain.tolist()) | set(whole.forget.tolist())
    gone = set()
    for request, concept in zip(asked, run.concepts, strict=True):
        forget, retain = set(request.split.forget.tolist()), set(request.split.retain.tolist())
        labels = data.train_labels[request.split.forget].tolist()
        assert {data.classes[label] for label in labels} == set(names_below(data, concept))
        gone |= forget
        assert retain == everything - gone, "concepts asked for later are still retained, earlier ones gone"
        assert forgotten_nodes(data, request.split) == (data.tree.node(concept),)
    assert gone == set(whole.forget.tolist())
    assert asked[0].model is clip.model
    assert asked[1].model is not clip.model
    assert outcome.fit.steps == 3 * clip.trained.steps


def names_below(data: Captioned, concept: str) -> list[str]:
    return [data.tree.names[leaf] for leaf in data.tree.leaves_of(data.tree.node(concept))]


@pytest.mark.parametrize("method", [None, AC(), HAC(), HACKeepParent(), ImageContrast()], ids=str)
def test_a_step_derives_its_curvature_once(method, monkeypatch):
    """Of training, where there is no method, and of unlearning: with the loss and the gradients of deriving it anew."""
    request = tiny_request("lorentz")
    model = request.model.train()
    assert model.space.learnable
    split = request.split
    numbers = torch.arange(len(request.captioned.train_labels))
    source = PairedBatches(request.captioned.train_images, numbers, split.forget, split.retain, 8, 1, seed=0)
    pair = next(iter(Reading(source, request.captioned, 0, split).epoch(0)))
    parents = parents_of(request.captioned, forgotten_nodes(request.captioned, split))

    def step():
        model.zero_grad()
        if method is None:
            value = model.loss(pair.retain)
        else:
            value, _ = method.loss(model, pair, *([parents] if isinstance(method, AC) else []))
        value.backward()
        return value, [weight.grad.clone() for weight in model.parameters()]

    count, plain = [], Space._curv
    monkeypatch.setattr(Space, "_curv", lambda self: count.append(1) or plain(self))
    value, gradients = step()
    assert len(count) == 1
    monkeypatch.setattr(Space, "one_curvature", lambda self: contextlib.nullcontext())
    often, slow = step()
    assert len(count) > 4
    assert torch.equal(value, often)
    for one, other in zip(gradients, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
