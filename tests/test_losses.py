"""contrastive_unlearning against a slow loop of the published algorithm, closed forms and gradients."""

import math

import pytest
import torch

from hacore.errors import HacoreError
from hacore.geometry import SPACES, Euclidean, space
from hacore.losses import ContrastiveLoss, contrastive_unlearning, info_nce

ALL = [*(space(name) for name in SPACES), Euclidean(similarity="dot"), Euclidean(similarity="distance")]
IDS = [*SPACES, "dot", "distance"]


def batch(manifold, classes=3, seed=0, forget=7, retain=11):
    g = torch.Generator().manual_seed(seed)

    def points(n):
        return manifold.exp0(torch.randn(n, 5, generator=g, dtype=torch.float64))

    labels = torch.randint(classes, (forget + retain,), generator=g)
    return points(forget), labels[:forget], points(retain), labels[forget:]


def slow(z_forget, y_forget, z_retain, y_retain, manifold, temperature):
    """Eq. 5 and Eq. 6, term by term."""
    losses = []
    for z, y in zip(z_forget, y_forget, strict=True):
        s = [manifold.similarity(z[None], other[None]).squeeze() / temperature for other in z_retain]
        positives = [a for a, label in zip(s, y_retain, strict=True) if label == y]
        negatives = [a for a, label in zip(s, y_retain, strict=True) if label != y]
        if not negatives:
            continue
        denominator = sum(a.exp() for a in positives) if positives else torch.tensor(float(len(negatives)))
        losses.append(-sum(torch.log(a.exp() / denominator) for a in negatives) / len(negatives))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("manifold", ALL, ids=IDS)
@pytest.mark.parametrize("classes", [2, 3, 40])  # 40: most anchors have no positive, Eq. 6
def test_equals_the_published_sum(manifold, classes):
    arguments = (*batch(manifold, classes), manifold, 0.7)
    torch.testing.assert_close(contrastive_unlearning(*arguments), slow(*arguments), rtol=1e-10, atol=1e-10)


MIXED = {  # labels of the anchors, and of the retained points
    "with and without positives": ([0, 7, 1, 2, 8, 0, 7], [0, 1, 1, 2, 0, 1, 3, 3, 0, 1, 2]),
    "without positives or without negatives": ([0, 7, 0, 8, 9, 7, 7], [0] * 11),
    "none with positives": ([7, 8, 9, 7, 7, 8, 9], [0, 1, 1, 2, 0, 1, 3, 3, 0, 1, 2]),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("labels", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("temperature", [0.05, 0.7])
def test_value_and_gradients_are_those_of_the_loop(name, labels, temperature):
    """Also of the curvature. The loop takes each similarity from its pair alone: no matrix product."""
    manifold = space(name, 0.6, learnable=True).double()
    z_forget, _, z_retain, _ = batch(manifold)
    y_forget, y_retain = map(torch.tensor, labels)
    leaves = [z.detach().requires_grad_() for z in (z_forget, z_retain)] + [manifold.theta]

    class Pairs:
        def similarity(self, x, y):
            return torch.cosine_similarity(x, y) if name == "euclidean" else -manifold.dist(x, y)

    def results(loss, geometry):
        value = loss(leaves[0], y_forget, leaves[1], y_retain, geometry, temperature)
        # Times 3: the gradient that comes from above must reach the points.
        return [value, *torch.autograd.grad(3 * value, leaves, allow_unused=True)]

    for ours, theirs in zip(results(contrastive_unlearning, manifold), results(slow, Pairs()), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_nothing_is_read_back_from_the_device():
    """A host that reads a value waits for its accelerator; on the meta device it cannot, and raises."""
    similarity = torch.ones(4, 6, device="meta", requires_grad=True)
    labels = torch.zeros(10, dtype=torch.long, device="meta")
    ContrastiveLoss.apply(similarity, labels[:4], labels[4:], 1.0).backward()
    assert similarity.grad.shape == similarity.shape


@pytest.mark.parametrize("manifold", ALL, ids=IDS)
def test_equal_embeddings_have_a_closed_form(manifold):
    # All similarities are equal to s, so Eq. 5 is -s + s + log|P| and Eq. 6 is -s + log|N|.
    z = manifold.exp0(torch.ones(8, 3, dtype=torch.float64))
    s = manifold.similarity(z[:1], z[:1]).item()
    retain = torch.tensor([0, 0, 0, 1, 1])
    with_positives = contrastive_unlearning(z[:3], torch.zeros(3).long(), z[3:], retain, manifold, 1.0)
    without = contrastive_unlearning(z[:3], torch.full((3,), 2), z[3:], retain, manifold, 1.0)
    assert with_positives.item() == pytest.approx(math.log(3), abs=1e-6)  # pairwise rounds near zero
    assert without.item() == pytest.approx(-s + math.log(5), abs=1e-6)


@pytest.mark.parametrize("manifold", ALL, ids=IDS)
@pytest.mark.parametrize("classes", [3, 40])
def test_gradients(manifold, classes):
    z_forget, y_forget, z_retain, y_retain = batch(manifold, classes, forget=3, retain=6)
    z_forget.requires_grad_()
    z_retain.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: contrastive_unlearning(a, y_forget, b, y_retain, manifold, 0.7), (z_forget, z_retain)
    )


@pytest.mark.parametrize("manifold", ALL, ids=IDS)
def test_the_constant_of_eq_6_has_no_gradient(manifold):
    z_forget, _, z_retain, y_retain = batch(manifold)
    z_forget.requires_grad_()
    loss = contrastive_unlearning(z_forget, torch.full((7,), 9), z_retain, y_retain, manifold, 0.7)
    plain = -(manifold.similarity(z_forget, z_retain) / 0.7).mean()
    torch.testing.assert_close(*(torch.autograd.grad(value, z_forget)[0] for value in (loss, plain)))
    assert loss.item() - plain.item() == pytest.approx(math.log(11))


@pytest.mark.parametrize("manifold", ALL, ids=IDS)
def test_a_step_pulls_towards_negatives_and_pushes_from_positives(manifold):
    z_forget, _, z_retain, _ = batch(manifold, forget=1, retain=2, seed=3)
    z = z_forget.clone().requires_grad_()
    y_retain = torch.tensor([0, 1])
    contrastive_unlearning(z, torch.tensor([0]), z_retain, y_retain, manifold, 1.0).backward()
    with torch.no_grad():
        before, after = (manifold.similarity(p, z_retain)[0] for p in (z, z - 1e-4 * z.grad))
    assert after[1] - after[0] > before[1] - before[0]


def test_anchors_without_negatives_count_for_nothing():
    z_forget, _, z_retain, _ = batch(Euclidean())
    y = torch.zeros(11).long()
    assert contrastive_unlearning(z_forget, y[:7], z_retain, y, Euclidean(), 1.0).item() == 0
    y_forget = torch.tensor([0, 1, 1, 1, 1, 1, 1])
    some = contrastive_unlearning(z_forget, y_forget, z_retain, y, Euclidean(), 1.0)
    rest = contrastive_unlearning(z_forget[1:], y_forget[1:], z_retain, y, Euclidean(), 1.0)
    torch.testing.assert_close(some, rest)


@pytest.mark.parametrize("manifold", ALL, ids=IDS)
def test_float32_agrees_with_float64_and_extremes_stay_finite(manifold):
    z_forget, y_forget, z_retain, y_retain = batch(manifold)
    exact = contrastive_unlearning(z_forget, y_forget, z_retain, y_retain, manifold, 0.5)
    single = contrastive_unlearning(z_forget.float(), y_forget, z_retain.float(), y_retain, manifold, 0.5)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)
    z = manifold.project(1e3 * z_forget.float()).requires_grad_()
    loss = contrastive_unlearning(z, y_forget, z.detach(), y_forget, manifold, 1e-2)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_forget": torch.ones(0, 3), "y_forget": torch.ones(0).long()}, "at least one"),
        ({"y_retain": torch.ones(3).long()}, "one label per embedding"),
        ({"temperature": 0.0}, "must be positive"),
        ({"temperature": math.nan}, "must be positive"),
    ],
)
def test_bad_input_gets_one_sentence(change, message):
    arguments = {
        "z_forget": torch.ones(2, 3),
        "y_forget": torch.ones(2).long(),
        "z_retain": torch.ones(4, 3),
        "y_retain": torch.ones(4).long(),
        "space": Euclidean(),
        "temperature": 1.0,
    }
    with pytest.raises(HacoreError, match=message):
        contrastive_unlearning(**arguments | change)


@pytest.mark.parametrize("manifold", ALL, ids=IDS)
def test_info_nce_is_the_mean_of_both_directions(manifold):
    x, _, y, _ = batch(manifold, forget=6, retain=6)
    terms = []
    for i in range(6):
        row = [manifold.similarity(x[i : i + 1], other[None]).squeeze() / 0.5 for other in y]
        column = [manifold.similarity(other[None], y[i : i + 1]).squeeze() / 0.5 for other in x]
        for line in (row, column):
            terms.append(-torch.log(line[i].exp() / sum(s.exp() for s in line)))
    torch.testing.assert_close(info_nce(x, y, manifold, 0.5), torch.stack(terms).mean())


@pytest.mark.parametrize("manifold", ALL, ids=IDS)
def test_info_nce_of_identical_points_is_log_n(manifold):
    x = manifold.exp0(torch.ones(8, 5, dtype=torch.float64).requires_grad_())
    value = info_nce(x, x.clone(), manifold, 0.1)
    torch.testing.assert_close(value.item(), math.log(8))


def test_info_nce_of_well_separated_pairs_is_zero():
    x = torch.eye(4, dtype=torch.float64)
    assert info_nce(x, x, Euclidean(), 0.01).item() < 1e-40


@pytest.mark.parametrize(
    ("first", "second", "temperature", "message"),
    [(3, 4, 0.5, "as many first as second"), (1, 1, 0.5, "at least two"), (3, 3, 0.0, "temperature")],
)
def test_info_nce_refuses_what_it_cannot_compare(first, second, temperature, message):
    with pytest.raises(HacoreError, match=message):
        info_nce(torch.ones(first, 2), torch.ones(second, 2), Euclidean(), temperature)
