"""NT-Xent, queue InfoNCE and Alignment Calibration against slow loops of their published algorithms."""

import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hacore.errors import HacoreError
from hacore.geometry import SPACES, Euclidean, Lorentz, space
from hacore.losses import (
    Terms,
    alignment_calibration,
    contrast,
    gather,
    info_nce,
    nt_xent,
    nt_xent_terms,
    queue_terms,
)

SPACE = pytest.mark.parametrize("name", SPACES)
TEMPERATURE = pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])


def points(manifold, *counts, seed=0, d=4):
    g = torch.Generator().manual_seed(seed)
    made = manifold.exp0(torch.randn(sum(counts), d, generator=g, dtype=torch.float64)).detach()
    return [part.clone().requires_grad_() for part in made.split(counts)]


def pair(manifold, a, b):
    """The similarity of one pair, by the definition: no matrix product."""
    return torch.cosine_similarity(a, b, dim=0) if manifold.name == "euclidean" else -manifold.dist(a, b)


def slow_nt_xent(x, y, manifold, temperature):
    """Algorithm 1 of SimCLR, term by term; views 2k - 1 and 2k are x_k and y_k."""
    z = [view for both in zip(x, y, strict=True) for view in both]
    alignment, spread = [], []
    for i, anchor in enumerate(z):
        s = {k: pair(manifold, anchor, other) / temperature for k, other in enumerate(z) if k != i}
        alignment.append(s[i ^ 1])
        spread.append(torch.log(sum(value.exp() for value in s.values())))
    order = [*range(0, len(z), 2), *range(1, len(z), 2)]
    return torch.stack(alignment)[order], torch.stack(spread)[order]


def slow_queue(q, k, queue, manifold, temperature):
    """Algorithm 1 of MoCo."""
    alignment, spread = [], []
    for query, key in zip(q, k, strict=True):
        positive = pair(manifold, query, key) / temperature
        negatives = [pair(manifold, query, other) / temperature for other in queue]
        alignment.append(positive)
        spread.append(torch.log(positive.exp() + sum(value.exp() for value in negatives)))
    return torch.stack(alignment), torch.stack(spread)


def with_gradients(terms, leaves):
    """The terms and the gradient of a sum that weighs each of them differently."""
    alignment, spread = terms
    weights = torch.linspace(0.5, 2, len(alignment), dtype=alignment.dtype)
    value = (weights * alignment).sum() - (weights.flip(0) * spread).sum()
    return [alignment, spread, *torch.autograd.grad(value, leaves)]


@SPACE
@TEMPERATURE
@pytest.mark.parametrize("chunk", [None, 4])
def test_nt_xent_is_the_published_loop(name, temperature, chunk):
    manifold = space(name, 0.7).double()
    x, y = leaves = points(manifold, 5, 5)
    ours = with_gradients(nt_xent_terms(x, y, manifold, temperature, chunk), leaves)
    slow = slow_nt_xent(x, y, manifold, temperature)
    for mine, theirs in zip(ours, with_gradients(slow, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)
    loss = nt_xent(x, y, manifold, temperature, chunk)
    torch.testing.assert_close(loss, (slow[1] - slow[0]).mean(), rtol=1e-9, atol=1e-9)


@SPACE
@TEMPERATURE
@pytest.mark.parametrize("chunk", [None, 2])
def test_queue_terms_are_the_published_loop(name, temperature, chunk):
    manifold = space(name, 0.7).double()
    leaves = points(manifold, 5, 5, 7)
    ours = with_gradients(queue_terms(*leaves, manifold, temperature, chunk), leaves)
    slow = with_gradients(slow_queue(*leaves, manifold, temperature), leaves)
    for mine, theirs in zip(ours, slow, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


@SPACE
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients(name, chunk):
    manifold = space(name)
    x, y, queue = points(manifold, 3, 3, 2)
    assert torch.autograd.gradcheck(lambda *z: tuple(nt_xent_terms(*z, manifold, 0.5, chunk)), (x, y))
    assert torch.autograd.gradcheck(
        lambda *z: tuple(queue_terms(*z, manifold, 0.5, chunk)), (x, y.detach(), queue.detach())
    )


def test_terms_by_hand():
    """Unit vectors at right angles: similarities are 1, 0 and -1, here divided by 0.5."""
    east, north = [1.0, 0.0], [0.0, 1.0]
    x, y = torch.tensor([east, north]), torch.tensor([east, [-1.0, 0.0]])
    alignment, spread = nt_xent_terms(x, y, Euclidean(), 0.5)
    # x_1 sees x_2, y_1, y_2 at 0, 1, -1; x_2 sees all at 0; y_1 as x_1; y_2 sees x_1, x_2, y_1 at -1, 0, -1.
    torch.testing.assert_close(alignment, torch.tensor([2.0, 0.0, 2.0, 0.0]))
    first = math.log(1 + math.exp(2) + math.exp(-2))
    last = math.log(1 + 2 * math.exp(-2))
    torch.testing.assert_close(spread, torch.tensor([first, math.log(3), first, last]))
    alignment, spread = queue_terms(x, y, torch.tensor([north]), Euclidean(), 0.5)
    torch.testing.assert_close(alignment, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(spread, torch.tensor([math.log(1 + math.exp(2)), math.log(1 + math.exp(2))]))


@SPACE
@pytest.mark.parametrize("chunk", [None, 3])
def test_identical_points_have_closed_forms(name, chunk):
    manifold = space(name)
    x = manifold.exp0(torch.ones(6, 3, dtype=torch.float64)).requires_grad_()
    loss = nt_xent(x, x.detach(), manifold, 0.1, chunk)
    assert loss.item() == pytest.approx(math.log(11), abs=1e-9)
    assert torch.autograd.grad(loss, x)[0].isfinite().all()
    alignment, spread = queue_terms(x, x, x[:4], manifold, 0.1, chunk)
    torch.testing.assert_close(spread - alignment, torch.full((6,), math.log(5), dtype=torch.float64))


@SPACE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 3])
def test_extremes_stay_finite(name, dtype, chunk):
    manifold = space(name)
    g = torch.Generator().manual_seed(1)
    v = torch.randn(8, 5, generator=g) * torch.tensor([0, 1e-20, 1e-3, 1, 1, 5, 1e3, 1e4])[:, None]
    x = manifold.project(manifold.exp0(v)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        terms = [
            *nt_xent_terms(x, x.detach().flip(0), manifold, 0.01, chunk),
            *queue_terms(x, x.detach(), x.detach().flip(0), manifold, 0.01, chunk),
        ]
        loss = sum(term.mean() for term in terms) + info_nce(x, x.detach().flip(0), manifold, 0.01, chunk)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(term.isfinite().all() for term in [*terms, loss, x.grad])


@SPACE
def test_float32_agrees_with_float64(name):
    manifold = space(name)
    x, y = points(manifold, 20, 20)
    exact = nt_xent(x, y, manifold, 0.2)
    assert nt_xent(x.float(), y.float(), manifold, 0.2).item() == pytest.approx(exact.item(), rel=1e-5)


@SPACE
@pytest.mark.parametrize("chunk", [1, 7, 8, 9])  # of 16 or 32 anchors: with and without a smaller last piece
def test_pieces_change_neither_values_nor_gradients(name, chunk):
    """The gradient of a learned curvature included, and that through an encoder before the points."""
    manifold = space(name, learnable=True).double()
    g = torch.Generator().manual_seed(0)
    v = torch.randn(48, 4, generator=g, dtype=torch.float64).requires_grad_()

    def results(k):
        x, y, queue = manifold.exp0(v).split(16)
        every = [
            *nt_xent_terms(x, y, manifold, 0.3, k),
            *queue_terms(x, y, queue, manifold, 0.3, k),
            info_nce(x, y, manifold, 0.3, k),
        ]
        value = sum((i + 1) * term.square().sum() for i, term in enumerate(every))
        leaves = [v] if name == "euclidean" else [v, manifold.theta]
        return [*every, *torch.autograd.grad(value, leaves)]

    for whole, pieces in zip(results(None), results(chunk), strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-9)


class Memory(TorchDispatchMode):
    """The largest tensor made while it watches, and the most bytes alive at once, saved for a gradient or not."""

    def __init__(self):
        super().__init__()
        self.largest = self.peak = 0
        self.alive = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def memory(loss, manifold, n, chunk):
    x, y = (part.float().detach().requires_grad_() for part in points(manifold, n, n))
    with Memory() as watched:
        value = loss(x, y, manifold, 0.5, chunk)
        value.backward()
    return watched


def queue_loss(x, y, manifold, temperature, chunk):
    """With a queue that grows with the batch."""
    terms = queue_terms(x, y, y.detach(), manifold, temperature, chunk)
    return (terms.spread - terms.alignment).mean()


@SPACE
@pytest.mark.parametrize("loss", [nt_xent, info_nce, queue_loss])
def test_memory_grows_linearly_with_the_batch(name, loss):
    """For fixed pieces, forward and backward: twice the batch takes twice the bytes; in one piece, four times."""
    manifold = space(name)
    small, large = (memory(loss, manifold, n, 8) for n in (64, 128))
    whole_small, whole = (memory(loss, manifold, n, None) for n in (64, 128))
    assert large.peak <= 2.1 * small.peak
    assert large.largest <= 8 * (2 * 128 + 8)  # no matrix of more than one piece
    assert whole_small.peak * 3 < whole.peak  # what the first line is there to exclude
    assert large.peak * 3 < whole.peak


def test_without_a_chunk_large_batches_are_taken_in_pieces(monkeypatch):
    assert contrast.LARGEST == 2048**2
    monkeypatch.setattr(contrast, "LARGEST", 64 * 64)
    assert memory(nt_xent, Lorentz(), 32, None).largest >= 64 * 64
    watched = memory(nt_xent, Lorentz(), 128, None)
    assert watched.largest <= 64 * 64
    x, y = points(Lorentz(), 128, 128)
    torch.testing.assert_close(nt_xent(x, y, Lorentz(), 0.5), nt_xent(x, y, Lorentz(), 0.5, 10_000))


def test_nothing_is_read_back_from_the_device():
    """A host that reads a value waits for its accelerator; on the meta device it cannot, and raises."""
    x = torch.ones(4, 3, device="meta", requires_grad=True)
    column = torch.zeros(4, dtype=torch.long, device="meta")
    forget = torch.ones(4, dtype=torch.bool, device="meta")
    total, _ = alignment_calibration(contrast._terms(x, column, column), forget, torch.ones(4, device="meta"))
    total.backward()
    assert x.grad.shape == x.shape


def test_gather_of_one_process_is_the_rows_without_gradient():
    rows = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(gather(rows), rows)
    assert not gather(rows).requires_grad


X, Y = torch.randn(4, 3), torch.randn(4, 3)
REFUSED = {
    "views that do not pair up": (lambda: nt_xent(X, Y[:3], Euclidean(), 0.5), "as many first as second"),
    "views of other dimensions": (lambda: nt_xent(X, Y[:, :2], Euclidean(), 0.5), "3 and 2 dimensions"),
    "one pair": (lambda: nt_xent(X[:1], Y[:1], Euclidean(), 0.5), "at least two pairs"),
    "no pair": (lambda: nt_xent(X[:0], Y[:0], Euclidean(), 0.5), "at least two pairs"),
    "temperature 0": (lambda: nt_xent(X, Y, Euclidean(), 0.0), "temperature must be positive"),
    "no temperature": (lambda: queue_terms(X, Y, X, Euclidean(), math.nan), "temperature must be positive"),
    "chunk 0": (lambda: nt_xent(X, Y, Euclidean(), 0.5, 0), "at least one anchor"),
    "empty queue": (lambda: queue_terms(X, Y, X[:0], Euclidean(), 0.5), "queue of keys is empty"),
    "narrow queue": (lambda: queue_terms(X, Y, X[:, :2], Euclidean(), 0.5), "3 dimensions and the queue 2"),
    "queries without keys": (lambda: queue_terms(X, Y[:2], X, Euclidean(), 0.5), "queries and keys"),
    "no queries": (lambda: queue_terms(X[:0], Y[:0], X, Euclidean(), 0.5), "at least one query"),
    "views of other dimensions, InfoNCE": (
        lambda: info_nce(X, Y[:, :2], Lorentz(), 0.5),
        "3 and 2 dimensions",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_contrast_refuses_in_one_sentence(call, message):
    with pytest.raises(HacoreError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Alignment Calibration.


def slow_calibration(alignment, spread, forget, true, alpha, beta, gamma):
    """The loss, anchor by anchor."""
    total, weight = 0.0, 0.0
    for a, r, is_forget in zip(alignment, spread, forget.tolist(), strict=True):
        total = total + (gamma * r - alpha * a if is_forget else r - a)
        weight += alpha if is_forget else 1.0
    share = sum(forget.tolist()) / len(forget)
    return total / weight + beta * share * sum(true) / len(true)


def mixed(manifold, n_retain=3, n_forget=2, seed=0):
    """Leaves of a mixed batch: two views of all, a third of the forget images, which come first."""
    n = n_retain + n_forget
    x, y, third = leaves = points(manifold, n, n, n_forget, seed=seed)
    mismatched = torch.cat([y[:n_forget].roll(1, 0), y[n_forget:]])
    terms = nt_xent_terms(x, mismatched, manifold, 0.5)
    true = torch.stack([pair(manifold, a, b) for a, b in zip(x, third, strict=False)])
    forget = (torch.arange(n) < n_forget).repeat(2)
    return leaves, terms, forget, true


WEIGHTS = [(1.0, 1.0, 1.0), (0.3, 2.0, 0.7), (2.5, 0.0, 0.0), (0.0, 0.4, 1.5), (0.0, 0.0, 0.0)]


@SPACE
@pytest.mark.parametrize(("alpha", "beta", "gamma"), WEIGHTS)
def test_calibration_is_the_slow_loop(name, alpha, beta, gamma):
    leaves, terms, forget, true = mixed(space(name).double())
    ours, parts = alignment_calibration(terms, forget, true, alpha, beta, gamma)
    slow = slow_calibration(*terms, forget, true, alpha, beta, gamma)
    torch.testing.assert_close(ours, slow)
    gradients = (torch.autograd.grad(total, leaves, retain_graph=True) for total in (ours, slow))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    means = {
        "retain": (terms.spread - terms.alignment)[~forget].mean(),
        "negative calibration": -terms.alignment[forget].mean(),
        "positive calibration": true.mean(),
        "preserving": terms.spread[forget].mean(),
    }
    assert list(parts) == list(means)
    for part, mean in means.items():
        torch.testing.assert_close(parts[part], mean)


def test_the_authors_expression():
    """Σ_R l + α Σ_U l over n_R + α n_U, l the whole contrastive loss of an anchor, plus β |U| / n mean cos."""
    _, terms, forget, true = mixed(Euclidean())
    loss, alpha, beta = terms.spread - terms.alignment, 1.7, 0.6
    published = (loss[~forget].sum() + alpha * loss[forget].sum()) / (
        6 + alpha * 4
    ) + beta * 2 / 5 * true.mean()
    torch.testing.assert_close(alignment_calibration(terms, forget, true, alpha, beta)[0], published)
    torch.testing.assert_close(alignment_calibration(terms, forget, true, alpha, beta, alpha)[0], published)


def test_calibration_by_hand():
    """Two retain and two forget anchors, and two forget images."""
    terms = Terms(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([4.0, 7.0, 5.0, 8.0]))
    forget = torch.tensor([False, False, True, True])
    total, parts = alignment_calibration(terms, forget, torch.tensor([0.9, 0.5]), 2.0, 10.0, 1.0)
    # Retain (4 - 1) + (7 - 2) = 8; forget (5 - 2·3) + (8 - 2·4) = -1; over 2 + 2·2 = 6; plus 10 · 1/2 · 0.7.
    assert total.item() == pytest.approx(7 / 6 + 3.5)
    by_hand = {
        "retain": 4.0,
        "negative calibration": -3.5,
        "positive calibration": 0.7,
        "preserving": 6.5,
    }
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(by_hand)


PARTS = {"negative": "negative calibration", "positive": "positive calibration", "preserving": "preserving"}


@SPACE
@pytest.mark.parametrize("off", PARTS)
def test_a_weight_of_zero_removes_its_part_of_the_gradient_only(name, off):
    leaves, terms, forget, true = mixed(space(name).double())
    weights = {"negative": 1.3, "positive": 0.8, "preserving": 0.6}

    def gradient(value):
        found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        return torch.cat(
            [torch.zeros_like(z) if g is None else g for z, g in zip(leaves, found, strict=True)]
        )

    on, parts = alignment_calibration(terms, forget, true, **weights)
    without, _ = alignment_calibration(terms, forget, true, **weights | {off: 0.0})
    positive = weights["positive"] * 4 / 10 * gradient(parts["positive calibration"])
    if off == "positive":
        removed, scale = positive, 1.0
    else:
        # The four forget anchors of ten, over the denominator, which without α is that of the retain ones.
        removed = weights[off] * 4 * gradient(parts[PARTS[off]]) / (6 + 1.3 * 4)
        scale = (6 + 1.3 * 4) / 6 if off == "negative" else 1.0
    assert removed.abs().max() > 1e-3
    kept = 0 if off == "positive" else positive
    torch.testing.assert_close(gradient(without) - kept, scale * (gradient(on) - kept - removed))


@SPACE
@pytest.mark.parametrize(
    ("part", "sign", "what"),
    [("negative calibration", 1, "mismatched"), ("positive calibration", -1, "true")],
)
def test_the_forces(name, part, sign, what):
    """A step along a calibration makes mismatched pairs more alike, or true ones less."""
    leaves, terms, forget, true = mixed(space(name).double())
    _, parts = alignment_calibration(terms, forget, true)
    gradients = torch.autograd.grad(parts[part], leaves, allow_unused=True)
    moved = [z if g is None else z - 1e-4 * g for z, g in zip(leaves, gradients, strict=True)]
    manifold = space(name).double()

    def mean(x, y, third):
        return torch.stack(
            [pair(manifold, x[i], y[1 - i] if what == "mismatched" else third[i]) for i in range(2)]
        ).mean()

    assert sign * (mean(*moved) - mean(*leaves)).item() > 1e-7


def test_batches_of_one_kind_have_all_parts():
    terms = Terms(torch.tensor([1.0, 2.0]).requires_grad_(), torch.tensor([3.0, 5.0]).requires_grad_())
    nothing = torch.zeros(0)
    total, parts = alignment_calibration(terms, torch.zeros(2, dtype=torch.bool), nothing)
    assert total.item() == parts["retain"].item() == 2.5
    assert [parts[name].item() for name in PARTS.values()] == [0, 0, 0]
    for alpha in (0.0, 2.0):
        all_forget = torch.ones(2, dtype=torch.bool)
        total, parts = alignment_calibration(terms, all_forget, torch.tensor([0.5]), alpha, 1.0, 0.0)
        # Over 2 α anchors, or, where that is nothing, over 1.
        assert total.item() == (0.5 if alpha == 0 else -3 / 2 + 0.5)
        assert parts["retain"].item() == 0
        gradient = torch.autograd.grad(total, terms, allow_unused=True)
        assert all(g.isfinite().all() for g in gradient)


MASK = torch.tensor([True, False])
CALIBRATION = {
    "negative weight below 0": ({"negative": -1.0}, "negative weight is -1.0"),
    "infinite weight": ({"positive": math.inf}, "positive weight is inf"),
    "weight that is no number": ({"preserving": math.nan}, "preserving weight is nan"),
    "mask of numbers": ({"forget": torch.tensor([1, 0])}, "int64: give True and False"),
    "mask of another length": ({"forget": MASK[:1]}, "2 anchors came with a mask for 1"),
    "no anchors": ({"terms": Terms(torch.ones(0), torch.ones(0))}, "0 alignments"),
    "terms that do not fit": (
        {"terms": Terms(torch.ones(2), torch.ones(3))},
        "2 alignments came with 3 spreads",
    ),
    "no true alignment": ({"true_alignment": torch.ones(0)}, "no true alignment"),
}


@pytest.mark.parametrize(("change", "message"), CALIBRATION.values(), ids=CALIBRATION)
def test_calibration_refuses_in_one_sentence(change, message):
    arguments = {
        "terms": Terms(torch.ones(2), torch.ones(2)),
        "forget": MASK,
        "true_alignment": torch.ones(1),
    }
    with pytest.raises(HacoreError, match=message) as caught:
        alignment_calibration(**arguments | change)
    assert "\n" not in str(caught.value)


def test_true_alignment_is_not_asked_for_without_its_weight():
    terms = Terms(torch.ones(2), torch.full((2,), 2.0))
    assert alignment_calibration(terms, MASK, torch.ones(0), positive=0.0)[0].item() == 1
