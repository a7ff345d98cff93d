"""The linear probe against scikit-learn, the neighbours' vote against a slow loop, and both on bad input."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from hacore.data import Dataset, Split
from hacore.errors import HacoreError
from hacore.evaluate import accuracies, probing
from hacore.evaluate.attacks import membership
from hacore.evaluate.embeddings import embeddings
from hacore.evaluate.outputs import on_split
from hacore.geometry import space


class Pixels(nn.Module):
    """A representation whose features are a fixed linear map of the pixels."""

    def __init__(self, pixels=12, width=6, seed=0):
        super().__init__()
        stream = torch.Generator().manual_seed(seed)
        self.map = nn.Parameter(torch.randn(pixels, width, generator=stream))
        self.dropout = nn.Dropout(0.5)  # features in training mode would differ
        self.space = space("lorentz")

    def features(self, images):
        return self.dropout(images.flatten(1) @ self.map)

    def embed(self, images):
        return self.space.exp0(self.features(images))


def classes_of_images(n, classes=3, seed=0):
    """Images (3, 2, 2) whose brightness pattern gives their class away, not always."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    patterns = torch.randint(60, 196, (classes, 3, 2, 2), generator=torch.Generator().manual_seed(99))
    noise = torch.randn(n, 3, 2, 2, generator=stream) * 25
    return (patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels


def some_data():
    images, labels = classes_of_images(240)
    test_images, test_labels = classes_of_images(90, seed=1)
    return Dataset("patterns", images, labels, test_images, test_labels, ("a", "b", "c"))


def test_the_probe_is_the_optimum_of_scikit_learn():
    images, labels = classes_of_images(150)
    model, l2 = Pixels(), 1e-2
    index = torch.arange(0, 150, 2)
    probed = probing.probe(model, images, labels, index, 3, l2=l2)
    model.eval()
    features = model.features(images[index] / 255).detach().double()
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    reference = LogisticRegression(C=1 / (l2 * len(index)), tol=1e-10, max_iter=10_000).fit(
        scaled, labels[index].numpy()
    )
    expected = torch.from_numpy(reference.predict_log_proba(scaled))
    found = probed(images[index] / 255).log_softmax(1).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Other images than those of the index have no say.
    changed = images.clone()
    changed[1::2] = 0
    again = probing.probe(model, changed, labels.where(torch.arange(150) % 2 == 0, 0), index, 3, l2=l2)
    assert torch.equal(again.weight, probed.weight)


def test_a_constant_feature_does_no_harm():
    images, labels = classes_of_images(60)
    images[:, 0] = 77  # four pixels never vary
    model = Pixels()
    model.features = lambda batch: batch.flatten(1)
    probed = probing.probe(model, images, labels, torch.arange(60), 3)
    assert probed.weight.isfinite().all()
    assert probed.weight[:, :4].abs().max() < 1e-6
    assert probed.weight[:, 4:].abs().max() > 0.1


def test_a_class_without_images_is_never_answered():
    images, labels = classes_of_images(60)
    index = (labels != 1).nonzero().squeeze(1)
    probed = probing.probe(Pixels(), images, labels, index, 5)
    logits = probed(images / 255)
    assert logits.isfinite().all()
    assert set(logits.argmax(1).tolist()) == {0, 2}
    assert logits.softmax(1)[:, [1, 3, 4]].max() == 0
    assert (logits[:, 1] == probing.ABSENT).all()
    # The two classes that are there are told apart as by two-class logistic regression.
    assert (logits.argmax(1) == labels)[index].double().mean() > 0.9


def test_a_probed_model_leaves_the_model_below_as_it_is():
    images, labels = classes_of_images(60)
    model = Pixels().train()
    before = model.map.clone()
    probed = probing.probe(model, images, labels, torch.arange(60), 3)
    first = probed.train()(images / 255)
    assert torch.equal(first, probed.eval()(images / 255))  # no dropout in either
    assert model.training
    assert model.dropout.training
    assert not probed.training
    assert not first.requires_grad
    assert model.map.requires_grad
    assert torch.equal(model.map, before)


@pytest.mark.parametrize("scenario", ["samples", "single-class"])
def test_every_measure_takes_a_probed_model(scenario):
    data = some_data()
    split = Split.samples(data, count=40) if scenario == "samples" else Split.single_class(data, 1)
    model = Pixels()
    probed = probing.probe(model, data.train_images, split.labels, split.retain, 3)
    seen, reference = on_split(probed, data, split), on_split(probed, data, split)
    assert torch.equal(seen["retain_test"].points, seen["retain_test"].features)
    scores = accuracies(seen)
    assert scores["retain_test_accuracy"] > 80
    if scenario == "single-class":
        assert scores["forget_test_accuracy"] == 0
    scores |= membership(seen, clean=True) | embeddings(seen, probed.space, reference)
    assert scores["cka_forget"] == pytest.approx(100)
    assert all(math.isfinite(value) for value in scores.values())


def test_what_a_probe_cannot_learn_from():
    images, labels = classes_of_images(12)
    everything = torch.arange(12)

    def fit(**changes):
        arguments = {"images": images, "labels": labels, "index": everything, "classes": 3} | changes
        return probing.probe(Pixels(), **arguments)

    with pytest.raises(HacoreError, match="no images"):
        fit(index=everything[:0])
    with pytest.raises(HacoreError, match="12 images have 11 labels"):
        fit(labels=labels[:11])
    with pytest.raises(HacoreError, match="are of one"):
        fit(labels=torch.zeros(12, dtype=torch.long))
    with pytest.raises(HacoreError, match=r"labels lie in 0..2, outside 0..1"):
        fit(classes=2)
    with pytest.raises(HacoreError, match="must be positive"):
        fit(l2=0.0)
    broken = Pixels()
    broken.map.data[0, 0] = torch.nan
    with pytest.raises(HacoreError, match="NaN or infinite"):
        probing.probe(broken, images, labels, everything, 3)


def test_neighbours_by_hand():
    # Cosines with the asked (1, 0): 1, 0.8, 0.6 for classes 0, 1, 1. With k = 1 class 0 wins. With k = 3 and
    # T = 1, e^1 = 2.72 against e^0.8 + e^0.6 = 4.05: class 1. With T = 0.1, e^10 = 22026 against
    # e^8 + e^6 = 3384: class 0. The length of a feature does not matter.
    known = torch.tensor([[0.1, 0.0], [8.0, 6.0], [3.0, 4.0], [-9.0, 0.0]])
    labels, asked, answer = torch.tensor([0, 1, 1, 1]), torch.tensor([[5.0, 0.0]]), torch.tensor([0])
    assert probing.knn_accuracy(known, labels, asked, answer, k=1, temperature=1.0) == 100
    assert probing.knn_accuracy(known, labels, asked, answer, k=3, temperature=1.0) == 0
    assert probing.knn_accuracy(known, labels, asked, answer, k=3, temperature=0.1) == 100
    # All four vote where k asks for more: e^-1 more for class 1 changes nothing.
    assert probing.knn_accuracy(known, labels, asked, answer, k=50, temperature=1.0) == 0
    # No temperature overflows: at T = 0.001, e^1000 is infinite.
    assert probing.knn_accuracy(known, labels, asked, answer, k=3, temperature=1e-3) == 100


@pytest.mark.parametrize("k", [1, 5, 500])
def test_neighbours_against_a_slow_loop(k, monkeypatch):
    stream = torch.Generator().manual_seed(3)
    known, asked = torch.randn(60, 4, generator=stream), torch.randn(40, 4, generator=stream)
    labels, answers = (
        torch.randint(0, 4, (60,), generator=stream),
        torch.randint(0, 4, (40,), generator=stream),
    )
    right = 0
    for feature, answer in zip(asked.double(), answers.tolist(), strict=True):
        cosines = [(torch.dot(feature, f) / (feature.norm() * f.norm())).item() for f in known.double()]
        votes = [0.0] * 4
        for place in sorted(range(60), key=lambda i: -cosines[i])[:k]:
            votes[labels[place]] += math.exp(cosines[place] / 0.1)
        right += votes.index(max(votes)) == answer
    expected = 100 * right / 40
    assert 0 < expected < 100
    assert probing.knn_accuracy(known, labels, asked, answers, k=k) == pytest.approx(expected)
    monkeypatch.setattr(probing, "LARGEST", 60 * 7)  # pieces of seven rows
    assert probing.knn_accuracy(known, labels, asked, answers, k=k) == pytest.approx(expected)


def test_neighbours_on_bad_input():
    x, y = torch.ones(3, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(HacoreError, match="no known images"):
        probing.knn_accuracy(x[:0], y[:0], x, y)
    with pytest.raises(HacoreError, match="no asked images"):
        probing.knn_accuracy(x, y, x[:0], y[:0])
    with pytest.raises(HacoreError, match="3 asked images have 2 labels"):
        probing.knn_accuracy(x, y, x, y[:2])
    with pytest.raises(HacoreError, match="2 columns and asked ones 1"):
        probing.knn_accuracy(x, y, x[:, :1], y)
    with pytest.raises(HacoreError, match="NaN or infinite"):
        probing.knn_accuracy(x, y, x * torch.inf, y)
    for wrong in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(HacoreError, match="cannot vote"):
            probing.knn_accuracy(x, y, x, y, **wrong)
