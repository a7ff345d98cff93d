"""Measures of the embedding, on points whose geometry is known."""

import math

import pytest
import torch

from hacore.evaluate import embeddings
from hacore.evaluate.outputs import Outputs
from hacore.geometry import space

NAMES = ["euclidean", "lorentz", "poincare"]


@pytest.mark.parametrize("name", NAMES)
def test_radii_by_hand(name):
    where = space(name)
    # Tangent vectors of length 0, 0.1, ..., 2: in every geometry these are the radii.
    length = torch.linspace(0, 2, 21)
    points = where.exp0(torch.stack([length, torch.zeros(21)], dim=1))
    assert embeddings.radii(points, where) == pytest.approx({"median": 1, "q05": 0.1, "q95": 1.9}, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_class_separation_by_hand(name):
    where = space(name)
    # On one geodesic through the origin distances add: classes at -1 -+ 0.1 and 1 -+ 0.1. Within 0.2 each;
    # between 2.2, 2, 2, 1.8, mean 2. The ratio is 10.
    line = torch.tensor([-1.1, -0.9, 0.9, 1.1])
    points = where.exp0(torch.stack([line, torch.zeros(4)], dim=1))
    labels = torch.tensor([0, 0, 1, 1])
    assert embeddings.class_separation(points, labels, where) == pytest.approx(10, rel=1e-4)
    assert embeddings.class_separation(points, torch.arange(4), where) is None
    assert embeddings.class_separation(points, torch.zeros(4, dtype=torch.long), where) is None


def test_cka_by_hand():
    # In one column CKA is the squared correlation. Centred, x = (-1, 0, 1), y = (-1, 2, -1), z = (-1, -1, 2):
    # x.y = 0, and x.z = 3 with |x|^2 = 2 and |z|^2 = 6 gives 9 / 12.
    x, y, z = (torch.tensor(v)[:, None] for v in ([0.0, 1.0, 2.0], [-1.0, 2.0, -1.0], [0.0, 0.0, 3.0]))
    assert embeddings.linear_cka(x, y) == pytest.approx(0, abs=1e-9)
    assert embeddings.linear_cka(x, z) == pytest.approx(75)
    assert embeddings.linear_cka(x, torch.ones(3, 2)) == 0


def test_cka_does_not_see_rotation_scale_or_shift():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=stream).double()
    q, _ = torch.linalg.qr(torch.randn(4, 4, generator=stream).double())
    assert embeddings.linear_cka(x, 3 * x @ q + 7) == pytest.approx(100)
    assert embeddings.linear_cka(x, x * torch.tensor([1.0, 1.0, 9.0, 1.0])) < 95


def test_cka_is_that_of_the_gram_matrices():
    # As Kornblith et al. define it, by HSIC: the alignment of the centred Gram matrices.
    stream = torch.Generator().manual_seed(1)
    x, y = torch.randn(20, 3, generator=stream).double(), torch.randn(20, 5, generator=stream).double()
    centre = torch.eye(20) - torch.ones(20, 20) / 20
    k, m = centre.double() @ x @ x.T @ centre.double(), centre.double() @ y @ y.T @ centre.double()
    expected = 100 * (k * m).sum() / (k.norm() * m.norm())
    assert embeddings.linear_cka(x, y) == pytest.approx(expected.item())


def cluster(centre, n, label, seed):
    points = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) * 0.1 + torch.tensor(centre)
    return Outputs(points, points, points, torch.full((n,), label))


def test_the_probe_finds_a_class_the_head_denies():
    kept = cluster([1.0, 0.0], 40, 0, 0).join(cluster([0.0, 1.0], 40, 1, 1))
    seen = {
        "retain_train": kept,
        "retain_test": kept,
        "forget_train": cluster([-1.0, -1.0], 40, 2, 2),
        "forget_test": cluster([-1.0, -1.0], 20, 2, 3),
    }
    assert embeddings.probe(seen) == {"probe_forget_accuracy": 100}
    # An encoder that puts the class where another lies has lost it.
    mixed = seen | {
        "forget_train": cluster([1.0, 0.0], 20, 2, 2), "forget_test": cluster([1.0, 0.0], 20, 2, 3)
    }  # fmt: skip
    assert embeddings.probe(mixed)["probe_forget_accuracy"] < 20


def test_the_probe_of_random_samples_has_not_seen_them():
    kept = cluster([1.0, 0.0], 40, 0, 0).join(cluster([0.0, 1.0], 40, 1, 1))
    # Three quarters of the forget images lie with their label, the last lies with the other class.
    forget = cluster([1.0, 0.0], 30, 0, 2).join(cluster([0.0, 1.0], 10, 0, 3))
    assert embeddings.probe({"retain_train": kept, "forget_train": forget}) == {"probe_forget_accuracy": 75}


def test_a_large_probe_is_drawn_in_proportion(monkeypatch):
    monkeypatch.setattr(embeddings, "PROBED", 20)
    learned = []
    monkeypatch.setattr(
        embeddings, "probe_accuracy", lambda x, y, *asked: learned.append(y.bincount().tolist()) or 0.0
    )
    kept = cluster([1.0, 0.0], 60, 0, 0).join(cluster([0.0, 1.0], 20, 1, 1))
    embeddings.probe({"retain_train": kept, "forget_train": kept})
    assert learned == [[15, 5]]


def test_radii_of_random_samples_are_of_training_images():
    where = space("euclidean")
    kept = cluster([3.0, 4.0], 10, 0, 0).join(cluster([-3.0, 4.0], 10, 1, 1))
    scores = embeddings.embeddings(
        {"retain_train": kept, "retain_test": kept, "forget_train": cluster([6.0, 8.0], 10, 0, 2)}, where
    )
    assert scores["radius_retain_median"] == pytest.approx(5, abs=0.2)
    assert scores["radius_forget_median"] == pytest.approx(10, abs=0.2)
    assert scores["class_separation"] > 10
    assert all(math.isfinite(value) for value in scores.values())
    assert "cka_retain" not in scores
