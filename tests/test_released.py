"""Released checkpoints: the published layouts, slow formulas, files written back to the last bit, all else refused."""

import copy
import gzip
import itertools
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from slow_transformers import linear, norm, slow_text, slow_vit, text_layout, tokens_like, vit_layout
from torch.nn import functional as F

from hacore.data.tokenizer import CLIP_MERGES, Tokenizer
from hacore.encoders import TextEncoder, ViT, encoder
from hacore.encoders.vit import sincos
from hacore.errors import HacoreError
from hacore.geometry import Euclidean, Lorentz, Poincare
from hacore.models import ImageText, Lift, from_config
from hacore.models.released import _build, _check_layout, _layout, _read, load_released, save_released

SMALL = {"width": 24, "depth": 2, "patch": 4, "size": 16, "text_width": 16, "layers": 2, "dim": 12}
HEADS = (3, 2)
TOKENIZER = Tokenizer("clip", (), 10)
RELEASED = {
    "s": {"width": 384, "depth": 12}, "b": {"width": 768, "depth": 12}, "l": {"width": 1024, "depth": 24},
}  # fmt: skip


def meru_layout(
    curved=True, width=384, depth=12, patch=16, size=224,
    vocabulary=49408, length=77, text_width=512, layers=12, dim=512,
):  # fmt: skip
    """Names and shapes of a released MERU model, or of its CLIP, in their order."""
    layout = {"logit_scale": ()}
    if curved:
        layout |= {"curv": (), "visual_alpha": (), "textual_alpha": ()}
    layout |= {"pixel_mean": (3, 1, 1), "pixel_std": (3, 1, 1)}
    layout |= {f"visual.{name}": shape for name, shape in vit_layout(width, depth, patch, size).items()}
    text = text_layout(vocabulary, length, text_width, layers)
    layout |= {f"textual.{name}": shape for name, shape in text.items()}
    return layout | {"visual_proj.weight": (dim, width), "textual_proj.weight": (dim, text_width)}


def openclip_layout(width, depth, patch, size, vocabulary, length, text_width, layers, dim):
    """Names and shapes of an OpenCLIP model with a vision transformer, in their order."""

    def blocks(name, number, side):
        found = {}
        for i in range(number):
            at = f"{name}.{i}."
            found |= norm(at + "ln_1", side)
            found |= {at + "attn.in_proj_weight": (3 * side, side), at + "attn.in_proj_bias": (3 * side,)}
            found |= linear(at + "attn.out_proj", side, side) | norm(at + "ln_2", side)
            found |= linear(at + "mlp.c_fc", side, 4 * side) | linear(at + "mlp.c_proj", 4 * side, side)
        return found

    layout = {"positional_embedding": (length, text_width), "text_projection": (text_width, dim)}
    layout |= {"logit_scale": (), "visual.class_embedding": (width,)}
    layout |= {"visual.positional_embedding": (1 + (size // patch) ** 2, width), "visual.proj": (width, dim)}
    layout |= {"visual.conv1.weight": (width, 3, patch, patch)} | norm("visual.ln_pre", width)
    layout |= blocks("visual.transformer.resblocks", depth, width) | norm("visual.ln_post", width)
    layout |= blocks("transformer.resblocks", layers, text_width)
    return layout | {"token_embedding.weight": (vocabulary, text_width)} | norm("ln_final", text_width)


def filled(layout, seed=0, **numbers):
    """A state dict in which no two parts are alike; a large matrix repeats one row, so that its file is small."""
    generator = torch.Generator().manual_seed(seed)
    state = OrderedDict()
    for name, shape in layout.items():
        if name.endswith("attn_mask"):
            state[name] = torch.ones(shape).triu(1).bool()
            continue
        large = torch.Size(shape).numel() > 20_000
        row = torch.randn(shape[-1:] if large else shape, generator=generator)
        near_one = name.endswith(
            ("norm1.weight", "norm2.weight", "norm.weight", "ln_1.weight", "ln_2.weight")
        )
        state[name] = (0.2 * row + near_one).expand(shape)
    known = {"logit_scale": 2.0, "curv": -0.7, "visual_alpha": -1.5, "textual_alpha": -1.0} | numbers
    state |= {name: torch.tensor(value) for name, value in known.items() if name in state}
    if "pixel_mean" in state:
        state["pixel_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        state["pixel_std"] = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return state


def small(kind="meru", **numbers):
    """A small checkpoint's state dict."""
    sizes = SMALL | {"vocabulary": TOKENIZER.size, "length": TOKENIZER.length}
    if kind in ("openclip", "openai"):
        return filled(openclip_layout(**sizes), **numbers)
    return filled(meru_layout(kind == "meru", **sizes), **numbers)


def write(path, content):
    """A file as released ones are."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(
            {name: t.contiguous() for name, t in content.items()}, path, {"by": "test"}
        )
    else:
        torch.save(content, path)
    return path


def load_small(path, **arguments):
    return load_released(path, TOKENIZER, heads=HEADS, **arguments)


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path / "meru.pth", {"model": small(), "iteration": 120000})


IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
TOKENS = tokens_like([2, 5, 8], 10, end=TOKENIZER.end)


def slow_parts(weights, images, tokens, activation="gelu"):
    """Projected features of images and texts from MERU's state dict, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    visual = {n.removeprefix("visual."): t for n, t in w.items() if n.startswith("visual.")}
    textual = {n.removeprefix("textual."): t for n, t in w.items() if n.startswith("textual.")}
    pixels = (images.double() - w["pixel_mean"]) / w["pixel_std"]
    x = slow_vit(visual, pixels, HEADS[0], SMALL["patch"], activation) @ w["visual_proj.weight"].T
    return x, slow_text(textual, tokens, HEADS[1], activation) @ w["textual_proj.weight"].T, w


def slow_meru(weights, images, tokens):
    """Points, logits, exterior angles at the texts and half-apertures, by the formulas of MERU's paper."""
    x, t, w = slow_parts(weights, images, tokens)
    c = w["curv"].exp()

    def lifted(v):
        length = c.sqrt() * v.norm(dim=1, keepdim=True)
        return length.sinh() * v / length

    x, t = lifted(x * w["visual_alpha"].exp()), lifted(t * w["textual_alpha"].exp())
    x_time, t_time = (1 / c + (x**2).sum(1)).sqrt(), (1 / c + (t**2).sum(1)).sqrt()
    inner = x @ t.T - x_time[:, None] * t_time
    logits = -w["logit_scale"].exp() * (-c * inner).acosh() / c.sqrt()
    matched = c * inner.diagonal()
    angle = ((x_time + t_time * matched) / (t.norm(dim=1) * (matched**2 - 1).sqrt())).acos()
    return x, t, logits, angle, (2 * 0.1 / (c.sqrt() * t.norm(dim=1))).clamp(max=1).asin()


def outputs(model):
    with torch.no_grad():
        x, t = model.embed(IMAGES), model.embed_text(TOKENS)
        return x, t, model.compare(x, t) / model.temperature


def same(actual, expected):
    for ours, slow in zip(actual, expected, strict=False):
        torch.testing.assert_close(ours.double(), slow, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("learnable", [False, True])
def test_meru_is_as_its_paper_says(checkpoint, learnable):
    model = load_small(checkpoint, learnable=learnable)
    x, t, logits, angle, aperture = slow_meru(small(), IMAGES, TOKENS)
    same(outputs(model), (x, t, logits))
    assert x.norm(dim=1).min() > 0.1
    same(
        (model.space.exterior_angle(t, x), model.space.half_aperture(t)),
        (angle, aperture),
    )
    assert model.space.curv.item() == pytest.approx(torch.tensor(-0.7).exp().item())
    assert model.space.learnable is learnable
    assert not model.training
    assert model.objective.entailment == 0.2


def test_clip_is_as_its_paper_says(tmp_path):
    weights = small("clip")
    model = load_small(write(tmp_path / "clip.pth", {"model": weights}))
    x, t, w = slow_parts(weights, IMAGES, TOKENS)
    expected = w["logit_scale"].exp() * F.normalize(x, dim=1) @ F.normalize(t, dim=1).T
    same(outputs(model)[2:], (expected,))
    assert isinstance(model.space, Euclidean)
    assert model.objective.entailment == 0


def renamed(weights):
    """OpenCLIP's weights by MERU's names, written out by hand."""
    found = {"pixel_mean": torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)}
    found["pixel_std"] = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    rules = [
        ("visual.transformer.resblocks", "visual.blocks"), ("transformer.resblocks", "textual.resblocks"),
        ("ln_final", "textual.ln_final"), ("token_embedding", "textual.token_embed"),
        ("visual.ln_pre", "visual.norm_pre"), ("visual.ln_post", "visual.norm"),
        ("visual.conv1", "visual.patch_embed.proj"),
    ]  # fmt: skip
    inner = [
        ("ln_1", "norm1"), ("ln_2", "norm2"), ("attn.in_proj_", "attn.qkv."), ("attn.out_proj", "attn.proj"),
        ("c_fc", "fc1"), ("c_proj", "fc2"),
    ]  # fmt: skip
    for key, tensor in weights.items():
        name = next((new + key[len(old) :] for old, new in rules if key.startswith(old)), key)
        for old, new in inner if name.startswith("visual.blocks") else ():
            name = name.replace(old, new)
        found[name] = tensor
    found["visual.cls_token"] = found.pop("visual.class_embedding")[None, None]
    found["visual.pos_embed"] = found.pop("visual.positional_embedding")[None]
    found["textual.posit_embed"] = found.pop("positional_embedding")
    found["visual_proj.weight"], found["textual_proj.weight"] = (
        found["visual.proj"].T,
        found["text_projection"].T,
    )
    del found["visual.proj"]
    return found


@pytest.mark.parametrize(("kind", "activation"), [(None, "gelu"), ("openclip", "gelu"), ("openai", "quick")])
def test_openclip_is_as_its_code_says(tmp_path, kind, activation):
    weights = small("openclip")
    model = load_small(write(tmp_path / "openclip.pt", weights), kind=kind)
    x, t, w = slow_parts(renamed(weights), IMAGES, TOKENS, activation)
    expected = w["logit_scale"].exp() * F.normalize(x, dim=1) @ F.normalize(t, dim=1).T
    same(outputs(model)[2:], (expected,))


def test_square_projections_are_transposed(tmp_path):
    """Shapes do not tell a square matrix from its transpose."""
    sizes = SMALL | {"vocabulary": TOKENIZER.size, "length": 10, "dim": 24, "text_width": 24}
    weights = filled(openclip_layout(**sizes))
    model = load_released(write(tmp_path / "openclip.pt", weights), TOKENIZER, heads=HEADS)
    assert model.visual_proj.weight.equal(weights["visual.proj"].T)
    assert model.textual_proj.weight.equal(weights["text_projection"].T)


@pytest.fixture(scope="module")
def clip_tokenizer(tmp_path_factory):
    """A tokenizer of CLIP's size from a file of CLIP's length, with other merges."""
    signs = [chr(number) for number in range(ord("!"), ord("~") + 1)]
    pairs = (f"{a} {b}{c}{end}" for c in ("", *signs) for a in signs for b in signs for end in ("", "</w>"))
    merges = list(
        itertools.islice((p for p in pairs if len(p.split(" ")[1].removesuffix("</w>")) == 1), 17_000)
    )
    known = [p.replace(" ", "") for p in merges if not p.endswith("</w>")]
    merges += itertools.islice((f"{a} {b}" for a in known for b in known), CLIP_MERGES - len(merges))
    path = tmp_path_factory.mktemp("merges") / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#version", *merges]).encode(), compresslevel=1))
    return Tokenizer.clip(path)


@pytest.mark.parametrize("curved", [True, False])
def test_small_release_loads_runs_and_is_written_back(tmp_path, clip_tokenizer, curved):
    layout = meru_layout(curved)
    weights = filled(layout)
    weights["visual.pos_embed"] = sincos(384, 14)
    path = write(tmp_path / "released.pth", {"model": weights, "iteration": 120000})
    model = load_released(path, clip_tokenizer)
    assert (model.encoder.name, model.encoder.positions) == ("vit-s", "sincos")
    assert (model.encoder.heads, model.text.heads) == (12, 8)
    with torch.no_grad():
        x, t = model.embed(torch.rand(1, 3, 224, 224)), model.embed_words(["a dog", "an animal"])
    assert x.shape == (1, 512)
    assert model.compare(x, t).isfinite().all()
    save_released(model, tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    identical(again, weights)


@pytest.mark.parametrize(("size", "heads"), [("s", 12), ("b", 12), ("l", 16)])
@pytest.mark.parametrize("curved", [True, False])
def test_released_layouts_are_known(tmp_path, size, heads, curved):
    """All sizes, without the gigabytes: the layout we expect and write, and the shapes on the way through."""
    layout = meru_layout(curved, **RELEASED[size])
    file = _read(write(tmp_path / "released.pth", {"model": filled(layout)}))
    with torch.device("meta"):
        encoder, text, dim = _build(file, None)
    ours = _layout(file, encoder, text, dim)
    assert [(name, tuple(t.shape)) for name, t in ours.items()] == list(layout.items())
    assert all(ours[name].dtype == tensor.dtype for name, tensor in file.weights.items())
    _check_layout(file, ours, "", "")
    assert (encoder.name, encoder.heads, text.heads, dim) == (f"vit-{size}", heads, 8, 512)
    features = encoder(torch.zeros(2, 3, 224, 224, device="meta"))
    assert features.shape == (2, RELEASED[size]["width"])
    assert text(torch.zeros(2, 77, dtype=torch.int64, device="meta")).shape == (2, 512)


def identical(actual, expected):
    """Two state dicts with the same names in one order, types, shapes and bits."""
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        bits = [t.contiguous().view(torch.uint8) if t.dim() else t for t in (actual[name], tensor)]
        assert bits[0].equal(bits[1]), name


EXTRA = {"iteration": 7, "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}}, "note": "kept"}


@pytest.mark.parametrize(
    ("name", "content", "inner"),
    [
        ("meru.pth", {"model": small(), **EXTRA}, "model"),
        ("bare.pt", small(curv=3e-12, visual_alpha=2e-4, logit_scale=4.6052), None),
        ("clip.pth", {"iteration": 7, "model": small("clip")}, "model"),
        ("meru.safetensors", small(), None),
        ("open.pt", {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in small("openclip").items()}}, "state_dict"),
        ("half.pt", {n: t.half() for n, t in small("openclip").items()}, None),
        ("openai.pt", small("openai") | {"input_resolution": torch.tensor(16), "vocab_size": torch.tensor(514)}, None),
        ("bfloat.pt", {n: t if t.dtype == torch.bool else t.bfloat16() for n, t in small().items()}, None),
    ],
)  # fmt: skip
def test_written_back_to_the_last_bit(tmp_path, name, content, inner):
    path = write(tmp_path / name, content)
    model = load_small(path)
    save_released(model, tmp_path / f"again-{name}", like=path)

    def read(path):
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, weights_only=True)

    again = read(tmp_path / f"again-{name}")
    before = read(path)
    identical(again[inner] if inner else again, before[inner] if inner else before)
    if inner:
        assert list(again) == list(content)
        assert str({k: v for k, v in again.items() if k != inner}) == str(
            {k: v for k, v in content.items() if k != inner}
        )
    copied = load_small(tmp_path / f"again-{name}")
    assert copied.config == model.config
    identical(copied.state_dict(), model.state_dict())


def test_changed_weights_keep_the_types_of_the_file(tmp_path):
    path = write(tmp_path / "half.pt", {name: tensor.half() for name, tensor in small("openclip").items()})
    model = load_small(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    save_released(model, path, like=path)
    again = torch.load(path, weights_only=True)
    assert {tensor.dtype for tensor in again.values()} == {torch.float16}
    assert again["visual.proj"].equal(model.visual_proj.weight.T.half())
    assert again["visual.class_embedding"].equal(model.encoder.cls_token[0, 0].half())


def test_safetensors_keep_their_remarks(tmp_path):
    path = write(tmp_path / "meru.safetensors", small())
    save_released(load_small(path), path, like=path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"by": "test"}


def test_an_unlearned_model_goes_back_to_its_users(checkpoint, tmp_path):
    """The file written after training gives, by MERU's formulas, what the model gives."""
    model = load_small(checkpoint, learnable=True)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            )
        model.visual_alpha.fill_(0.3)  # beyond its bound, where the model cuts it and MERU does not
    for like in (checkpoint, None):
        save_released(model, tmp_path / "unlearned.pth", like=like)
        written = torch.load(tmp_path / "unlearned.pth", weights_only=True)
        assert list(written) == (["model"] if like is None else ["model", "iteration"])
        assert list(written["model"]) == list(small())
        same(outputs(model), slow_meru(written["model"], IMAGES, TOKENS)[:3])
        assert written["model"]["curv"].item() != pytest.approx(-0.7, abs=1e-3)
        same(outputs(load_small(tmp_path / "unlearned.pth")), [o.double() for o in outputs(model)])


@pytest.mark.parametrize("kind", ["meru", "clip", "openclip"])
def test_loaded_models_copy_train_and_rebuild(tmp_path, kind):
    path = write(tmp_path / "model.pt", small(kind))
    state = torch.get_rng_state()
    model = load_small(path, learnable=True)
    assert torch.get_rng_state().equal(state)
    other = copy.deepcopy(model)
    again = from_config(model.config)
    again.load_state_dict(model.state_dict())
    for same_model in (other, again.eval()):
        for a, b in zip(outputs(model), outputs(same_model), strict=True):
            assert a.equal(b)
    model.train()
    logits = model.compare(model.embed(IMAGES), model.embed_text(TOKENS)) / model.temperature
    F.cross_entropy(logits, torch.arange(3)).backward()
    for name, parameter in model.named_parameters():
        if kind == "meru" or not name.endswith(("alpha", "theta")):  # cosines know neither
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad if parameter.grad is not None else 0, alpha=1e-2)
    assert not outputs(model)[2].equal(outputs(other)[2])
    identical(small(kind), torch.load(path, weights_only=True))


def test_sines_are_fixed_and_other_positions_learned(tmp_path):
    weights = small()
    weights["visual.pos_embed"] = sincos(SMALL["width"], 4)
    model = load_small(write(tmp_path / "meru.pth", weights))
    assert "encoder.pos_embed" in dict(model.named_buffers())
    same(outputs(model), slow_meru(weights, IMAGES, TOKENS)[:3])
    weights["visual.pos_embed"] = sincos(SMALL["width"], 4) + 0.01
    assert "encoder.pos_embed" in dict(load_small(write(tmp_path / "meru.pth", weights)).named_parameters())


def test_pixel_statistics_are_the_checkpoints(tmp_path):
    weights = small()
    weights["pixel_mean"], weights["pixel_std"] = torch.rand(3, 1, 1), 0.1 + torch.rand(3, 1, 1)
    model = load_small(write(tmp_path / "meru.pth", weights))
    assert model.mean.equal(weights["pixel_mean"])
    assert model.std.equal(weights["pixel_std"])
    same(outputs(model), slow_meru(weights, IMAGES, TOKENS)[:3])


def test_merges_beside_the_file_are_found(tmp_path, clip_tokenizer):
    layout = meru_layout(width=24, depth=1, patch=4, size=16, length=77, text_width=64, layers=1, dim=8)
    path = write(tmp_path / "meru.pth", filled(layout))
    with pytest.raises(HacoreError, match=r"put CLIP's bpe_simple_vocab_16e6\.txt\.gz beside it"):
        load_released(path, heads=(3, 1))
    text = "\n".join(["#version", *clip_tokenizer.merges])
    (tmp_path / "bpe_simple_vocab_16e6.txt").write_text(text, encoding="utf-8")
    model = load_released(path, heads=(3, 1))
    assert model.tokenizer == clip_tokenizer
    assert model.embed_words(["a dog"]).shape == (1, 8)


class Code:
    """What runs when unpickled."""

    def __reduce__(self):
        return print, ("run",)


def changed(name, value, kind="meru"):
    return small(kind) | {name: value}


def without(*names):
    return {name: tensor for name, tensor in small().items() if name not in names}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": small(), "extra": Code()}, r"more than tensors \(\S*print\), which could run code .* refused"),
        ([1, 2], "holds no state dict; give a released"),
        ({}, "lacks visual.cls_token .* and visual.class_embedding"),
        ({"layer1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, "has fc.bias, layer1.weight; give a model"),
        (without("visual.pos_embed"), "it lacks visual.pos_embed; give one"),
        (without("textual.ln_final.bias"), "it lacks textual.ln_final.bias; give one"),
        (without("visual.blocks.0.norm1.weight"), "it lacks visual.blocks.0.norm1.weight; give one"),
        (without("textual.resblocks.1.ln_1.weight"), "it lacks textual.resblocks.1.ln_1.weight; give one"),
        (without(*(name for name in small() if "blocks." in name)), "it lacks visual.blocks.0.norm1.weight, .* more"),
        (without("logit_scale", "curv"), "it lacks logit_scale, curv; give one"),
        (without("textual.attn_mask", *(n for n in small() if "ln_1" in n)), "ln_1.bias and 2 more; give one"),
        (changed("visual.head.weight", torch.zeros(2)), "it also holds visual.head.weight; give one"),
        (changed("curv", "one"), "it lacks curv; give one"),
        (changed("visual.norm.bias", torch.zeros(7)), r"visual.norm.bias \(\(7,\), not \(24,\)\); give one"),
        (changed("visual.pos_embed", torch.zeros(1, 12, 24)), r"visual.pos_embed \(\(1, 12, 24\), not \(1, 10, 24\)\)"),
        (changed("visual.pos_embed", torch.zeros(17, 24)), r"visual.pos_embed has shape \(17, 24\); give one"),
        (changed("visual.proj", torch.zeros(9, 12), "openclip"), r"visual.proj \(\(9, 12\), not \(24, 12\)\)"),
        (changed("visual.norm.bias", torch.full((24,), torch.nan)), "visual.norm.bias of .* holds NaN or infinite"),
        (changed("curv", torch.tensor(torch.inf)), "curv of .* holds NaN or infinite"),
        (changed("curv", torch.tensor(1e4)), "curvature inf is not usable"),
        (changed("pixel_std", torch.zeros(3, 1, 1)), "std .* not positive"),
        (changed("visual.norm.bias", torch.zeros(24).double()), "is of torch.float64; give weights in float32"),
        (changed("textual.attn_mask", torch.zeros(10, 10).bool()), "hides other than later tokens"),
        (changed("textual.token_embed.weight", torch.zeros(600, 16)), "has 514 tokens and the model of .* 600"),
    ],
)  # fmt: skip
def test_other_contents_are_refused(tmp_path, capsys, content, message):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(HacoreError, match=message):
        load_small(tmp_path / "file.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_other_files_are_refused(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(HacoreError, match=r"cannot read .*No such file"):
        load_small(path)
    whole = write(path, small()).read_bytes()
    for damaged in (b"", b"a text", bytes(1000), whole[:200], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(HacoreError, match="is truncated, damaged or no checkpoint"):
            load_small(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(HacoreError, match="cannot read"):
        load_small(path)


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        for name in ("ViT-B-32/data.pkl", "ViT-B-32/constants.pkl", "ViT-B-32/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(HacoreError, match="is a TorchScript program"):
        load_small(tmp_path / "ViT-B-32.pt")


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("meru", "clip", "a model of kind meru, not clip"),
        ("clip", "meru", "a model of kind clip, not meru"),
        ("openclip", "meru", "a model of kind openclip, not meru"),
        (
            "meru",
            "hycoclip",
            "no kind 'hycoclip' of released models; choose one of meru, clip, openclip, openai",
        ),
    ],
)
def test_another_kind_is_refused(tmp_path, kind, wanted, message):
    path = write(tmp_path / "model.pt", small(kind))
    with pytest.raises(HacoreError, match=message):
        load_small(path, kind=wanted)


def test_heads_that_cannot_be_told_are_asked_for(checkpoint):
    with pytest.raises(HacoreError, match="how many heads a network of width 24 has"):
        load_released(checkpoint, TOKENIZER)
    with pytest.raises(HacoreError, match="and 5 heads"):
        load_released(checkpoint, TOKENIZER, heads=(5, 2))


def other(space=None, images=None, **lift):
    """A model that no released layout holds."""
    images = images or ViT("vit", width=24, depth=1, heads=3, patch=4, size=16)
    text = TextEncoder(TOKENIZER.size, 10, 16, 1, 2)
    space = space or Lorentz()
    lift = Lift(space, **({"mode": "free", "scale": 1.0} | lift))
    return ImageText(images, space, (0.5,) * 3, (0.5,) * 3, text, TOKENIZER, 12, lift)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: other(Poincare()), "neither Lorentz nor Euclidean with cosines, but poincare"),
        (lambda: other(Euclidean(similarity="dot")), "neither Lorentz nor Euclidean with cosines"),
        (lambda: other(images=encoder("world")), "its encoder 'world' is no vision transformer"),
        (lambda: other(scale=0.3), "its lift is not free and of scale 1"),
        (lambda: other(mode="clipped"), "its lift is not free and of scale 1"),
    ],
)
def test_models_without_a_layout_are_not_written(tmp_path, make, message):
    with pytest.raises(HacoreError, match=message):
        save_released(make(), tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_files_unlike_the_model_are_refused(checkpoint, tmp_path):
    clip, openclip = (write(tmp_path / f"{kind}.pth", small(kind)) for kind in ("clip", "openclip"))
    model, path = load_small(checkpoint), tmp_path / "written.pth"
    with pytest.raises(
        HacoreError, match="does not hold this model: it lacks curv, visual_alpha, textual_alpha; give"
    ):
        save_released(model, path, like=clip)
    with pytest.raises(
        HacoreError, match="also holds curv, visual_alpha, textual_alpha; give the checkpoint"
    ):
        save_released(load_small(clip), path, like=checkpoint)
    with pytest.raises(HacoreError, match="does not hold this model"):
        save_released(model, path, like=openclip)
    with pytest.raises(HacoreError, match="is written like its checkpoint; give that file as like"):
        save_released(load_small(openclip), path)
    with pytest.raises(HacoreError, match="are of different formats"):
        save_released(model, tmp_path / "written.safetensors", like=checkpoint)
    with torch.no_grad():
        model.visual_proj.weight[0, 0] = torch.nan
    with pytest.raises(
        HacoreError, match=r"visual_proj.weight of the model is NaN or infinite, so nothing is written"
    ):
        save_released(model, path, like=checkpoint)
    assert not path.exists()


def test_an_interrupted_write_keeps_the_old_file(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()
    model = load_small(checkpoint)
    monkeypatch.setattr(
        "os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(HacoreError, match="No space left"):
        save_released(model, checkpoint, like=checkpoint)
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
