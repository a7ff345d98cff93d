"""Hyperbolic Alignment Calibration: each term against loops and by hand, and what bounds them."""

import math
from dataclasses import replace

import pytest
import torch

from hacore.errors import HacoreError
from hacore.geometry import SPACES, Euclidean, Lorentz, space
from hacore.losses import (
    Weights,
    clip_loss,
    cone_calibration,
    entailment,
    hyperbolic_alignment_calibration,
    negative_calibration,
    norm_regularisation,
    parent_calibration,
    performance_preserving,
    positive_calibration,
    similarity_floor,
)

SPACE = pytest.mark.parametrize("name", SPACES)
HYPERBOLIC = pytest.mark.parametrize("name", ["lorentz", "poincare"])
SCALE = 5.0
NAMES = {
    "negative": "negative calibration",
    "positive": "positive calibration",
    "preserving": "preserving",
    "entailment": "entailment calibration",
    "norm": "norm regularisation",
    "parent": "parent",
}
ALL = {"negative": 0.7, "positive": 1.3, "preserving": 0.4, "entailment": 2.0, "norm": 0.3, "parent": 0.9}
FLAT = {name: 0.0 if name in ("entailment", "norm") else weight for name, weight in ALL.items()}
OFF = dict.fromkeys(ALL, 0.0)


def weights_of(name):
    return FLAT if name == "euclidean" else ALL


def points(manifold, *counts, seed=0, d=4):
    g = torch.Generator().manual_seed(seed)
    made = manifold.exp0(torch.randn(sum(counts), d, generator=g, dtype=torch.float64)).detach()
    return [part.clone().requires_grad_() for part in made.split(counts)]


def batch(manifold, seed=0):
    """Four forget images with their texts and parents, and candidates: those texts and three of retain pairs."""
    images, texts, parents, retained = leaves = points(manifold, 4, 4, 4, 3, seed=seed)
    true = torch.eye(4, 7, dtype=torch.bool)
    true[0, 2] = true[2, 0] = True  # two forget images of one caption
    arguments = {
        "retain_loss": retained.square().sum(),
        "images": images,
        "texts": texts,
        "candidates": torch.cat([texts, retained]),
        "true": true,
        "space": manifold,
        "logit_scale": SCALE,
        "parents": parents,
    }
    return leaves, arguments


def similar(manifold, x, y):
    """The similarity of one pair, by the definition: no matrix product."""
    return torch.cosine_similarity(x, y, dim=0) if manifold.name == "euclidean" else -manifold.dist(x, y)


def slow_terms(manifold, images, texts, candidates, true, parents, weights):
    """The terms in loops over forget images, with the means over them."""
    found = {name: [] for name in NAMES.values()}
    every = [[similar(manifold, x, t) for t in candidates] for x in images]
    wrong = [
        s for row, known in zip(every, true, strict=True) for s, k in zip(row, known, strict=True) if not k
    ]
    floor = (sum(wrong) / len(wrong)).detach()
    if manifold.name != "euclidean":
        floor = max(1.5 * floor, -0.75 * 12 / math.sqrt(manifold.curv))
    if weights.bound == "none":
        floor = torch.tensor(-math.inf)
    for i, (x, t, p) in enumerate(zip(images, texts, parents, strict=True)):
        own = similar(manifold, x, t)
        against = [s for s, k in zip(every[i], true[i], strict=True) if not k]
        spread = torch.log(sum((SCALE * s).exp() for s in every[i]))
        found["negative calibration"].append(-SCALE * sum(against) / len(against))
        found["positive calibration"].append(SCALE * (own if floor.isinf() else (own - floor).clamp(min=0)))
        found["preserving"].append(torch.maximum(spread, math.log(len(candidates)) + SCALE * floor))
        if manifold.name == "euclidean":
            found["parent"].append(1 - torch.cosine_similarity(x, p, dim=0))
            continue
        root = math.sqrt(manifold.curv)
        apertures = [(0.2 / torch.sinh(root * manifold.radius(a))).clamp(max=1).asin() for a in (t, p)]
        angles = [manifold.exterior_angle(a, x) for a in (t, p)]
        found["entailment calibration"].append((apertures[0] + weights.margin - angles[0]).clamp(min=0))
        found["parent"].append((angles[1] - apertures[1]).clamp(min=0))
        found["norm regularisation"].append((manifold.radius(x) - weights.target).square())
    return {name: torch.stack(terms).mean() for name, terms in found.items() if terms}


@SPACE
def test_texts_among_the_candidates_need_no_second_look(name):
    manifold = space(name).double()
    leaves, arguments = batch(manifold)
    weights = Weights(**weights_of(name))
    gradients = [
        torch.autograd.grad(
            hyperbolic_alignment_calibration(**arguments, weights=weights, own=own)[0],
            leaves,
            retain_graph=True,
        )
        for own in (None, torch.arange(4))
    ]
    for anew, read in zip(*gradients, strict=True):
        torch.testing.assert_close(anew, read, rtol=1e-9, atol=1e-9)


def test_calibration_compares_as_the_model_does():
    manifold = space("lorentz", 1.0).double()
    (images, texts, _, _), arguments = batch(manifold)

    def angle(points, others):
        return -manifold.pairwise_exterior_angle(others, points).T

    weights = Weights(**OFF | {"negative": 1.0, "positive": 1.0})
    _, parts = hyperbolic_alignment_calibration(**arguments, weights=weights, compare=angle)
    every = torch.stack(
        [
            torch.stack([-manifold.exterior_angle(t, x) for t in arguments["candidates"]])
            for x in images.detach()
        ]
    ).detach()
    wrong = ~arguments["true"]
    floor = every[wrong].mean()  # an angle has a largest value: a wrong pair's is where a true pair's may end
    own = torch.stack([-manifold.exterior_angle(t, x) for t, x in zip(texts, images, strict=True)])
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(
        parts["positive calibration"], SCALE * (own - floor).clamp(min=0).mean(), **close
    )
    mean = torch.stack([row[one].mean() for row, one in zip(every, wrong, strict=True)]).mean()
    torch.testing.assert_close(parts["negative calibration"], -SCALE * mean, **close)


@SPACE
@pytest.mark.parametrize("bound", ["margin", "none"])
@pytest.mark.parametrize("curv", [0.5, 2.0])
def test_calibration_is_the_slow_loop(name, bound, curv):
    manifold = space(name, curv).double()
    leaves, arguments = batch(manifold)
    weights = Weights(**weights_of(name), margin=1.5, target=0.3, bound=bound)
    total, parts = hyperbolic_alignment_calibration(**arguments, weights=weights)
    given = {k: arguments[k] for k in ("images", "texts", "candidates", "true", "parents")}
    slow = slow_terms(manifold, **given, weights=weights)
    assert list(parts) == ["retain", *slow]
    for part, expected in slow.items():
        torch.testing.assert_close(parts[part], expected, rtol=1e-9, atol=1e-9)
    expected = arguments["retain_loss"] + sum(
        weight * slow[NAMES[part]] for part, weight in weights_of(name).items() if weight
    )
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)
    gradients = (torch.autograd.grad(value, leaves, retain_graph=True) for value in (total, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "off"), [(name, off) for name in SPACES for off in ALL if weights_of(name)[off]]
)
def test_a_weight_of_zero_removes_its_term_and_nothing_else(name, off):
    weights = weights_of(name)
    manifold = space(name).double()
    _, arguments = batch(manifold)
    on, parts = hyperbolic_alignment_calibration(**arguments, weights=Weights(**weights, margin=1.5))
    without, left = hyperbolic_alignment_calibration(
        **arguments, weights=Weights(**weights | {off: 0.0}, margin=1.5)
    )
    assert NAMES[off] not in left
    assert {k: v.item() for k, v in left.items()} == {
        k: v.item() for k, v in parts.items() if k != NAMES[off]
    }
    torch.testing.assert_close(without, on - weights[off] * parts[NAMES[off]])


@SPACE
def test_without_weights_the_loss_is_that_of_the_retained_pairs(name):
    _, arguments = batch(space(name).double())
    total, parts = hyperbolic_alignment_calibration(**arguments | {"parents": None}, weights=Weights(**OFF))
    assert total is arguments["retain_loss"]
    assert parts == {"retain": total}


def test_terms_by_hand():
    """Distances 1, 2, 4 of the first image, 3, 3, 5 of the second, at a temperature of 0.5."""
    s = -torch.tensor([[1.0, 2.0, 4.0], [3.0, 3.0, 5.0]])
    true = torch.tensor([[True, False, False], [True, True, True]])
    torch.testing.assert_close(negative_calibration(s, true, 0.5), torch.tensor([6.0, 0.0]))
    own = torch.tensor([-1.0, -3.0])
    torch.testing.assert_close(positive_calibration(own, -2.0, 0.5), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(positive_calibration(own, -math.inf, 0.5), torch.tensor([-2.0, -6.0]))
    spread = [
        math.log(math.exp(-2) + math.exp(-4) + math.exp(-8)),
        math.log(2 * math.exp(-6) + math.exp(-10)),
    ]
    torch.testing.assert_close(performance_preserving(s, -math.inf, 0.5), torch.tensor(spread))
    least = math.log(3) - 2 * 2.5
    torch.testing.assert_close(performance_preserving(s, -2.5, 0.5), torch.tensor([spread[0], least]))
    x = Lorentz().exp0(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    torch.testing.assert_close(norm_regularisation(x, 1.0, Lorentz()), torch.tensor([4.0, 0.25]))


def test_floor_by_hand():
    """1.5 times the mean of wrong distances, at most 0.75 · 12 / √c; of cosines their mean. Without a gradient."""
    wrong = torch.tensor(-2.0, requires_grad=True)
    assert similarity_floor(wrong, Lorentz()).item() == -3
    assert similarity_floor(torch.tensor(-20.0), Lorentz()).item() == -9
    assert similarity_floor(torch.tensor(-20.0), Lorentz(4.0)).item() == -4.5
    assert similarity_floor(torch.tensor(-0.3), Euclidean()).item() == pytest.approx(-0.3)
    assert not similarity_floor(wrong, Lorentz()).requires_grad


def test_cones_by_hand():
    """A text where sinh r = 0.4, K = 0.1: 30 degrees; an image straight ahead is held, one behind is out."""
    manifold = Lorentz()
    text = torch.tensor([[0.4, 0.0], [0.4, 0.0]])
    image = torch.tensor([[2.0, 0.0], [0.1, 0.0]])
    sixth = math.pi / 6
    torch.testing.assert_close(cone_calibration(text, image, manifold, 0.2), torch.tensor([sixth + 0.2, 0.0]))
    held = parent_calibration(text, image, manifold)
    torch.testing.assert_close(held, torch.tensor([0.0, 5 * sixth]), atol=1e-6, rtol=0)
    torch.testing.assert_close(held, entailment(text, image, manifold))
    cosine = parent_calibration(text, torch.tensor([[2.0, 0.0], [0.0, -3.0]]), Euclidean())
    torch.testing.assert_close(cosine, torch.tensor([0.0, 1.0]))


@SPACE
def test_gradients_of_the_whole(name):
    manifold = space(name)
    leaves, arguments = batch(manifold)
    weights = Weights(**weights_of(name), margin=1.5)

    def loss(images, texts, parents, retained):
        changed = {"retain_loss": retained.sum(), "images": images, "texts": texts, "parents": parents}
        # A fixed floor: that of a batch has no gradient, but a difference quotient would see it move.
        return hyperbolic_alignment_calibration(**arguments | changed, weights=weights, floor=-2.0)[0]

    arguments["candidates"] = arguments["candidates"].detach()
    assert torch.autograd.gradcheck(loss, leaves)


@SPACE
@pytest.mark.parametrize(("part", "sign"), [("positive", -1), ("negative", 1), ("parent", 1)])
def test_the_forces(name, part, sign):
    """A step along a calibration makes true pairs less alike, or wrong ones or parents more."""
    manifold = space(name).double()
    (images, texts, parents, retained), arguments = batch(manifold)
    weights = Weights(**OFF | {part: 1.0})
    total, _ = hyperbolic_alignment_calibration(
        **arguments | {"retain_loss": torch.zeros(())}, weights=weights
    )
    moved = images - 1e-4 * torch.autograd.grad(total, images)[0]

    def alike(x):
        if part == "negative":
            return manifold.similarity(x, torch.cat([texts, retained]))[~arguments["true"]].mean()
        if part == "parent" and name != "euclidean":
            return -manifold.exterior_angle(parents, x).mean()
        return manifold.paired_similarity(x, texts if part == "positive" else parents).mean()

    assert sign * (alike(moved) - alike(images)).item() > 1e-7


@HYPERBOLIC
def test_an_image_leaves_the_cone_of_its_text_and_stays_in_its_parents(name):
    """Forget the dog, keep the animal: from inside of both cones, by descent on the image alone."""
    manifold = space(name).double()
    ray = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    parent, text = manifold.exp0(0.4 * ray), manifold.exp0(1.0 * ray)
    tangent = (2.0 * ray + torch.tensor([[0.0, 0.02]])).requires_grad_()
    weights = Weights(**OFF | {"entailment": 1.0, "parent": 1.0}, margin=0.05)

    def angles(image):
        own = manifold.exterior_angle(text, image) - manifold.half_aperture(text)
        return own.item(), (manifold.exterior_angle(parent, image) - manifold.half_aperture(parent)).item()

    assert max(angles(manifold.exp0(tangent))) < 0
    optimiser = torch.optim.Adam([tangent], lr=0.02)
    for _ in range(100):
        image = manifold.exp0(tangent)
        total, _ = hyperbolic_alignment_calibration(
            torch.zeros(()),
            image,
            text,
            text,
            torch.ones(1, 1, dtype=torch.bool),
            manifold,
            1.0,
            weights,
            parent,
        )
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    own, parents = angles(manifold.exp0(tangent))
    assert own > 0
    assert parents < 0


@SPACE
def test_the_temperature_is_a_constant(name):
    """Else the loss could be lowered without moving a point."""
    _, arguments = batch(space(name).double())
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    weights = Weights(**weights_of(name))
    total, _ = hyperbolic_alignment_calibration(**arguments | {"logit_scale": scale}, weights=weights)
    expected, _ = hyperbolic_alignment_calibration(**arguments, weights=weights)
    torch.testing.assert_close(total, expected)
    assert torch.autograd.grad(total, scale, allow_unused=True) == (None,)


@SPACE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_stay_finite(name, dtype):
    """Images that are their texts and parents, at the origin and at the edge, under autocast."""
    manifold = space(name)
    g = torch.Generator().manual_seed(1)
    v = torch.randn(8, 5, generator=g) * torch.tensor([0, 1e-20, 1e-3, 1, 1, 5, 1e3, 1e4])[:, None]
    made = manifold.exp0(v).to(dtype)
    x, t, p = (made.clone().requires_grad_() for _ in range(3))
    for bound in ("margin", "none"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            total, parts = hyperbolic_alignment_calibration(
                torch.zeros(()), x, t, t, torch.eye(8, dtype=torch.bool), manifold, 100.0,
                Weights(**weights_of(name), bound=bound), p,
            )  # fmt: skip
            total.backward()
        assert total.dtype == torch.float32
        assert all(part.isfinite() for part in [total, *parts.values()])
    assert all(leaf.grad.isfinite().all() for leaf in (x, t, p))


@SPACE
def test_an_image_of_which_everything_is_true_has_nothing_wrong(name):
    _, arguments = batch(space(name).double())
    everything = torch.ones(4, 7, dtype=torch.bool)
    total, parts = hyperbolic_alignment_calibration(**arguments | {"true": everything}, weights=Weights())
    assert total.isfinite()
    assert parts["negative calibration"].item() == 0


def descend(name, weights, steps=500, scale=10.0):
    """Images, texts and parents as free parameters, beside retained pairs; the largest radius of a forget image."""
    manifold = space(name)
    g = torch.Generator().manual_seed(0)
    free = torch.randn(20, 4, generator=g).requires_grad_()
    true = torch.eye(4, 8, dtype=torch.bool)
    true[0, 1] = True
    optimiser = torch.optim.Adam([free], lr=0.1)
    farthest = 0.0
    for _ in range(steps):
        images, texts, parents, kept, said = manifold.exp0(free).split(4)
        total, _ = hyperbolic_alignment_calibration(
            clip_loss(kept, said, manifold, scale), images, texts, torch.cat([texts, said]), true, manifold, scale,
            weights, parents,
        )  # fmt: skip
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        assert total.isfinite()
        assert free.grad.isfinite().all()
        farthest = max(farthest, manifold.radius(images.detach()).max().item())
    return farthest


# Every pair of terms in all four combinations of 0 and 10, the orthogonal array of eight runs without that of no
# weight at all, and all at 1.
GRID = [
    (
        "lorentz",
        dict(zip(ALL, (10.0 * (bin(run & mask).count("1") % 2) for mask in (1, 2, 4, 3, 5, 6)), strict=True)),
    )
    for run in range(1, 8)
]
GRID += [
    ("poincare", dict.fromkeys(ALL, 1.0)),
    ("euclidean", {k: 10.0 if v else 0.0 for k, v in FLAT.items()}),
]


@pytest.mark.parametrize(
    ("name", "weights"), GRID, ids=["-".join([name, *(f"{v:g}" for v in w.values())]) for name, w in GRID]
)
def test_no_weights_send_points_to_the_edge(name, weights):
    """In flat space, which has none, cosines let only the lengths of vectors drift."""
    edge = 50 if name == "euclidean" else 0.9 * space(name).max_radius
    assert descend(name, Weights(**weights)) < edge


def test_without_the_bound_points_fly_to_the_edge():
    """What the floor is for: the same descent, positive calibration alone, raw; and no error warns of it."""
    edge = Lorentz().max_radius
    assert descend("lorentz", Weights(**OFF | {"positive": 1.0}, bound="none"), steps=200) > 0.99 * edge
    assert descend("lorentz", Weights(**OFF | {"positive": 1.0}), steps=200) < 0.9 * edge


def changed(**changes):
    """A call with good arguments, but for these."""
    weights = Weights(**changes.pop("weights", {"negative": 1.0}))
    _, arguments = batch(changes.get("space", Lorentz()))
    return hyperbolic_alignment_calibration(**arguments | changes, weights=weights)


TEXTS = torch.zeros(3, 4).double()
REFUSED = {
    "negative weight": (lambda: Weights(norm=-1.0), "norm of the calibration is -1.0"),
    "infinite weight": (lambda: Weights(positive=math.inf), "positive of the calibration is inf"),
    "margin that is no number": (lambda: Weights(margin=math.nan), "margin of the calibration is nan"),
    "unknown bound": (lambda: Weights(**{"bound": "soft"}), "unknown bound 'soft'"),
    "no images": (lambda: changed(images=TEXTS[:0]), "0 forget images and 7 candidate texts"),
    "no candidates": (lambda: changed(candidates=TEXTS[:0]), "4 forget images and 0 candidate texts"),
    "texts that do not pair up": (lambda: changed(texts=TEXTS), "4 forget images came with 3 texts"),
    "parents that do not pair up": (lambda: changed(parents=TEXTS), "4 forget images came with 3 parents"),
    "mask of another shape": (lambda: changed(true=torch.eye(4, dtype=torch.bool)), r"of shape \(4, 4\)"),
    "no parents": (
        lambda: changed(parents=None, weights={"parent": 1.0}),
        "needs the text of each concept's parent",
    ),
    "scale 0": (lambda: changed(logit_scale=0.0), "logit scale must be positive"),
    "cones in flat space": (
        lambda: changed(space=Euclidean(), weights={"entailment": 1.0}),
        "euclidean space has no cones and no root",
    ),
    "a root in flat space": (
        lambda: changed(space=Euclidean(), weights={"norm": 1.0}),
        "no cones and no root",
    ),
    "flat distances": (lambda: changed(space=Euclidean(similarity="distance")), "takes cosines"),
    "min_radius 0": (lambda: changed(min_radius=0.0, weights={"entailment": 1.0}), "min_radius 0.0"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_one_sentence(call, message):
    with pytest.raises(HacoreError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_weights_are_checked_and_vary():
    assert replace(Weights(), positive=3.0).positive == 3
    with pytest.raises(HacoreError, match="preserving of the calibration is -2"):
        replace(Weights(), preserving=-2.0)
