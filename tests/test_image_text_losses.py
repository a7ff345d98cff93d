"""Contrast of images and texts, cones, the radius floor: slow loops, closed forms, two processes."""

import datetime
import math
import time

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hacore.errors import HacoreError
from hacore.geometry import SPACES, Euclidean, Lorentz, Poincare, space
from hacore.losses import (
    angle_loss,
    angle_similarity,
    clip_loss,
    entailment,
    exclusion,
    image_text_contrast,
    info_nce,
    positives,
    radius_floor,
)

SPACE = pytest.mark.parametrize("name", SPACES)
HYPERBOLIC = pytest.mark.parametrize("name", ["lorentz", "poincare"])
PATIENCE = 120  # seconds for two processes


def points(manifold, *counts, seed=0, d=4):
    g = torch.Generator().manual_seed(seed)
    made = manifold.exp0(torch.randn(sum(counts), d, generator=g, dtype=torch.float64)).detach()
    return [part.clone().requires_grad_() for part in made.split(counts)]


def similar(manifold, image, text, by_angle=False):
    """The similarity of one pair, by the definition: no matrix product."""
    if by_angle:
        return -manifold.exterior_angle(text, image)
    if manifold.name == "euclidean":
        return torch.cosine_similarity(image, text, dim=0)
    return -manifold.dist(image, text)


def slow_contrast(images, texts, manifold, scale, true, by_angle=False):
    """CLIP's loss in loops; true(i, j) says whether text j is true of image i."""
    logits = [[scale * similar(manifold, x, t, by_angle) for t in texts] for x in images]
    columns = [[row[j] for row in logits] for j in range(len(texts))]

    def direction(rows, match):
        losses = []
        for i, row in enumerate(rows):
            total = torch.log(sum(value.exp() for value in row))
            chosen = [total - value for j, value in enumerate(row) if match(i, j)]
            losses.append(sum(chosen) / len(chosen))
        return sum(losses) / len(losses)

    return (direction(logits, true) + direction(columns, lambda j, i: true(i, j))) / 2


# Of five images and seven texts: images 0 and 3 share their caption 10, and text 10 is drawn twice.
STATEMENTS = torch.tensor([[10, 1, 5], [11, 1, -1], [12, 2, -1], [10, 1, 6], [13, 2, -1]])
TEXTS = torch.tensor([10, 11, 12, 10, 13, 1, 2])


def test_positives_are_the_texts_that_are_true():
    found = positives(STATEMENTS, torch.cat([TEXTS, torch.tensor([-1])]))
    for i, statements in enumerate(STATEMENTS.tolist()):
        for j, text in enumerate([*TEXTS.tolist(), -1]):
            assert found[i, j] == (text != -1 and text in statements)
    assert found[0].tolist() == [True, False, False, True, False, True, False, False]


FORMS = [(name, False) for name in SPACES] + [("lorentz", True), ("poincare", True)]


@pytest.mark.parametrize(("name", "by_angle"), FORMS)
@pytest.mark.parametrize("scale", [0.3, 2.0, 20.0])
def test_contrast_is_the_slow_loop(name, by_angle, scale):
    manifold = space(name, 0.7).double()
    leaves = images, texts = points(manifold, 5, 7)
    loss = angle_loss if by_angle else clip_loss
    true = positives(STATEMENTS, TEXTS)
    slow = slow_contrast(images, texts, manifold, scale, lambda i, j: bool(true[i, j]), by_angle)
    expected = torch.autograd.grad(slow, leaves)
    for arguments in ({"positive": true}, {"statements": STATEMENTS, "text_ids": TEXTS}):
        ours = loss(images, texts, manifold, scale, **arguments)
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-9)
        for mine, theirs in zip(torch.autograd.grad(ours, leaves), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


@SPACE
def test_with_one_text_each_it_is_info_nce(name):
    manifold = space(name, 0.7).double()
    images, texts = points(manifold, 6, 6)
    expected = info_nce(images, texts, manifold, 0.2)
    torch.testing.assert_close(clip_loss(images, texts, manifold, 5.0), expected)
    torch.testing.assert_close(clip_loss(images, texts, manifold, torch.tensor(5.0).double()), expected)
    eye = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(clip_loss(images, texts, manifold, 5.0, eye), expected)


def test_contrast_by_hand():
    """Two images of one caption and one of another: the average of log-probabilities, not the log of their sum."""
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    positive = torch.tensor([[True, True], [True, False], [False, True]])
    log = math.log
    rows = [log(math.e + 1) - 0.5, log(math.exp(2) + 1) - 2, log(2)]
    columns = [log(math.e + math.exp(2) + 1) - 1.5, log(3)]
    expected = (sum(rows) / 3 + sum(columns) / 2) / 2
    assert image_text_contrast(logits, positive).item() == pytest.approx(expected)


def test_the_least_value_is_the_mean_log_of_the_number_of_positives():
    positive = torch.tensor(
        [[True, True, False, False], [True, True, False, False]] + [[False] * 2 + [True] * 2] * 2
    )
    assert image_text_contrast(100.0 * positive, positive).item() == pytest.approx(math.log(2), abs=1e-5)


@SPACE
def test_true_texts_of_others_are_no_negatives(name):
    """With one caption for two images the diagonal pushes their texts away; the matrix of what is true does not."""
    manifold = space(name).double()
    (x,) = points(manifold, 1)
    same = x.detach().repeat(2, 1).requires_grad_()
    every = torch.ones(2, 2, dtype=torch.bool)
    loss = clip_loss(same, same.detach(), manifold, 3.0, every)
    assert loss.item() == pytest.approx(math.log(2))
    assert (torch.autograd.grad(loss, same)[0].abs() < 1e-12).all()


@SPACE
def test_gradients(name):
    manifold = space(name)
    leaves = points(manifold, 5, 7)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    true = positives(STATEMENTS, TEXTS)
    assert torch.autograd.gradcheck(lambda x, t, s: clip_loss(x, t, manifold, s, true), (*leaves, scale))
    if name != "euclidean":
        assert torch.autograd.gradcheck(lambda x, t, s: angle_loss(x, t, manifold, s, true), (*leaves, scale))


@SPACE
def test_identical_points_have_a_closed_form_and_finite_gradients(name):
    manifold = space(name)
    x = manifold.exp0(torch.ones(6, 3, dtype=torch.float64)).requires_grad_()
    losses = [clip_loss] if name == "euclidean" else [clip_loss, angle_loss]
    for loss in losses:
        value = loss(x, x.detach(), manifold, 10.0)
        assert value.item() == pytest.approx(math.log(6), abs=1e-9)
        assert torch.autograd.grad(value, x)[0].isfinite().all()


def test_angle_similarity_is_the_angle_at_the_text():
    manifold = Lorentz().double()
    texts, images = points(manifold, 3, 5)
    found = angle_similarity(texts, images, manifold)
    assert found.shape == (5, 3)
    torch.testing.assert_close(found, -manifold.exterior_angle(texts, images[:, None]))


@HYPERBOLIC
@pytest.mark.parametrize("slack", [0.7, 1.0])
def test_entailment_and_exclusion_are_the_published_hinges(name, slack):
    c = 0.7
    manifold = space(name, c).double()
    parents, shift = points(manifold, 30, 30)
    around = manifold.exp0(1.5 * manifold.log0(parents) + 0.3 * manifold.log0(shift))
    leaves = parents, others = [p.detach().requires_grad_() for p in (parents, around)]
    expected, excluded = [], []
    for parent, other in zip(parents, others, strict=True):
        radius = manifold.radius(parent)
        aperture = torch.asin((2 * 0.4 / torch.sinh(math.sqrt(c) * radius)).clamp(max=1))
        angle = manifold.exterior_angle(parent, other)
        expected.append((angle - slack * aperture).clamp(min=0))
        excluded.append((aperture + 0.2 - angle).clamp(min=0))
    inside = entailment(parents, others, manifold, 0.4, slack)
    outside = exclusion(parents, others, manifold, 0.2, 0.4)
    for mine, slow in ((inside, torch.stack(expected)), (outside, torch.stack(excluded))):
        assert 0 < (slow > 0).sum() < 30  # both sides of the hinge are there
        torch.testing.assert_close(mine, slow)
        gradients = (torch.autograd.grad(value.mean(), leaves, retain_graph=True) for value in (mine, slow))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_cones_by_hand():
    """A parent where sinh r = 0.4, K = 0.1: a half-aperture of 30 degrees; back to the origin is 180."""
    manifold = Lorentz()
    parent = torch.tensor([[0.4, 0.0], [0.4, 0.0]])
    other = torch.tensor([[2.0, 0.0], [0.1, 0.0]])
    sixth = math.pi / 6
    torch.testing.assert_close(
        entailment(parent, other, manifold), torch.tensor([0.0, 5 * sixth]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        entailment(parent, other, manifold, slack=0.5), torch.tensor([0.0, 5.5 * sixth]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(exclusion(parent, other, manifold, 0.1), torch.tensor([sixth + 0.1, 0.0]))


@HYPERBOLIC
@pytest.mark.parametrize("curv", [0.3, 1.0, 2.0])
def test_at_the_floor_the_aperture_is_the_angle(name, curv):
    manifold = space(name, curv).double()
    angle = torch.tensor([math.pi / 2, 1.1, 0.6, 0.2], dtype=torch.float64)
    floor = torch.asinh(2 * 0.15 / angle.sin()) / math.sqrt(curv)
    ray = torch.tensor([0.6, 0.8], dtype=torch.float64)
    at = manifold.exp0(floor[:, None] * ray)
    torch.testing.assert_close(manifold.half_aperture(at, 0.15), angle, rtol=1e-6, atol=1e-6)
    assert (radius_floor(at, angle, manifold, 0.15) < 1e-20).all()
    below, above = manifold.exp0((floor - 0.1)[:, None] * ray), manifold.exp0((floor + 0.1)[:, None] * ray)
    torch.testing.assert_close(radius_floor(below, angle, manifold, 0.15), torch.full((4,), 0.01).double())
    assert (radius_floor(above, angle, manifold, 0.15) == 0).all()
    x = (at / 2).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: radius_floor(p, angle, manifold, 0.15), (x,))


@HYPERBOLIC
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_stay_finite(name, dtype):
    """The origin, coincident points, the edge, under autocast."""
    manifold = space(name, learnable=True)
    g = torch.Generator().manual_seed(1)
    v = torch.randn(8, 5, generator=g) * torch.tensor([0, 1e-20, 1e-3, 1, 1, 5, 1e3, 1e4])[:, None]
    made = manifold.exp0(v).to(dtype).detach()
    x, y = made.clone().requires_grad_(), made.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        values = [
            clip_loss(x, y, manifold, 100.0),
            angle_loss(x, y, manifold, 100.0),
            entailment(x, y, manifold).mean(),
            exclusion(x, y, manifold).mean(),
            entailment(x, y.flip(0), manifold).mean(),
            exclusion(x, y.flip(0), manifold).mean(),
            radius_floor(x, torch.full((8,), 0.3), manifold).mean(),
        ]
        sum(values).backward()
    assert all(value.dtype == torch.float32 and value.isfinite() for value in values)
    assert all(leaf.grad.isfinite().all() for leaf in (x, y, manifold.theta))


class Net(nn.Module):
    """Images and texts as points of a space of learned curvature, and a learned scale."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.space = space(name, 0.5, learnable=name != "euclidean")
        self.images = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.texts = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images, texts):
        return self.space.exp0(self.images(images)), self.space.exp0(self.texts(texts)), self.scale * 1


def batch():
    """Eight images; captions are shared within and between the halves that two processes get."""
    g = torch.Generator().manual_seed(1)
    text_ids = torch.tensor([3, 4, 3, 5, 4, 6, 7, 3])
    return torch.randn(8, 6, generator=g), torch.randn(8, 5, generator=g), text_ids


def told(name, rows, model, net, loss, by):
    images, texts, text_ids = (part[rows] for part in batch())
    images, texts, scale = model(images, texts)
    statements = torch.stack([text_ids, torch.where(text_ids == 3, 4, -1)], dim=1)
    arguments = {"statements": statements, "text_ids": text_ids} if by == "statements" else {}
    return loss(images, texts, net.space, scale, **arguments)


def step(name, loss, by, rows, wrap=lambda net: net):
    """The loss and the gradients of one step on these rows of the batch."""
    net = Net(name)
    model = wrap(net)  # kept until the gradients are there: they are averaged only as long as it lives
    value = told(name, rows, model, net, LOSSES[loss], by)
    value.backward()
    out = {"loss": value} | {key: p.grad for key, p in net.named_parameters()}
    return {key: tensor.detach() for key, tensor in out.items()}


LOSSES = {"clip": clip_loss, "angle": angle_loss}
CASES = [
    (name, loss, by)
    for name, loss in (("euclidean", "clip"), ("lorentz", "clip"), ("lorentz", "angle"))
    for by in ("diagonal", "statements")
]


def refused(call):
    try:
        call()
    except HacoreError as error:
        return str(error)
    return None


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )
    found = {case: step(*case, slice(4 * rank, 4 * rank + 4), DistributedDataParallel) for case in CASES}
    few, eye = torch.randn(3 + rank, 3), torch.eye(4, dtype=torch.bool)
    found["refused"] = [
        refused(lambda: clip_loss(few, few, Euclidean(), 1.0)),
        refused(lambda: clip_loss(torch.randn(4, 3), torch.randn(4, 3), Euclidean(), 1.0, eye)),
    ]
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    running = torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2, join=False)
    began = time.monotonic()
    try:
        while not running.join(timeout=1):
            assert time.monotonic() - began < PATIENCE, "the processes wait for each other"
    finally:
        for process in running.processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_are_one(both, case):
    """The mean loss over processes, and the gradients as data-parallel training averages them."""
    one = step(*case, slice(None))
    first, second = (found[case] for found in both)
    assert set(one) == set(first) == set(second)
    for key, expected in one.items():
        if key != "loss":
            assert torch.equal(first[key], second[key])
            assert expected.abs().max() > 1e-4
        torch.testing.assert_close((first[key] + second[key]) / 2, expected, rtol=1e-5, atol=1e-6)
    # Without gathering the test could not fail: then the losses would be those of the halves.
    alone = step(*case, slice(0, 4))["loss"]
    assert first["loss"] - alone > 0.05


def test_processes_refuse_what_they_cannot_compare(both):
    for found in both:
        shapes, matrix = found["refused"]
        assert "different shapes, (3, 3), (4, 3)" in shapes
        assert "give statements and text_ids" in matrix


X, Y = torch.randn(4, 3), torch.randn(4, 3)
IDS, SAID = torch.arange(4), torch.arange(4)[:, None]
EYE = torch.eye(4, dtype=torch.bool)
NOTHING = EYE & (IDS > 0)
REFUSED = {
    "no pairs": (lambda: clip_loss(X, Y[:3], Euclidean(), 1.0), "4 images came with 3 texts"),
    "other dimensions": (lambda: clip_loss(X, Y[:, :2], Euclidean(), 1.0), "3 and 2 dimensions"),
    "one pair": (lambda: clip_loss(X[:1], Y[:1], Euclidean(), 1.0), "at least two images"),
    "scale 0": (lambda: clip_loss(X, Y, Euclidean(), 0.0), "logit scale must be positive, not 0.0"),
    "scale that is no number": (
        lambda: clip_loss(X, Y, Euclidean(), math.nan),
        "logit scale must be positive",
    ),
    "ids only": (lambda: clip_loss(X, Y, Euclidean(), 1.0, text_ids=IDS), "give both or neither"),
    "twice": (
        lambda: clip_loss(X, Y, Euclidean(), 1.0, EYE, statements=SAID, text_ids=IDS),
        "both as a matrix and as statements",
    ),
    "matrix that does not fit": (lambda: image_text_contrast(torch.ones(4, 3), EYE), "one entry for each"),
    "image without a text": (
        lambda: clip_loss(X, Y, Euclidean(), 1.0, NOTHING),
        "1 of 4 images have no positive",
    ),
    "text without an image": (
        lambda: clip_loss(X, Y, Euclidean(), 1.0, torch.tensor([[True] * 3 + [False]] * 4)),
        "1 of 4 texts have no positive",
    ),
    "angles in flat space": (lambda: angle_loss(X, Y, Euclidean(), 1.0), "no entailment cones"),
    "cones in flat space": (lambda: entailment(X, Y, Euclidean()), "no entailment cones"),
    "outside of cones in flat space": (lambda: exclusion(X, Y, Euclidean()), "no entailment cones"),
    "a floor in flat space": (lambda: radius_floor(X, torch.ones(4), Euclidean()), "no entailment cones"),
    "children that do not pair up": (lambda: entailment(X, Y[:1], Lorentz()), "4 points came with 1"),
    "angles that do not pair up": (lambda: radius_floor(X, torch.ones(3), Lorentz()), "4 points came with 3"),
    "slack 0": (lambda: entailment(X, Y, Lorentz(), slack=0.0), "the slack is 0.0"),
    "margin below 0": (lambda: exclusion(X, Y, Poincare(), margin=-0.1), "the margin is -0.1"),
    "min_radius 0": (lambda: radius_floor(X, torch.ones(4), Lorentz(), 0.0), "min_radius 0.0"),
    "cone of min_radius 0": (lambda: entailment(X, Y, Lorentz(), 0.0), "min_radius 0.0"),
    "angle 0": (lambda: radius_floor(X, torch.zeros(4), Lorentz()), "an aperture is out of range"),
    "angle above π/2": (
        lambda: radius_floor(X, torch.full((4,), 1.6), Lorentz()),
        "an aperture is out of range",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_one_sentence(call, message):
    with pytest.raises(HacoreError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_nothing_is_read_back_from_the_device():
    """A host that reads a value waits for its accelerator; on the meta device it cannot, and raises."""
    logits = torch.ones(4, 3, device="meta", requires_grad=True)
    statements = torch.zeros(4, 2, dtype=torch.long, device="meta")
    image_text_contrast(logits, positives(statements, statements[:3, 0])).backward()
    assert logits.grad.shape == logits.shape
