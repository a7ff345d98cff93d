"""Measures of alignment: hand-computed values in every space, a brute-force threshold, views that are what they say."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from hacore.data import Augment, Dataset, Split, as_float
from hacore.errors import HacoreError
from hacore.evaluate import alignment
from hacore.evaluate.attacks import auc
from hacore.geometry import space

NAMES = ["euclidean", "lorentz", "poincare"]


class Tiny(nn.Module):
    """Features by a random map that shares batch statistics in training mode, points by another."""

    def __init__(self, name="lorentz", pixels=64, seed=0):
        super().__init__()
        stream = torch.Generator().manual_seed(seed)
        self.space = space(name)
        self.norm = nn.BatchNorm1d(pixels)
        self.first = torch.randn(pixels, 8, generator=stream) / 8
        self.second = torch.randn(8, 4, generator=stream) / 8

    def features(self, images):
        return (self.norm(images.flatten(1)) @ self.first).tanh()

    def embed(self, images):
        return self.space.exp0(self.features(images) @ self.second)


def some_data(n=60, test=40):
    stream = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (n + test, 1, 8, 8), generator=stream).to(torch.uint8)
    labels = torch.arange(n + test) % 2
    return Dataset("noise", images[:n], labels[:n], images[n:], labels[n:], ("a", "b"))


def on_a_line(name, *places):
    """Points of a geodesic through the origin: their distances are differences of their places."""
    where = space(name)
    line = torch.tensor(places)
    return where.exp0(torch.stack([line, torch.zeros(len(places))], dim=1)), where


@pytest.mark.parametrize("name", ["lorentz", "poincare"])
def test_alignment_of_hyperbolic_points_by_hand(name):
    first, where = on_a_line(name, 0.0, 0.5, -1.0)
    second, _ = on_a_line(name, 0.1, 1.0, -1.0)
    assert alignment.alignment(first, second, where).tolist() == pytest.approx([-0.1, -0.5, 0], abs=1e-5)
    expected = torch.tensor([[-0.1, -1.0, -1.0], [-0.4, -0.5, -1.5], [-1.1, -2.0, 0.0]])
    torch.testing.assert_close(alignment.alignment_matrix(first, second, where), expected, rtol=0, atol=1e-5)


def test_alignment_of_cosines_by_hand():
    # (1, 0) and (3, 4): 0.6; (0, 2) and (3, 4): 0.8.
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    where = space("euclidean")
    assert alignment.alignment(first, second, where).tolist() == pytest.approx([0.6, 0.8])
    matrix = alignment.alignment_matrix(first, second, where)
    assert matrix.tolist() == [pytest.approx([0.6, 0.6]), pytest.approx([0.8, 0.8])]


@pytest.mark.parametrize("name", NAMES)
def test_alignment_is_the_diagonal_of_its_matrix(name):
    where = space(name)
    x, y = (where.random(20, 5, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    torch.testing.assert_close(
        alignment.alignment(x, y, where),
        alignment.alignment_matrix(x, y, where).diagonal(),
        rtol=0,
        atol=1e-5,
    )


def test_views_that_do_not_pair_up():
    where = space("euclidean")
    for function in (alignment.alignment, alignment.alignment_matrix):
        with pytest.raises(HacoreError, match="one view has 3 images and the other 2"):
            function(torch.zeros(3, 2), torch.zeros(2, 2), where)
        with pytest.raises(HacoreError, match="2 and 1 dimensions"):
            function(torch.zeros(3, 2), torch.zeros(3, 1), where)


def test_uniformity_by_hand():
    # On the sphere (lengths do not matter) two chords of sqrt 2 and one of 2.
    points = torch.tensor([[5.0, 0.0], [0.0, 0.2], [0.0, -1.0]])
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert alignment.uniformity(points, space("euclidean")) == pytest.approx(expected, rel=1e-6)
    # On a geodesic: distances 0.5, 1 and 1.5, not normalised.
    expected = math.log(sum(math.exp(-2 * d * d) for d in (0.5, 1.0, 1.5)) / 3)
    for name in ("lorentz", "poincare"):
        points, where = on_a_line(name, 0.0, 0.5, -1.0)
        assert alignment.uniformity(points, where) == pytest.approx(expected, rel=1e-4)
        assert alignment.uniformity(points[:1].repeat(4, 1), where) == pytest.approx(0, abs=1e-6)
        with pytest.raises(HacoreError, match="at least two images"):
            alignment.uniformity(points[:1], where)
    far, where = on_a_line("lorentz", 0.0, 11.0)
    assert alignment.uniformity(far, where) == pytest.approx(-242, rel=1e-4)  # e^-242 is below float32


@pytest.mark.parametrize("name", NAMES)
def test_view_agreement_is_the_mean_over_pairs(name):
    where = space(name)
    points = torch.stack([where.random(7, 3, generator=torch.Generator().manual_seed(k)) for k in range(5)])
    expected = torch.zeros(7)
    for i in range(5):
        for j in range(i):
            expected += where.similarity(points[i], points[j]).diagonal() / 10
    torch.testing.assert_close(alignment.view_agreement(points, where), expected, rtol=0, atol=1e-5)
    with pytest.raises(HacoreError, match="at least two views"):
        alignment.view_agreement(points[:1], where)


def test_threshold_by_hand():
    assert alignment.threshold(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.4])) == pytest.approx(0.6)
    # One member among non-members: cuts 0.25 (2/2 and 1/3 right) and 0.75 (1/2 and 3/3); the second is better.
    members, others = torch.tensor([0.3, 1.0]), torch.tensor([0.2, 0.4, 0.5])
    assert alignment.threshold(members, others) == pytest.approx(0.75)
    # Nothing to tell: all are called members.
    assert alignment.threshold(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 1
    assert alignment.threshold(torch.tensor([0.0]), torch.tensor([5.0])) == 0
    # Two floats without one in the middle: the cut still separates them.
    low = torch.tensor([1.0]).double()
    high = torch.nextafter(low, low + 1)
    assert alignment.threshold(high, low) == high.item()


@pytest.mark.parametrize("seed", range(20))
def test_threshold_is_that_of_a_brute_force_search(seed):
    stream = torch.Generator().manual_seed(seed)
    # Whole numbers, so that there are ties, within sides and across.
    members = torch.randint(0, 12, (5 + seed,), generator=stream).double() + 2
    others = torch.randint(0, 12, (9,), generator=stream).double()
    scores = sorted({*members.tolist(), *others.tolist()})
    cuts = [scores[0]] + [(a + b) / 2 for a, b in pairwise(scores)]

    def called_right(cut):
        return sum(m >= cut for m in members.tolist()) * 9 + sum(o < cut for o in others.tolist()) * len(
            members
        )

    best = max(called_right(cut) for cut in cuts)
    assert alignment.threshold(members, others) == next(cut for cut in cuts if called_right(cut) == best)


@pytest.mark.parametrize("bad", [torch.tensor([]), torch.tensor([0.0, torch.nan])])
def test_threshold_of_no_scores(bad):
    with pytest.raises(HacoreError, match="finite scores of members"):
        alignment.threshold(bad, torch.zeros(2))
    with pytest.raises(HacoreError, match="finite scores of non-members"):
        alignment.threshold(torch.zeros(2), bad)
    with pytest.raises(HacoreError, match="finite scores of forgotten"):
        alignment.encoder_membership(bad, torch.ones(2), torch.zeros(2))


def test_encoder_membership_by_hand():
    # The cut is 0.6. Forget images: one above. Against unseen ones, pairs won: 0.9 both, 0.5 both, 0.05 none,
    # 0.15 one: 5 of 8. With strangers at 0.95 and 0.1: 1 + 1 + 0 + 1 = 3 of 8.
    forget = torch.tensor([0.9, 0.5, 0.05, 0.15])
    retain, unseen = torch.tensor([0.8, 0.9]), torch.tensor([0.1, 0.4])
    found = alignment.encoder_membership(forget, retain, unseen)
    assert found == pytest.approx(
        {"emia_forget_nonmember_rate": 75, "emia_auc": 62.5, "emia_retain_auc": 100}
    )
    strangers = torch.tensor([0.95, 0.1])
    assert alignment.encoder_membership(forget, retain, unseen, strangers)["emia_auc"] == 37.5


def test_views_are_of_the_images_asked_for_and_of_the_layer():
    data, model = some_data(), Tiny()
    index = torch.tensor([3, 0, 7])
    augment = Augment("simclr-grey", 1)
    points = alignment.views(model, data.train_images, index, augment, 3)
    assert points.shape == (3, 3, 4)
    model.eval()
    for view in range(3):
        varied = augment(as_float(data.train_images[index]), view)
        torch.testing.assert_close(points[view], model.embed(varied))
    features = alignment.views(model, data.train_images, index, augment, 2, layer="features")
    torch.testing.assert_close(features[1], model.features(augment(as_float(data.train_images[index]), 1)))
    assert not torch.equal(points[0], points[1])
    assert torch.equal(points, alignment.views(model, data.train_images, index, augment, 3))
    other = alignment.views(model, data.train_images, index, Augment("simclr-grey", 2), 3)
    assert not torch.equal(points, other)


def test_views_of_many_images_differ_from_batch_to_batch(monkeypatch):
    data, model = some_data(), Tiny()
    monkeypatch.setattr(alignment, "AUGMENTED", 4)
    augment, same = Augment("simclr-grey", 0), torch.zeros(12, dtype=torch.long)
    seen = alignment.views(model, data.train_images, same, augment, 3).reshape(36, 4)
    # One image, 36 variations, of which a few are the same by chance; views or batches of one step make 12.
    assert len(seen.unique(dim=0)) > 24
    model.train()
    before = model.norm.running_mean.clone()
    alignment.views(model, data.train_images, same, augment, 2)
    assert model.training
    assert torch.equal(model.norm.running_mean, before)


def test_views_that_cannot_be_made():
    data, model = some_data(), Tiny()
    index, augment = torch.arange(3), Augment("simclr-grey")
    with pytest.raises(HacoreError, match="unknown layer 'head'"):
        alignment.views(model, data.train_images, index, augment, 2, layer="head")
    with pytest.raises(HacoreError, match="no images"):
        alignment.views(model, data.train_images, index[:0], augment, 2)
    for wrong in ((augment, 1), (Augment("none"), 5)):
        with pytest.raises(HacoreError, match="cannot be compared"):
            alignment.views(model, data.train_images, index, *wrong)


@pytest.mark.parametrize("name", NAMES)
def test_representation_of_a_model_is_finite_and_seeded(name):
    data = some_data()
    split = Split.samples(data, count=10)
    found = alignment.representation(Tiny(name), data, split, views=3)
    attacks = {"emia_forget_nonmember_rate", "emia_auc", "emia_retain_auc"}
    assert set(found) == {
        *attacks, *(f"features_{attack}" for attack in attacks), "alignment_forget", "alignment_retain",
        "alignment_test", "features_alignment_forget", "uniformity_test",
    }  # fmt: skip
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert found == alignment.representation(Tiny(name), data, split, views=3)
    assert found != alignment.representation(Tiny(name), data, split, views=3, seed=1)


def test_representation_compares_like_with_like(monkeypatch):
    data = some_data()
    asked = []
    monkeypatch.setattr(alignment, "auc", lambda a, b: asked.append((len(a), len(b))) or auc(a, b))
    split = Split.single_class(data, 1)
    alignment.representation(Tiny(), data, split, views=2, most=15)
    forget, retain, test = (min(15, len(part)) for part in (split.forget, split.retain, split.test_forget))
    assert asked == [(forget, test), (retain, 15)] * 2
    assert len(split.test) == 20  # of which 15 were drawn


def test_representation_finds_members_whose_views_agree():
    data = some_data()
    split = Split.samples(data, count=20)

    class Lit(Tiny):
        def features(self, images):
            return super().features(images) + 1  # a black image has features, too

    # Retain images are black: their views are the same whatever the augmentation does.
    images = data.train_images.clone()
    images[split.retain] = 0
    black = Dataset("black", images, data.train_labels, data.test_images, data.test_labels, data.classes)
    found = alignment.representation(Lit("euclidean"), black, split, views=4)
    assert found["emia_retain_auc"] > 99
    assert found["emia_forget_nonmember_rate"] > 90
    assert abs(found["emia_auc"] - 50) < 20
    assert found["alignment_retain"] > found["alignment_test"]
