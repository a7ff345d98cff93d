"""CLIP and MERU against plain loops, the bounds of what they learn, and what they refuse."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny_world import tiny_model, tiny_world

from hacore.data import Batches, Reading
from hacore.encoders import TextEncoder, encoder
from hacore.errors import HacoreError
from hacore.geometry import SPACES, space
from hacore.models import HIERARCHY, ImageText, Lift, Objective, from_config
from hacore.models.image_text import CLIP, MERU
from hacore.train import TrainConfig, fit, load_model, save_model

CURVED = ("lorentz", "poincare")


@pytest.fixture(scope="module")
def data():
    return tiny_world()


def reading(data, size=12):
    everything = torch.arange(len(data.train_labels))
    return Reading(Batches(data.train_images, everything, everything, size, 0), data, 0)


@pytest.fixture(scope="module")
def batch(data):
    return next(iter(reading(data).epoch(0)))


def drawn_texts(batch):
    """Number and tokens of the one text of each image."""
    rows = torch.arange(len(batch.drawn))
    return batch.texts[rows, batch.drawn].tolist(), batch.tokens[rows, batch.drawn]


def slow_contrast(similarity, images, texts, true, scale):
    """Both directions, one pair after the other; every text is a candidate as often as it was drawn."""
    n = len(texts)
    logits = [[scale * similarity(images[i], texts[j]) for j in range(n)] for i in range(n)]
    total = 0.0
    for rows, right in (
        (logits, true),
        ([list(column) for column in zip(*logits, strict=True)], [list(c) for c in zip(*true, strict=True)]),
    ):
        for row, mine in zip(rows, right, strict=True):
            norm = math.log(sum(math.exp(value) for value in row))
            own = [value - norm for value, yes in zip(row, mine, strict=True) if yes]
            total -= sum(own) / len(own) / n / 2
    return total


def features(model, batch):
    """Projected features of images and of their one text, before scales and lift, float64 lists."""
    with torch.no_grad():
        images = model.visual_proj(model.features(batch.images)).double()
        texts = model.textual_proj(model.text(drawn_texts(batch)[1])).double()
    return images.tolist(), texts.tolist()


def truth(batch):
    numbers = drawn_texts(batch)[0]
    return [[number in row for number in numbers] for row in batch.statements.tolist()]


def test_clip_is_a_plain_loop_over_cosines(batch):
    model = tiny_model().eval()
    assert model.objective == CLIP
    images, texts = features(model, batch)

    def cosine(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)

    expected = slow_contrast(cosine, images, texts, truth(batch), 1 / 0.07)
    assert model.loss(batch).item() == pytest.approx(expected, rel=1e-5)


def lorentz_point(feature, scale, c):
    length = math.hypot(*feature) * scale
    factor = scale * math.sinh(math.sqrt(c) * length) / (math.sqrt(c) * length)
    return [factor * value for value in feature]


def slow_meru(images, texts, true, scales, c, logit_scale, weight):
    """MERU as its paper writes it, in the time and space components of the hyperboloid."""
    x, y = ([lorentz_point(f, s, c) for f in fs] for fs, s in zip((images, texts), scales, strict=True))

    def inner(a, b):
        time = math.sqrt(1 / c + sum(v * v for v in a)) * math.sqrt(1 / c + sum(v * v for v in b))
        return sum(v * w for v, w in zip(a, b, strict=True)) - time

    def similarity(a, b):
        return -math.acosh(max(1.0, -c * inner(a, b))) / math.sqrt(c)

    contrast = slow_contrast(similarity, x, y, true, logit_scale)
    hinge = 0.0
    for image, text in zip(x, y, strict=True):
        time_image, time_text = (math.sqrt(1 / c + sum(v * v for v in p)) for p in (image, text))
        product, length = c * inner(text, image), math.hypot(*text)
        angle = math.acos((time_image + time_text * product) / (length * math.sqrt(product**2 - 1)))
        aperture = math.asin(min(1.0, 2 * 0.1 / (math.sqrt(c) * length)))
        hinge += max(0.0, angle - aperture) / len(x)
    return contrast + weight * hinge, contrast, hinge


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("theta", [0.0, -0.6])
def test_merus_loss_is_that_of_its_paper(batch, name, theta):
    model = tiny_model(name).eval()
    assert model.objective == MERU
    with torch.no_grad():
        model.space.theta.fill_(theta)
        model.visual_alpha.fill_(-0.4)  # far enough out for cones that are no half-spaces
        model.textual_alpha.fill_(-1.1)
        model.logit_scale.fill_(1.0)
    images, texts = features(model, batch)
    c = 10 ** math.tanh(theta)
    scales = math.exp(-0.4), math.exp(-1.1)
    total, contrast, hinge = slow_meru(images, texts, truth(batch), scales, c, math.exp(1.0), 0.2)
    value, parts = model.parts(batch)
    assert hinge > 0.1
    assert parts["contrast"].item() == pytest.approx(contrast, rel=1e-4)
    assert parts["entailment"].item() == pytest.approx(hinge, rel=1e-4)
    assert value.item() == pytest.approx(total, rel=1e-4)


def test_one_text_is_read_once_however_many_images_it_is_drawn_for(batch):
    model = tiny_model().eval()
    seen = []
    model.text.register_forward_hook(lambda _, arguments, __: seen.append(len(arguments[0])))
    every = model.read(batch, every_level=True)
    assert seen == [len(set(batch.texts.flatten().tolist()))]
    assert len(every.points) == batch.texts.numel()
    alone = model.embed_text(batch.tokens[every.owner, every.level])
    torch.testing.assert_close(every.points, alone)
    assert torch.equal(every.numbers, batch.texts[every.owner, every.level])
    one = model.read(batch, every_level=False)
    assert torch.equal(one.owner, torch.arange(len(batch.images)))
    assert torch.equal(one.level, batch.drawn)


def test_texts_above_one_another_are_neighbours_in_what_is_read(batch):
    read = tiny_model("lorentz").read(batch, every_level=True)
    general, special = read.steps()
    assert torch.equal(read.owner[general], read.owner[special])
    assert torch.equal(read.level[general] + 1, read.level[special])
    assert len(general) == batch.texts.numel() - len(batch.images)
    holes = batch._replace(texts=batch.texts.clone())
    holes.texts[:, 1] = -1
    read = tiny_model("lorentz").read(holes, every_level=True)
    general, special = read.steps()
    assert set(zip(read.level[general].tolist(), read.level[special].tolist(), strict=True)) == {
        (0, 2),
        (2, 3),
    }


PARTS = {
    "contrast by angle": Objective(contrast="angle"),
    "image in text": Objective(entailment=1.0),
    "image in text, by angle": Objective(contrast="angle", entailment=1.0),
    "text in text": Objective(text_entailment=1.0, every_level=True),
    "exclusion": Objective(exclusion=1.0),
    "floor": Objective(floor=1.0, every_level=True),
    "hierarchy": HIERARCHY,
}


@pytest.mark.parametrize("goal", PARTS.values(), ids=PARTS)
def test_the_loss_is_the_weighted_sum_of_its_parts(batch, goal):
    model = tiny_model("lorentz", goal)
    with torch.no_grad():
        model.textual_alpha.fill_(-2.5)  # near the root: cones are wide, and some texts below the floor
    total, parts = model.parts(batch)
    weighted = sum(part * (1 if name == "contrast" else getattr(goal, name)) for name, part in parts.items())
    assert total.item() == pytest.approx(weighted.item(), rel=1e-5)
    for name in ("entailment", "text_entailment", "exclusion", "floor"):
        if getattr(goal, name):
            assert parts[name].item() > 0, name
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("part", "goal", "alpha"),
    [
        ("entailment", Objective(entailment=1.0, contrast="angle"), -0.5),
        ("text_entailment", Objective(text_entailment=1.0, every_level=True), -0.5),
        ("exclusion", Objective(exclusion=1.0), -2.5),  # near the root, where cones are wide
        ("floor", Objective(floor=1.0, every_level=True), -4.0),
    ],
)
def test_every_part_can_be_learned(data, part, goal, alpha):
    few = next(iter(reading(data, 8).epoch(0)))
    model = tiny_model("lorentz", goal, learnable=False)
    with torch.no_grad():
        model.textual_alpha.fill_(alpha)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02)
    found = []
    for _ in range(10):
        optimiser.zero_grad()
        found.append(model.parts(few)[1][part])
        found[-1].backward()
        optimiser.step()
    assert found[0].item() > 0
    assert found[-1].item() < 0.7 * found[0].item()


def test_the_parts_by_angle_are_means_over_pairs(batch):
    goal = replace(HIERARCHY, every_level=False)
    model = tiny_model("lorentz", goal).eval()
    with torch.no_grad():
        model.textual_alpha.fill_(-0.5)
        parts = model.parts(batch)[1]
        points, texts = model.embed(batch.images), model.read(batch).points
        angle = model.space.exterior_angle(texts[:, None], points[None])
        aperture = model.space.half_aperture(texts, goal.min_radius)
    inside, outside = [], []
    for i, row in enumerate(truth(batch)):
        for j, right in enumerate(row):
            if right:
                inside.append(max(0.0, (angle[j, i] - goal.slack * aperture[j]).item()))
            else:
                outside.append(max(0.0, (aperture[j] + goal.margin - angle[j, i]).item()))
    assert parts["entailment"].item() == pytest.approx(sum(inside) / len(inside), abs=1e-5)
    assert parts["exclusion"].item() == pytest.approx(sum(outside) / len(outside), abs=1e-5)


def test_floors_are_narrower_at_each_level():
    degrees = torch.rad2deg(Objective().floors(7)).tolist()
    assert degrees == pytest.approx([65, 50, 35, 20, 5, 5, 5])


@pytest.mark.parametrize("name", ["visual_alpha", "textual_alpha", "logit_scale"])
def test_scales_are_bounded_and_come_back_from_beyond(batch, name):
    model = tiny_model("lorentz").eval()
    bound = math.log(100) if name == "logit_scale" else 0.0
    parameter = getattr(model, name)

    def value(at):
        with torch.no_grad():
            parameter.fill_(at)
            return model.loss(batch).item()

    assert value(bound + 3) == pytest.approx(value(bound), rel=1e-6)
    assert value(bound - 0.5) != pytest.approx(value(bound), rel=1e-4)
    with torch.no_grad():
        parameter.fill_(bound + 3)
    read = {
        "visual_alpha": lambda: model.embed(batch.images).square().sum(),
        "textual_alpha": lambda: model.embed_text(batch.tokens[:, 0]).square().sum(),
        "logit_scale": lambda: 1 / model.temperature,
    }[name]
    for sign, moves in ((1, True), (-1, False)):  # downhill is inward, then outward
        model.zero_grad()
        (sign * read()).backward()
        assert (parameter.grad > 0).item() == moves
        assert (parameter.grad == 0).item() == (not moves)


def test_the_curvature_stays_within_a_factor_of_ten(batch):
    model = tiny_model("lorentz")
    for theta in (-50.0, 50.0):
        with torch.no_grad():
            model.space.theta.fill_(theta)
        assert 0.0999 <= model.space.curv.item() <= 10.001
        assert model.loss(batch).isfinite()


@pytest.mark.parametrize(
    ("name", "goal"), [*((name, None) for name in SPACES), *((name, HIERARCHY) for name in CURVED)]
)
def test_training_stays_finite_at_a_rate_of_one(data, name, goal):
    model = tiny_model(name, goal)
    loop = TrainConfig(epochs=1, lr=1.0, optimizer="adamw", schedule="constant")
    some = torch.arange(0, 320, 4)
    source = Batches(data.train_images, torch.arange(320), some, 20, 0)
    fit(model, Reading(source, data, 0), lambda model, batch: model.parts(batch), loop, method="test")
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with torch.no_grad():
        points = model.embed(data.test_images[:32].float() / 255)
    assert points.isfinite().all()
    assert (model.space.radius(points) <= model.space.max_radius * 1.001).all()
    assert model.temperature.item() >= 0.0099


def test_a_mean_of_wordings_is_that_of_features_and_one_wording_its_own(data):
    tokens = data.tokens[data.prompts]
    curved = tiny_model("lorentz").eval()
    torch.testing.assert_close(curved.embed_mean(tokens[:, :1]), curved.embed_text(tokens[:, 0]))
    tangent = curved.space.log0(curved.embed_text(tokens.flatten(0, 1))).unflatten(0, tokens.shape[:2])
    torch.testing.assert_close(
        curved.space.log0(curved.embed_mean(tokens)), tangent.mean(1), atol=1e-5, rtol=1e-4
    )
    flat = tiny_model().eval()
    one = torch.nn.functional.normalize(flat.embed_text(tokens.flatten(0, 1)), dim=1).unflatten(
        0, tokens.shape[:2]
    )
    mean, expected = flat.embed_mean(tokens), one.mean(1)
    assert torch.cosine_similarity(mean, expected).min() > 1 - 1e-5


def test_words_and_tokens_are_the_same_thing(data):
    model = tiny_model("poincare").eval()
    said = [data.texts[int(number)] for number in data.prompts[:, 0]]
    torch.testing.assert_close(model.embed_words(said), model.embed_text(data.tokens[data.prompts[:, 0]]))


def test_what_is_compared_is_what_was_trained(batch):
    distance, angle = tiny_model("lorentz"), tiny_model("lorentz", HIERARCHY)
    points = distance.eval().embed(batch.images)
    texts = distance.read(batch).points
    torch.testing.assert_close(distance.compare(points, texts), distance.space.similarity(points, texts))
    torch.testing.assert_close(
        angle.compare(points, texts),
        -angle.space.exterior_angle(texts[None], points[:, None]),
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize("name", SPACES)
def test_a_model_comes_back_from_its_file(tmp_path, data, batch, name):
    model = tiny_model(name, None if name == "euclidean" else HIERARCHY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_model(tmp_path / "model.safetensors", model)
    again = load_model(tmp_path / "model.safetensors")
    assert isinstance(again, ImageText)
    assert again.config == model.config
    assert again.objective == model.objective
    assert again.tokenizer.encode(["a small red hexagon"]).equal(
        model.tokenizer.encode(["a small red hexagon"])
    )
    assert again.space.learnable == model.space.learnable
    assert torch.equal(again.embed(batch.images), model.embed(batch.images))
    assert again.loss(batch).item() == model.loss(batch).item()


def test_a_configuration_rebuilds_and_a_broken_one_is_refused():
    model = tiny_model("lorentz", HIERARCHY)
    assert from_config(model.config).config == model.config
    for damage in (
        {"objective": {"contrast": "touch"}},
        {"objective": {"colour": 1}},
        {"text": {"width": 3}},
        {"dim": 0},
        {"kind": "image and text"},
    ):
        with pytest.raises(HacoreError):
            from_config(copy.deepcopy(model.config) | damage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrast": "smell"}, "no contrast by 'smell'; choose one of distance, angle"),
        ({"entailment": -1.0}, "entailment is -1"),
        ({"floor": math.inf}, "floor is inf"),
        ({"exclusion": math.nan}, "exclusion is nan"),
        ({"min_radius": 0.0}, "min_radius is 0"),
        ({"slack": 0.0}, "slack is 0"),
        ({"widest": 90.0}, "widest half-aperture is 90"),
        ({"narrower": -1.0}, "-1.0 less at each level"),
    ],
)
def test_impossible_objectives_are_refused(change, message):
    with pytest.raises(HacoreError, match=message):
        Objective(**change)


def test_parts_that_do_not_fit_are_refused(data):
    words = data.tokenizer
    where = space("lorentz", 1.0)

    def make(**changes):
        parts = {
            "encoder": encoder("world"), "space": where, "mean": data.mean, "std": data.std,
            "text": TextEncoder(words.size, words.length, 16, 1, 2), "tokenizer": words,
        }  # fmt: skip
        return ImageText(**parts | changes)

    assert make().loss is not None
    for changes, message in (
        ({"dim": 0}, "at least one coordinate, not 0"),
        ({"text": TextEncoder(words.size - 1, words.length, 16, 1, 2)}, "build both for one vocabulary"),
        ({"text": TextEncoder(words.size, words.length - 1, 16, 1, 2)}, "build both for one vocabulary"),
        ({"space": space("euclidean", 1.0), "objective": HIERARCHY}, "euclidean space has no cones"),
        ({"space": space("euclidean", 1.0), "objective": MERU}, "has no cones"),
        ({"lift": Lift(space("lorentz", 2.0))}, "the same Space object"),
        ({"mean": data.mean[:1]}, "for 3 channels"),
    ):
        with pytest.raises(HacoreError, match=message):
            make(**changes)


def test_images_of_other_channels_are_refused():
    with pytest.raises(HacoreError, match="built for 3 channels"):
        tiny_model().embed(torch.zeros(2, 1, 32, 32))


def test_the_encoder_of_drawings_normalises_image_by_image(data):
    body = encoder("world", dim=10).eval()
    images = torch.randn(5, 3, 32, 32)
    out = body(images)
    assert out.shape == (5, 10)
    torch.testing.assert_close(body(images[:2]), out[:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.norm(dim=1), torch.full((5,), math.sqrt(10)), atol=1e-2, rtol=1e-2)
    assert encoder("world").dim == 96
    with pytest.raises(HacoreError, match="at least 8 pixels"):
        body(torch.zeros(2, 3, 7, 9))
