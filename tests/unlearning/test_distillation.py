"""Teachers: what each phase does to the student, and where the loss is zero."""

import copy
import math

import pytest
import torch
from tiny import tiny_run
from torch.nn.functional import cross_entropy

from hacore.data import Batch, as_float
from hacore.errors import HacoreError
from hacore.evaluate import accuracy
from hacore.experiments import prepare
from hacore.geometry import SPACES
from hacore.unlearning.distillation import BadTeacher, Maximise, Minimise, Rounds, Scrub, divergence


@pytest.fixture(scope="module", params=SPACES)
def anywhere(request):
    return prepare(tiny_run(request.param))


@pytest.fixture(scope="module")
def flat():
    return prepare(tiny_run())


def score(request, model, part):
    return accuracy(model, request.dataset.train_images, request.split.labels, getattr(request.split, part))


@torch.no_grad()
def measured(request, model, part):
    """Mean divergence from the original and cross-entropy on a part."""
    index = getattr(request.split, part)
    images, labels = as_float(request.dataset.train_images[index]), request.split.labels[index]
    logits = model.eval()(images)
    return divergence(logits, request.model(images)).mean(), cross_entropy(logits, labels)


def test_divergence_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL(teacher | student) in nats.
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert divergence(student, teacher).item() == pytest.approx(wanted, rel=1e-5)
    # Doubled logits at twice the temperature are the same distributions, times four.
    assert divergence(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 * wanted, rel=1e-5)


def test_rounds_take_turns(flat):
    method = Scrub(batch_size=32)
    forget, retain = (method.over(flat, part) for part in (flat.split.forget, flat.split.retain))
    source = Rounds(forget, retain, epochs=1, rounds=3, msteps=2)  # 2 forget and 13 retain batches
    kinds = "".join(type(batch).__name__[1] for batch in source.epoch(0))
    assert kinds == "aa" + "i" * 4 + "aa" + "i" * 4 + "i" * 5
    assert len(source) == len(kinds) == 17
    seen = torch.cat([b.images for b in source.epoch(0) if isinstance(b, Minimise)])
    assert len(seen) == len(flat.split.retain)  # each once
    rest = list(source.epoch(0, 5))
    for one, two in zip(rest, list(source.epoch(0))[5:], strict=True):
        assert type(one) is type(two)
        assert torch.equal(one.images, two.images)


def test_the_losses_of_scrub_by_hand(flat):
    method = Scrub(alpha=0.5, gamma=2.0, temperature=3.0)
    batch = next(method.over(flat, flat.split.forget).epoch(0))
    student = flat.fresh(flat.split.retain).eval()
    logits = student(batch.images)
    far = divergence(logits, flat.model(batch.images), 3.0).mean().item()
    up, down = (method.loss(student, flat.model, kind(*batch))[0].item() for kind in (Maximise, Minimise))
    assert up == pytest.approx(-far, rel=1e-5)
    wanted = 0.5 * far + 2.0 * cross_entropy(logits, batch.labels).item()
    assert down == pytest.approx(wanted, rel=1e-5)


def test_max_steps_leave_the_original_and_min_steps_lower_the_loss(anywhere):
    method = Scrub(lr=0.01, rounds=1, msteps=1, batch_size=32)
    split = anywhere.split
    student = copy.deepcopy(anywhere.model)
    with torch.no_grad():  # at the original the divergence is flat
        for p in student.parameters():
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))

    def fit(kind, part, model):
        batches = [kind(*b) for b in method.over(anywhere, part).epoch(0)]

        class Source:
            def __len__(self):
                return len(batches)

            def epoch(self, epoch, skip=0):
                return iter(batches[skip:])

        def loss(model, batch):
            return method.loss(model, anywhere.model, batch)

        return method.descend(anywhere, Source(), loss, copy.deepcopy(model), epochs=5).model

    away = fit(Maximise, split.forget, student)
    assert measured(anywhere, away, "forget")[0] > measured(anywhere, student, "forget")[0] + 0.1
    back = fit(Minimise, split.retain, away)
    assert measured(anywhere, back, "retain")[1] < measured(anywhere, away, "retain")[1]


def test_scrub_forgets_the_class(flat):
    after = Scrub(lr=0.01, batch_size=32)(flat)
    assert after.fit.steps == 17
    assert score(flat, after.model, "forget") < 50
    assert score(flat, after.model, "validation") > 85
    with pytest.raises(HacoreError, match="4 of 3 rounds"):
        Scrub(msteps=4)(flat)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(anywhere):
    method = BadTeacher()
    images = as_float(anywhere.dataset.train_images[anywhere.split.retain[:50]])
    good, bad = anywhere.model, anywhere.fresh(anywhere.split.retain).eval()
    retain, forget = (Batch(images, torch.full((50,), flag)) for flag in (0, 1))
    assert method.loss(good, good, bad, retain)[0].item() == pytest.approx(0, abs=1e-6)
    assert method.loss(bad, good, bad, forget)[0].item() == pytest.approx(0, abs=1e-6)
    apart = divergence(good(images), bad(images)).mean().item()
    assert apart > 0.1
    assert method.loss(good, good, bad, forget)[0].item() == pytest.approx(apart, rel=1e-5)


def test_the_bad_teacher_makes_forget_images_unsure(anywhere):
    after = BadTeacher(lr=1e-3, batch_size=32)(anywhere)
    assert after.fit.steps == -(-(45 + round(0.3 * 405)) // 32)
    assert score(anywhere, after.model, "forget") < 30
    assert score(anywhere, after.model, "validation") > 80
    assert measured(anywhere, after.model, "retain")[0] < measured(anywhere, after.model, "forget")[0]
