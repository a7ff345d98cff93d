"""L-CODEC: the coefficient on hand-made cases, the Newton step against closed forms."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_run
from torch import nn
from torch.nn.functional import cross_entropy

from hacore.data.dataset import as_float
from hacore.errors import HacoreError
from hacore.experiments import prepare
from hacore.geometry import SPACES
from hacore.models import Classifier
from hacore.unlearning.cost import Work
from hacore.unlearning.newton import (
    Block,
    Lcodec,
    Selection,
    activations,
    blocks,
    codec,
    conjugate_gradients,
    foci,
    removal,
)


@pytest.fixture(scope="module", params=SPACES)
def request_(request):
    return prepare(tiny_run(request.param, scenario="random-samples", forget=20))


@pytest.fixture(scope="module")
def flat_request():
    return prepare(tiny_run())


@pytest.fixture
def work():
    with Work(torch.device("cpu")) as work:
        yield work


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def forget_loss(request, model):
    index = request.split.forget
    with torch.no_grad():
        logits = model(as_float(request.dataset.train_images[index]))
    return cross_entropy(logits, request.split.labels[index]).item()


def test_codec_by_hand():
    # Neighbours of 0, 1, 3: the 2nd, the 1st, the 2nd. R = 1, 3, 2, so min(R_i, R_M) = 1, 1, 2; L = 3, 1, 2.
    # (3 * (1 + 1 + 2) - (9 + 1 + 4)) / (3 * 0 + 1 * 2 + 2 * 1) = -2 / 4.
    y, z = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([[0.0], [1.0], [3.0]])
    torch.testing.assert_close(codec(y, z).item(), -0.5)
    # Given x = (0, 2, 3), whose neighbours are the 2nd, 3rd, 2nd: min(R_i, R_N) = 1, 2, 2. With z = (0, 0, 9),
    # the neighbours are the 2nd, 1st, 2nd: 1, 1, 2. (0 - 1 + 0) / (0 + 1 + 0) = -1.
    x, z = torch.tensor([[0.0], [2.0], [3.0]]), torch.tensor([[0.0], [0.0], [9.0]])
    torch.testing.assert_close(codec(y, z, x).item(), -1.0)


def test_codec_is_one_for_a_function_and_zero_for_independence():
    x = draw(600, 3)
    y = (6 * x[:, 0]).sin()
    function, *others = codec(y, x).tolist()
    assert function > 0.95
    assert all(abs(value) < 0.12 for value in others)


def test_codec_sees_what_is_only_visible_together():
    # The sum modulo 1 is independent of each summand, and a function of both.
    x = draw(800, 3)
    y = (x[:, 0] + x[:, 1]) % 1
    assert codec(y, x[:, :2]).abs().max() < 0.12
    second, noise = codec(y, x[:, 1:], x[:, :1]).tolist()
    assert second > 0.8
    assert abs(noise) < 0.15


def test_a_constant_depends_on_nothing():
    assert codec(torch.ones(9), draw(9, 2)).tolist() == [0, 0]


def test_one_observation_is_an_error():
    with pytest.raises(HacoreError, match="two observations"):
        codec(torch.ones(1), torch.ones(1, 1))


def test_foci_finds_the_columns_whatever_their_scale():
    x = draw(500, 8)
    y = x[:, 6] + 2 * x[:, 2]
    scale = torch.tensor([1, 1, 1e-3, 1, 1, 1, 1e3, 1e3])
    assert foci(y, x * scale, limit=2) == [2, 6]
    assert len(foci(y, x, limit=5)) <= 5


def test_conjugate_gradients_solve_the_damped_system():
    a = draw(6, 6)
    hessian, g = a @ a.T, draw(6)
    found = conjugate_gradients(lambda v: hessian @ v, g, damping=0.1, iterations=12)
    torch.testing.assert_close(found, torch.linalg.solve(hessian + 0.1 * torch.eye(6), g))


def test_negative_curvature_is_not_followed():
    g = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(conjugate_gradients(lambda v: -v, g, damping=0.5, iterations=9), g / 0.5)


def test_the_step_is_leaving_out_to_first_order(work):
    # A logistic regression with ridge, trained to its minimum in float64; the encoder is the identity.
    torch.manual_seed(0)
    n, m, ridge = 200, 2, 0.05
    images, labels = draw(n, 1, 2, 2), (torch.arange(n) * 7 // 3) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()

    def train(keep):
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure():
            optimizer.zero_grad()
            loss = cross_entropy(model(images[keep]), labels[keep])
            loss = loss + ridge / 2 * parameters_squared(model) * n / len(keep)
            loss.backward()
            return loss

        optimizer.step(closure)
        return parameters(model)

    def parameters_squared(model):
        return sum(p.square().sum() for p in model.parameters())

    everything = torch.arange(n)
    keep = everything[m:]
    before = train(everything)
    head = Block(model[1], 3)
    step = removal(
        model, Selection([head], [0, 1, 2]), (images[:m], labels[:m]), (images[keep], labels[keep]),
        n - m, ridge * n / (n - m), 200, work,
    )  # fmt: skip
    # The closed form: minus the inverse Hessian of the rest, times its gradient, at the old minimum.
    start = [p.detach().clone() for p in model.parameters()]

    def rest(weight, bias):
        logits = images[keep].flatten(1) @ weight.T + bias
        size = weight.square().sum() + bias.square().sum()
        return cross_entropy(logits, labels[keep]) + ridge / 2 * size * n / (n - m)

    gradient = torch.cat([g.flatten() for g in torch.func.grad(rest, (0, 1))(*start)])
    hessian = torch.func.hessian(rest, (0, 1))(*start)
    matrix = torch.cat(
        [torch.cat([hessian[i][j].reshape(start[i].numel(), -1) for j in (0, 1)], 1) for i in (0, 1)]
    )
    torch.testing.assert_close(step, -torch.linalg.solve(matrix, gradient), rtol=1e-5, atol=1e-10)
    # And what it is the first order of.
    difference = train(keep) - before
    assert (before + step - parameters(model)).norm() < 0.1 * difference.norm()


def test_a_selection_touches_its_rows_only():
    layers = [Block(nn.Linear(2, 3), 3), Block(nn.Linear(3, 2, bias=False), 2)]
    chosen = Selection(layers, [1, 4])
    marked = chosen.spread(torch.arange(1.0, 7.0))
    assert [t.tolist() for t in marked] == [[[0, 0], [1, 2], [0, 0]], [0, 3, 0], [[0, 0, 0], [4, 5, 6]]]
    assert chosen.vector(marked).tolist() == [1, 2, 3, 4, 5, 6]


def test_activations_are_means_over_pixels_of_every_layer(request_):
    layers = blocks(request_.model)
    images = as_float(request_.dataset.train_images[:4])
    with activations(layers) as seen, torch.no_grad():
        logits = request_.model(images)
    assert [part.shape for part in seen] == [(4, block.units) for block in layers]
    torch.testing.assert_close(seen[-1], logits)
    first = request_.model.encoder.layers[0][0]
    with torch.no_grad():
        # The projection comes before the convolutions in the encoder, and after them in a forward pass.
        torch.testing.assert_close(seen[1], first(request_.model.normalise(images)).mean((2, 3)))
        request_.model(images[:2])
    assert len(seen[1]) == 4  # nothing is noted outside


def test_removing_raises_the_loss_of_the_forget_images_in_few_filters(request_):
    method = Lcodec(blocks=5, observations=64)
    outcome = method(request_)
    assert forget_loss(request_, outcome.model) > forget_loss(request_, request_.model)
    changed = 0
    for before, after in zip(blocks(request_.model), blocks(outcome.model), strict=True):
        rows = [
            (a != b).flatten(1).any(1) if a.ndim > 1 else a != b
            for a, b in zip(after.weights, before.weights, strict=True)
        ]
        changed += int(torch.stack(rows).any(0).sum())
    assert 1 <= changed <= 5
    assert outcome.fit.flops > 0
    assert outcome.fit.steps >= 3


def test_prototypes_too(request_):
    here = request_.model
    torch.manual_seed(0)
    model = Classifier(
        here.encoder, 10, here.space, request_.dataset.mean, request_.dataset.std, "prototype", here.lift
    )
    after = parameters(Lcodec(observations=64)(replace(request_, model=model)).model)
    assert after.isfinite().all()
    assert not torch.equal(after, parameters(model))


def test_damping_shrinks_the_step(request_):
    before = parameters(request_.model)
    small, large = (
        (parameters(Lcodec(damping=damping, observations=64)(request_).model) - before).norm()
        for damping in (100.0, 0.1)
    )
    assert 0 < small < large / 10


def test_the_seed_decides(flat_request):
    method = Lcodec(batch_size=32, observations=64)
    first, again = (parameters(method(flat_request).model) for _ in range(2))
    assert torch.equal(first, again)
    loop = replace(flat_request.training.loop, seed=1)
    reseeded = replace(flat_request, training=replace(flat_request.training, loop=loop))
    assert not torch.equal(parameters(method(reseeded).model), first)


def test_privacy_noise_by_hand():
    # 2 * 0.25 * 10^2 / (100^2 * 0.1^3) = 5, over epsilon 2, times the root of 2 ln 125 = 3.1075.
    method = Lcodec(damping=0.1, epsilon=2.0)
    assert method.deviation(10, 90) == pytest.approx(5 / 2 * 3.1075, rel=1e-4)
    assert Lcodec().deviation(10, 90) == 0


@pytest.mark.parametrize("wrong", [{"damping": 0.0}, {"blocks": 0}, {"observations": 1}])
def test_impossible_settings_are_errors(flat_request, wrong):
    with pytest.raises(HacoreError, match="lcodec needs"):
        Lcodec(**wrong)(flat_request)
