"""A curvature derived once for a whole loss: the same numbers, and never one that is stale or without a graph."""

import copy
import pickle
import threading

import pytest
import torch

from hacore.geometry import SPACES, Lorentz, space

NAMES = pytest.mark.parametrize("name", SPACES)
HYPERBOLIC = pytest.mark.parametrize("name", ["lorentz", "poincare"])
V = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3)


def loss(manifold, v=V):
    """Of some methods that each ask for the curvature."""
    x, y = manifold.exp0(v), manifold.exp0(v.roll(1, 0) * 0.7)
    total = manifold.similarity(x, y).square().sum() + manifold.radius(x).sum()
    return total + (0 if manifold.name == "euclidean" else manifold.cone_excess(x, y).sum())


@pytest.fixture
def derived(monkeypatch):
    """How often a curvature was derived."""
    count, plain = [], Lorentz._curv
    for kind in SPACES.values():
        monkeypatch.setattr(kind, "_curv", lambda self: count.append(self) or plain(self))
    return count


@NAMES
def test_the_loss_and_its_gradients_are_the_same(name):
    manifold = space(name, 0.5, learnable=True)
    v = V.clone().requires_grad_()
    leaves = [v, manifold.theta]
    expected = loss(manifold, v)
    gradients = torch.autograd.grad(expected, leaves, allow_unused=True)
    with manifold.one_curvature():
        shared = loss(manifold, v)
    assert torch.equal(shared, expected)
    for one, other in zip(torch.autograd.grad(shared, leaves, allow_unused=True), gradients, strict=True):
        assert one is other is None or torch.testing.assert_close(one, other) is None


def test_it_is_derived_once(derived):
    manifold, other = Lorentz(learnable=True), Lorentz(learnable=True)
    loss(manifold)
    often = len(derived)
    assert often > 3
    derived.clear()
    with manifold.one_curvature():
        loss(manifold)
        loss(manifold)
    assert len(derived) == 1
    with manifold.one_curvature():
        loss(other)  # not of this space
    assert len(derived) == 1 + often
    derived.clear()
    with manifold.one_curvature(), other.one_curvature():
        loss(manifold), loss(other)
    assert derived == [manifold, other]


@NAMES
def test_flat_space_has_no_use_for_it(name, derived):
    with space(name, learnable=True).one_curvature():
        pass
    with (flat := space("euclidean", learnable=True)).one_curvature():
        loss(flat)
    assert not derived


@HYPERBOLIC
def test_the_next_loss_has_a_graph_and_a_curvature_of_its_own(name):
    manifold = space(name, learnable=True)
    for _ in range(2):
        manifold.theta.grad = None
        with manifold.one_curvature():
            value = loss(manifold)
        value.backward()
        with torch.no_grad():
            manifold.theta -= 0.1 * manifold.theta.grad.sign()
        assert value.item() != loss(manifold).item()
        with manifold.one_curvature():
            assert torch.equal(loss(manifold), loss(copy.deepcopy(manifold)))


@HYPERBOLIC
def test_nothing_is_left_of_it_after_an_error(name):
    manifold = space(name, learnable=True)
    seen = []

    def fails():
        with manifold.one_curvature():
            seen.append(manifold.curv)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    (before,) = seen
    assert manifold.curv is not before
    with torch.no_grad():
        manifold.theta.fill_(1.0)
    assert manifold.curv > before


def test_nested_ones_share_the_outermost(derived):
    manifold = Lorentz(learnable=True)
    with manifold.one_curvature():
        first = manifold.curv
        with manifold.one_curvature():
            assert manifold.curv is first
        assert manifold.curv is first
    assert manifold.curv is not first
    assert len(derived) == 2


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_one_without_a_graph_is_not_taken_where_gradients_are_wanted(without):
    manifold = Lorentz(0.5, learnable=True)
    (expected,) = torch.autograd.grad(loss(manifold), manifold.theta)
    with manifold.one_curvature():
        with without():
            assert not loss(manifold).requires_grad
        value = loss(manifold)
        with without():
            assert not manifold.curv.requires_grad
    torch.testing.assert_close(*torch.autograd.grad(value, manifold.theta), expected)
    with without(), manifold.one_curvature():
        assert not manifold.curv.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            assert manifold.curv.requires_grad


def test_a_space_can_be_copied_and_saved_inside_of_it():
    manifold = Lorentz(0.5, learnable=True)
    with manifold.one_curvature():
        value = loss(manifold)
        for twin in (copy.deepcopy(manifold), pickle.loads(pickle.dumps(manifold))):
            assert torch.equal(twin.curv, manifold.curv)
            assert twin.curv is not twin.curv  # it is not inside of anything
            with torch.no_grad():
                twin.theta.fill_(1.0)
            assert twin.curv > manifold.curv
    assert manifold.state_dict().keys() == Lorentz(learnable=True).state_dict().keys()
    value.backward()
    assert manifold.theta.grad != 0


def test_another_thread_derives_its_own():
    manifold = Lorentz(learnable=True)
    seen = []
    with manifold.one_curvature():
        mine = manifold.curv
        thread = threading.Thread(target=lambda: seen.append(manifold.curv))
        thread.start()
        thread.join()
        assert seen[0] is not mine
        assert manifold.curv is mine
