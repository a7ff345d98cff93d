"""Losses over pairs in two processes: those of one process on the whole batch, gradients included."""

import datetime
import time

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hacore.errors import HacoreError
from hacore.geometry import space
from hacore.losses import alignment_calibration, gather, info_nce, nt_xent, nt_xent_terms

NAMES = ("euclidean", "lorentz")
CHUNKS = {"whole": None, "pieces": 3}  # of 8 anchors, or of 4
PATIENCE = 120  # seconds: starting a process takes some, a process that waits for ever takes more


class Net(nn.Module):
    """Points of a space of learned curvature; without batch normalisation, which sees its own process only."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.space = space(name, 0.5, learnable=name != "euclidean")
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, images):
        return self.space.exp0(self.net(images))


def images():
    """Three views of eight images, of which one of the first half and three of the second are forget ones."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(3, 8, 6, generator=g), torch.tensor([1, 0, 0, 0, 0, 1, 1, 1]).bool()


def calibration(points, other, third, forget, geometry, chunk):
    """With true pairs for mismatched ones, which makes no difference here."""
    terms = nt_xent_terms(points, other, geometry, 0.5, chunk)
    true = geometry.similarity(points[forget], third[forget]).diagonal()
    return alignment_calibration(terms, forget.repeat(2), true, 0.7, 1.3, 0.4)


LOSSES = {
    "nt_xent": lambda x, y, third, forget, geometry, chunk: (nt_xent(x, y, geometry, 0.5, chunk), {}),
    "info_nce": lambda x, y, third, forget, geometry, chunk: (info_nce(x, y, geometry, 0.5, chunk), {}),
    "calibration": calibration,
}


def step(name, loss, chunk, rows, wrap=lambda net: net):
    """The loss, its parts and the gradients of one step on these rows of the batch."""
    net = Net(name)
    views, forget = images()
    model = wrap(net)  # kept until the gradients are there: they are averaged only as long as it lives
    x, y, third = model(views[:, rows].flatten(0, 1)).chunk(3)
    value, parts = LOSSES[loss](x, y, third, forget[rows], net.space, CHUNKS[chunk])
    value.backward()
    out = {"loss": value, **parts} | {key: p.grad for key, p in net.named_parameters()}
    return {key: tensor.detach() for key, tensor in out.items()}


CASES = [(name, loss, chunk) for name in NAMES for loss in LOSSES for chunk in CHUNKS]


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
    rows = slice(4 * rank, 4 * rank + 4)
    views = images()[0]
    few = views[:, : 3 + rank]
    geometry = space("euclidean")
    found = {case: step(*case, rows, DistributedDataParallel) for case in CASES}
    found["gathered"] = gather(views[0, rows].requires_grad_())
    found["refused"] = [
        refused(call)
        for call in (
            lambda: nt_xent(few[0], few[1], geometry, 0.5),
            lambda: info_nce(few[0], few[1], geometry, 0.5),
            lambda: gather(few[0]),
            lambda: gather(views[0, :, : 5 + rank]),
        )
    ]
    # One pair a process makes two in all.
    found["one pair each"] = nt_xent(views[0, rank, None], views[1, rank, None], geometry, 0.5)
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
        if key.startswith(("net.", "space.")):
            assert torch.equal(first[key], second[key])
            assert expected.abs().max() > 1e-4
        torch.testing.assert_close((first[key] + second[key]) / 2, expected, rtol=1e-5, atol=1e-6)


def test_each_process_has_its_own_anchors(both):
    """Without which the test above could not fail for a loss that sees only its own process."""
    for name in NAMES:
        first, second = (found[name, "nt_xent", "whole"]["loss"] for found in both)
        alone = [step(name, "nt_xent", "whole", rows)["loss"] for rows in (slice(0, 4), slice(4, 8))]
        assert abs(first - second) > 1e-3
        assert first - alone[0] > 0.1  # more to be told from
        assert second - alone[1] > 0.1


def test_gathered_rows_are_in_order_and_without_gradient(both):
    for found in both:
        assert torch.equal(found["gathered"], images()[0][0])
        assert not found["gathered"].requires_grad


def test_batches_of_different_shapes_are_refused_by_every_process(both):
    for found in both:
        for message, shapes in zip(
            found["refused"], ["(6, 6), (8, 6)", "(3, 6), (4, 6)", "(3, 6), (4, 6)", "(8, 5), (8, 6)"],
            strict=True,
        ):  # fmt: skip
            assert "different shapes" in message
            assert shapes in message


def test_one_pair_a_process_is_enough(both):
    views = images()[0]
    one = nt_xent(views[0, :2], views[1, :2], space("euclidean"), 0.5)
    torch.testing.assert_close(sum(found["one pair each"] for found in both) / 2, one)
