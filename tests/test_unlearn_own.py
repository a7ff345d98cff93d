"""Unlearning a checkpoint of one's own: from a released layout and pairs to the same layout, and a report of it."""

import io
import json
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_released import HEADS, TOKENIZER, small, write

from hacore.__main__ import concepts, main
from hacore.data import Split, Tokenizer
from hacore.data.shards import image_text
from hacore.encoders import TextEncoder, ViT
from hacore.errors import HacoreError
from hacore.experiments.own import PAGE, Report, answering, measures, read_tokenizer, unlearn_checkpoint
from hacore.geometry import Euclidean, Lorentz
from hacore.models import ImageText, load_released, save_released
from hacore.train import TrainConfig, seed_everything
from hacore.unlearning import METHODS, Training, train_on

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}
KEEP = ["green", "blue"]
EACH = 40
WORDS = Tokenizer.trained(["a red wall", "the green wall", "blue white", "a photo of a picture"], 300, 12)


def picture(colour, number):
    """A noisy image of one colour, encoded."""
    noise = np.random.default_rng(number).integers(-30, 30, (16, 16, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path, captions):
    """A tar of one image of its colour for each caption."""
    with tarfile.open(path, "w") as tar:
        for number, caption in enumerate(captions):
            colour = next((rgb for name, rgb in COLOURS.items() if name in caption), (9, 9, 9))
            for name, content in (
                (f"{number:04}.png", picture(colour, number)),
                (f"{number:04}.txt", caption.encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    captions = [
        f"{kind} {name} wall" for name in COLOURS for k in range(EACH) for kind in ["a", "the"][k % 2 :][:1]
    ]
    return tar_of(tmp_path_factory.mktemp("pairs") / "pairs.tar", captions)


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    """A MERU and a CLIP checkpoint that know the colours, by kind."""
    data, _ = image_text(pairs, list(COLOURS)[:3], 16, tokenizer=WORDS)
    every = torch.arange(len(data.train_labels))
    found = {}
    for kind, space in (("meru", Lorentz()), ("clip", Euclidean())):
        seed_everything(0)
        body = ViT("vit", width=24, depth=2, heads=3, patch=8, size=16)
        text = TextEncoder(WORDS.size, WORDS.length, 16, 2, 2)
        model = ImageText(body, space, data.mean, data.std, text, WORDS, 12)
        loop = TrainConfig(epochs=25, lr=2e-3, optimizer="adamw")
        train_on(model, data, Split.classes(data, [0]), every, Training(loop, batch_size=32), "original")
        found[kind] = tmp_path_factory.mktemp(kind) / f"{kind}.pth"
        save_released(model, found[kind])
    return found


def unlearned(checkpoint, pairs, out, method="hac", **more):
    more = {"tokenizer": WORDS, "heads": HEADS, "keep": KEEP, "steps": 2, "batch_size": 16} | more
    return unlearn_checkpoint(checkpoint, pairs, ["red"], out, method, **more)


@pytest.mark.parametrize(
    ("kind", "method", "name"),
    [
        ("meru", "hac", "m.pth"),
        ("meru", "hac", "m.safetensors"),
        ("clip", "ac", "m.pth"),
        ("openclip", "ac", "m.pt"),
    ],
)
def test_names_shapes_types_and_what_is_frozen_stay(tmp_path, pairs, kind, method, name):
    path = write(tmp_path / name, small(kind))
    if path.suffix == ".pth":
        torch.save({"model": small(kind), "iteration": 120000, "other": [1.5]}, path)
    before = path.read_bytes()
    out = tmp_path / f"unlearned{path.suffix}"
    unlearned(path, pairs, out, method, lr=1e-3, tokenizer=TOKENIZER)
    assert path.read_bytes() == before
    if path.suffix == ".safetensors":
        import safetensors.torch

        old, new = (safetensors.torch.load_file(file) for file in (path, out))
    else:
        old, new = (torch.load(file, weights_only=True) for file in (path, out))
    if path.suffix == ".pth":
        assert (new["iteration"], new["other"], list(new)) == (120000, [1.5], list(old))
        old, new = old["model"], new["model"]
    assert list(new) == list(old)
    for key, tensor in old.items():
        assert (new[key].shape, new[key].dtype) == (tensor.shape, tensor.dtype), key
    for key in {"curv", "pixel_mean", "pixel_std", "textual.attn_mask"} & set(old):
        assert new[key].equal(old[key]), key
    assert not any(new[key].equal(old[key]) for key in old if key.endswith("ln_final.bias"))
    assert load_released(out, TOKENIZER, heads=HEADS).tokenizer == TOKENIZER
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, out.name, "unlearned-report"])


def test_fixed_positions_and_16_bits_stay_and_the_report_is_of_the_file(trained, pairs, tmp_path):
    content = torch.load(trained["meru"], weights_only=True)["model"]
    path = tmp_path / "half.pth"
    fixed = ("curv", "pixel_mean", "pixel_std", "visual.pos_embed")
    torch.save(
        {k: w.half() if w.is_floating_point() and k not in fixed else w for k, w in content.items()}, path
    )
    found = unlearned(path, pairs, tmp_path / "out.pth", lr=1e-3, steps=4)
    new = torch.load(tmp_path / "out.pth", weights_only=True)
    assert {k: w.dtype for k, w in new.items()} == {
        k: w.dtype for k, w in torch.load(path, weights_only=True).items()
    }
    assert new["visual.pos_embed"].equal(content["visual.pos_embed"])
    assert found.settings["steps"] == 4
    data, _ = image_text(pairs, ["red", *KEEP], 16, tokenizer=WORDS)
    model = load_released(tmp_path / "out.pth", WORDS, heads=HEADS)
    assert measures(model, data, Split.classes(data, [0])) == pytest.approx(found.after, abs=1e-4)


# After 12 steps HAC's prompt AUC, of 48 pairs, has fallen by anything from 0 to 33, as training was rounded.
@pytest.mark.parametrize(("kind", "method", "steps"), [("meru", "hac", 8), ("clip", "ac", 12)])
def test_the_concept_goes_and_the_rest_stays(trained, pairs, tmp_path, kind, method, steps):
    found = unlearned(trained[kind], pairs, tmp_path / "out.pth", method, lr=1e-3, steps=steps)
    before = found.before
    assert before["prompt_auc"] > 95
    assert before["forget_agreement"] > 1
    lost = {name: before[name] - found.after[name] for name in before}
    assert lost["prompt_auc"] > 20
    assert lost["forget_image_to_text_recall_5"] > 40
    assert lost["forget_agreement"] > 1
    assert lost["retain_agreement"] < lost["forget_agreement"] / 2
    assert found.pairs == {
        "forget": 32,
        "retain": 96,
        "forget_held_out": 4,
        "retain_held_out": 12,
        "aside": 16,
    }
    assert found.changed[0] > 0.9 * found.changed[1]
    assert ("radius_prompt" in found.before) == (kind == "meru")


@pytest.mark.parametrize("method", ["finetune", "ac", "gradient-ascent"])
def test_steps_and_epochs(trained, pairs, tmp_path, method):
    found = unlearned(trained["clip"], pairs, tmp_path / "out.pth", method, steps=5)
    assert found.cost["steps"] == 5
    assert found.cost["flops"] > 0
    once = unlearned(trained["clip"], pairs, tmp_path / "once.pth", method, steps=None, epochs=1)
    assert once.cost["steps"] == {"finetune": 6, "ac": 2, "gradient-ascent": 2}[method]


def test_null_space_trains_nothing(trained, pairs, tmp_path):
    found = unlearned(trained["meru"], pairs, tmp_path / "out.pth", "null-space", steps=None, batch_size=None)
    assert found.changed[0] == 1
    assert found.cost["steps"] == 0
    with pytest.raises(HacoreError, match="null-space trains nothing; leave out lr, steps"):
        unlearned(trained["meru"], pairs, tmp_path / "b.pth", "null-space", batch_size=None, lr=1.0)


def test_a_method_with_settings_of_its_own(trained, pairs, tmp_path):
    method = replace(METHODS["hac"], lr=1e-4, entailment=2.5, batch_size=8)
    found = unlearned(trained["meru"], pairs, tmp_path / "out.pth", method, batch_size=None)
    assert (found.settings["lr"], found.settings["entailment"], found.settings["batch_size"]) == (
        1e-4,
        2.5,
        8,
    )
    usual = unlearned(trained["meru"], pairs, tmp_path / "usual.pth", batch_size=None)
    assert (usual.settings["lr"], usual.settings["batch_size"]) == (2.5e-5, 64)


def test_measures_by_hand(trained, pairs, monkeypatch):
    monkeypatch.setattr("hacore.train.fast_precision", lambda: "no")
    data, _ = image_text(pairs, ["red", *KEEP], 16, tokenizer=WORDS)
    split = Split.classes(data, [0])
    model = load_released(trained["meru"], WORDS, heads=HEADS)
    found = measures(model, data, split)
    used = sorted(set(data.test_captions.flatten().tolist()) - {-1})
    index = [*split.test_forget.tolist(), *split.test.tolist()]
    with torch.no_grad():
        images = model.embed(data.test_images[index].float() / 255)
        texts = model.embed_words([data.texts[text] for text in used])
        prompt = model.embed_words(["a photo of a red"])
        alike, asked = model.space.similarity(images, texts), model.space.similarity(images, prompt)[:, 0]
        angles = [[model.space.exterior_angle(t[None], i[None]).item() for t in texts] for i in images]
        apertures = model.space.half_aperture(texts, 0.1).tolist()
    right, wrong, within = [], [], []
    for row, image in enumerate(index):
        for column, text in enumerate(used):
            if text not in data.test_captions[image]:
                wrong.append(alike[row, column].item())
            elif row < len(split.test_forget):
                right.append(alike[row, column].item())
                within.append(angles[row][column] <= apertures[column])
    assert found["forget_agreement"] == pytest.approx(
        (np.mean(right) - np.mean(wrong)) / np.std(wrong, ddof=1), rel=1e-3
    )
    assert found["forget_in_cone"] == pytest.approx(100 * np.mean(within), abs=1e-6)
    n = len(split.test_forget)
    wins = [
        (mine > other) + 0.5 * (mine == other) for mine in asked[:n].tolist() for other in asked[n:].tolist()
    ]
    assert found["prompt_auc"] == pytest.approx(100 * np.mean(wins), abs=1e-3)


def test_one_command(trained, pairs, tmp_path, capsys):
    (tmp_path / "words.json").write_text(json.dumps(WORDS.config))
    out = tmp_path / "new" / "out.pth"
    command = [
        "unlearn", str(trained["meru"]), "--data", str(pairs), "--forget", "red+crimson", "--keep", "green,blue",
        "--out", str(out), "--steps", "2", "--merges", str(tmp_path / "words.json"), "--heads", "3,2",
    ]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    for part in ("prompt finds its concept, AUC", "50 % is chance", "hac: 2 steps", str(out), PAGE):
        assert part in said
    report = json.loads((tmp_path / "new" / "out-report" / "report.json").read_text())
    assert (report["forget"], report["keep"], report["method"]) == (["red"], KEEP, "hac")
    assert report["environment"]["torch"] == torch.__version__
    stamp = out.stat().st_mtime_ns
    assert main(command) == 2
    assert "is there already; choose another place, or force" in capsys.readouterr().err
    assert out.stat().st_mtime_ns == stamp
    assert main([*command, "--force"]) == 0
    assert main([*command[:-1], "3"]) == 2
    assert "--heads is two numbers, as 12,8" in capsys.readouterr().err


def test_concepts_as_they_are_written():
    assert concepts("dog+puppy, cat") == {"dog": ["puppy"], "cat": []}
    assert concepts("") == {}


def test_bad_input_writes_nothing(trained, pairs, tmp_path, monkeypatch):
    few = tar_of(tmp_path / "few.tar", ["a red wall"] * 4 + ["a green wall"] * 20 + ["a blue wall"] * 20)
    alone = tar_of(tmp_path / "alone.tar", ["a red wall"] * 20 + ["a green wall"] * 20)
    (tmp_path / "there.pth").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    before = sorted(tmp_path.rglob("*"))
    meru, out = trained["meru"], tmp_path / "out.pth"

    def refused(message, checkpoint=meru, data=pairs, forget="red", to=out, method="hac", **more):
        more = {"tokenizer": WORDS, "heads": HEADS} | more
        with pytest.raises(HacoreError, match=message):
            unlearn_checkpoint(checkpoint, data, forget, to, method, **more)
        assert sorted(tmp_path.rglob("*")) == before

    refused("there is no checkpoint .*missing.pth; check the path", checkpoint=tmp_path / "missing.pth")
    refused("holds no released model", checkpoint=tmp_path / "other.pth")
    refused("has 514 tokens and the model|tokenizer has", tokenizer=Tokenizer.trained(["a b"], 300, 10))
    refused("none of 160 pairs mentions 'rod'; among their words are red, wall", forget="rod")
    refused("none of 160 pairs mentions 'dog'; among their words are wall", forget="dog")
    refused("only 4 of 44 pairs are about 'red', too few", data=few)
    refused("only 0 of 40 pairs mention no concept", data=alone, keep=["green"])
    refused("holds neither tars nor images", data=tmp_path / "folder")
    refused("is there already; choose another place", to=tmp_path / "there.pth")
    refused("is the checkpoint itself", to=meru, force=True)
    refused("are of different formats", to=tmp_path / "out.safetensors")
    refused("folder is in the way", to=tmp_path / "folder", force=True)
    refused("file is in the way", report=tmp_path / "file")
    refused("hac needs cones, and .*clip.pth is a CLIP model.*; choose ac", checkpoint=trained["clip"])
    refused("retrain is about training on data.*; choose one of .*hac", method="retrain")
    refused("scrub does not unlearn models of images and texts", method="scrub")
    refused("there is no method 'hack'", method="hack")
    refused("nothing is named to be forgotten", forget=[])
    refused("'red' is both to be forgotten and to be kept", keep=["red"])
    refused("both epochs and steps are given", epochs=1, steps=1)
    refused("0 steps change nothing", steps=0)
    refused("is not finite; lower the learning rate", method="ac", lr=1e30, steps=8)
    monkeypatch.setattr(
        Report, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    refused("cannot write .*out.pth: No space left on device", steps=1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    refused("has 0 GB left, and a checkpoint takes", steps=1)


def test_tokenizers_from_files(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(TOKENIZER.config))
    assert read_tokenizer(path) == TOKENIZER
    for text in ("{", "[1]", '{"style": "clip"}'):
        path.write_text(text)
        with pytest.raises(HacoreError, match="tokenizer"):
            read_tokenizer(path)
    with pytest.raises(HacoreError, match="cannot read a tokenizer"):
        read_tokenizer(tmp_path / "none.json")
    with pytest.raises(HacoreError, match="cannot read merges"):
        read_tokenizer(tmp_path / "none.txt")


def test_the_page_needs_nothing_else(trained, pairs, tmp_path):
    found = unlearned(trained["meru"], pairs, tmp_path / "out.pth", steps=1)
    page = (tmp_path / "out-report" / PAGE).read_text()
    assert page == found.page
    for part in ("default-src 'none'", "Unlearning red", "CC-BY-NC", 'role="img"', "rings before"):
        assert part in page
    assert not any(part in page for part in ("http://", "https://", "<script", "src=", "nan"))
    strange = replace(found, forget=("<b>",), after=found.after | {"prompt_auc": 3.0})
    assert "<b>" not in strange.page
    assert any("over-forgetting" in sentence for sentence in strange.sentences)
    assert not any(
        "over-forgetting" in sentence for sentence in replace(strange, after=found.before).sentences
    )
    assert any("Fewer than 30 forget and retain pairs" in sentence for sentence in found.sentences)
    table = found.frame()
    assert (table["after"] - table["before"]).to_list() == table["change"].to_list()


def test_methods_that_answer():
    assert {"hac", "ac", "hac-keep-parent", "finetune", "neggrad-plus", "gradient-ascent", "image-contrast",
            "null-space"} <= set(answering())  # fmt: skip
    assert not {"original", "retrain", "retrain-lifted", "scrub"} & set(answering())
