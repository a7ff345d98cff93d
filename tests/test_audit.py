"""``hacore audit``, from files to a report: what it finds, what it writes, and that bad input leaves nothing behind."""

import ast
import base64
import contextlib
import io
import json
import re
import shutil
from html.parser import HTMLParser

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from hacore import geometry
from hacore.__main__ import main
from hacore.audit import evidence as reading
from hacore.audit import gather, image_drops, image_files, load_report, result
from hacore.data import Augment
from hacore.encoders import encoder
from hacore.evaluate.auditing import FORGOTTEN, LIKE_CONTROL, UNCHANGED
from hacore.models import Classifier, SimCLR
from hacore.train import save_model

FILES = ["audit.json", "embeddings.npz", "report.html", "report.ipynb"]


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setenv("HACORE_DEVICE", "cpu")


def points(noise, seed, n=24, of=0, d=6):
    """Two noisy views (n, d) of n images."""
    images = np.random.default_rng(1000 + of).normal(size=(n, d))
    stream = np.random.default_rng(seed)
    return [(0.3 * (images + noise * stream.normal(size=(n, d)))).astype(np.float32) for _ in range(2)]


def arrays(noise, seed, control_noise=None, **more):
    first, second = points(noise, seed)
    found = {"first": first, "second": second}
    if control_noise is not None:
        found["control_first"], found["control_second"] = points(control_noise, seed + 100, of=1)
    return found | more


def pictures(folder, n=12, size=8, grey=True, seed=0):
    folder.mkdir()
    stream = np.random.default_rng(seed)
    for i in range(n):
        shape = (size, size) if grey else (size, size, 3)
        Image.fromarray(stream.integers(0, 256, shape, np.uint8)).save(folder / f"my_{i:02}$.png")
    return folder


def checkpoint(path, seed=0, channels=1, model=SimCLR, where="euclidean", **more):
    torch.manual_seed(seed)
    made = encoder("cnn", channels, 8)
    save_model(
        path, model(made, space=geometry.space(where), mean=[0.5] * channels, std=[0.3] * channels, **more)
    )
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of own views that agree less afterwards, with a control whose views agree as before."""
    folder = tmp_path_factory.mktemp("made")
    np.savez(folder / "before.npz", **arrays(0.2, 1, 0.2))
    np.savez(folder / "after.npz", **arrays(0.9, 2, 0.2))
    images = pictures(folder / "images", 24, grey=False)
    paths = str(folder / "before.npz"), str(folder / "after.npz")
    arguments = ["audit", *paths, "--images", str(images), "--out", str(folder / "a <b>&"), "--seed", "3"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(arguments) == 0
    return paths, folder / "a <b>&", said.getvalue()


class Resources(HTMLParser):
    """What a page asks a browser to load, where its text stands, and its pictures' descriptions."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.alts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.loads += [values[name] for name in ("src", "href", "srcset", "data", "action") if name in values]
        if tag == "img":
            self.alts.append(values["alt"])


def test_forgetting_is_found_in_embeddings_and_reported(made):
    _, folder, out = made
    assert "your images were visibly forgotten" in out
    assert out.splitlines()[-1] == f"The report: {folder / 'report.html'}"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    numbers = json.loads((folder / "audit.json").read_text())
    assert numbers["audit"]["verdict"] == FORGOTTEN
    assert numbers["audit"]["p_value"] <= 0.05
    assert numbers["seed"] == 3
    assert numbers["sentence"] in out
    assert numbers["names"][:2] == ["my_00$.png", "my_01$.png"]
    assert {"hacore", "commit", "torch", "device"} <= numbers["environment"].keys()
    assert len(numbers["drops"]["own"]) == len(numbers["drops"]["others"]) == 24
    assert numbers["command"].split()[:2] == ["hacore", "audit"]
    assert "--seed 3" in numbers["command"]


def test_nothing_is_found_where_nothing_was_asked_to_be_forgotten(tmp_path, capsys):
    np.savez(tmp_path / "before.npz", **arrays(0.3, 1, 0.3))
    np.savez(tmp_path / "after.npz", **arrays(0.3, 2, 0.3))
    paths = [str(tmp_path / "before.npz"), str(tmp_path / "after.npz")]
    assert main(["audit", *paths, "--out", str(tmp_path / "report")]) == 0
    assert "no more than by chance" in capsys.readouterr().out
    verdict = json.loads((tmp_path / "report" / "audit.json").read_text())["audit"]["verdict"]
    assert verdict in {UNCHANGED, LIKE_CONTROL}
    # One service at both times: not even rounding changes.
    found = result(gather(paths[0], paths[0]))
    assert (found.verdict, found.score, found.p_value) == (UNCHANGED, 0, 1)


@pytest.mark.parametrize("control", [True, False])
def test_the_drops_shown_are_those_of_the_score(tmp_path, control):
    for name, noise, seed in (("before", 0.2, 1), ("after", 0.6, 2)):
        np.savez(tmp_path / f"{name}.npz", **arrays(noise, seed, 0.2 if control else None))
    evidence = gather(tmp_path / "before.npz", tmp_path / "after.npz")
    own, others = image_drops(evidence)
    found = result(evidence)
    assert own.mean() == pytest.approx(found.drop)
    assert others.mean() == pytest.approx(found.control_drop)
    assert own.mean() - others.mean() == pytest.approx(found.score)


def test_the_page_stands_alone(made):
    text = (made[1] / "report.html").read_text()
    page = Resources(text)
    assert len(page.loads) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert not {"script", "link", "iframe", "object", "b"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert all(alt.strip() for alt in page.alts)
    assert "prefers-color-scheme: dark" in text
    assert "a &lt;b&gt;&amp;" in text
    for part in ("visibly forgotten", "95 % interval", "Visible is not yet forgotten", "p-value"):
        assert part in text


def test_the_notebook_is_valid_and_its_cells_give_its_outputs(made, monkeypatch, capsys):
    _, folder, _ = made
    book = nbformat.read(folder / "report.ipynb", 4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4]
    monkeypatch.chdir(folder)
    names = {}
    with mpl.rc_context():
        for cell in cells:
            *statements, last = ast.parse(cell.source).body
            exec(compile(ast.Module(statements, []), "cell", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            (output,) = cell.outputs
            if output.output_type == "stream":
                assert capsys.readouterr().out == output.text
            else:
                assert value.data == base64.b64decode(output.data["image/png"])
                assert output.metadata["image/png"]["alt"]
    assert len(names["evidence"].thumbnails) == 16  # those of the gallery


def test_a_report_is_replaced_and_can_be_read_again(made, tmp_path):
    forgotten, old, _ = made
    folder = shutil.copytree(old, tmp_path / "report")
    assert main(["audit", *forgotten[::-1], "--out", str(folder)]) == 0
    evidence, found = load_report(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert evidence.before.source == forgotten[1]
    assert not evidence.thumbnails
    assert found == result(evidence)
    assert "changed most" not in (folder / "report.html").read_text()
    np.testing.assert_array_equal(evidence.before.first, np.load(forgotten[1])["first"])


def test_embeddings_may_be_safetensors_in_half_precision_in_any_space(tmp_path):
    where = geometry.space("poincare", 0.5)
    for name, noise, seed in (("before", 0.2, 1), ("after", 0.6, 2)):
        views = {k: where.exp0(torch.from_numpy(v)).half() for k, v in arrays(noise, seed, 0.2).items()}
        text = {"space": "poincare", "curv": "0.5"}
        safetensors.torch.save_file(views, tmp_path / f"{name}.safetensors", text)
    evidence = gather(tmp_path / "before.safetensors", tmp_path / "after.safetensors")
    assert (evidence.before.space.name, float(evidence.after.space.curv)) == ("poincare", 0.5)
    assert evidence.own[0].dtype == torch.float32
    assert result(evidence).verdict == FORGOTTEN
    assert evidence.one_geometry


def test_a_change_of_geometry_leaves_plain_drops_out(tmp_path):
    flat, ball = arrays(0.2, 1, 0.2), arrays(0.7, 2, 0.2)
    np.savez(tmp_path / "before.npz", **flat)
    np.savez(tmp_path / "after.npz", **ball, space="lorentz", curv=0.25)
    arguments = [
        "audit",
        str(tmp_path / "before.npz"),
        str(tmp_path / "after.npz"),
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(arguments) == 0
    text = (tmp_path / "r" / "report.html").read_text()
    assert "Plain drop" not in text
    assert "The geometry of the service changed" in text
    assert "lorentz, curvature -0.25" in text


def test_without_control_the_report_says_what_it_cannot_tell(tmp_path):
    for name, noise, seed in (("before", 0.2, 1), ("after", 0.6, 2)):
        np.savez(tmp_path / f"{name}.npz", **arrays(noise, seed))
    arguments = [
        "audit",
        str(tmp_path / "before.npz"),
        str(tmp_path / "after.npz"),
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(arguments) == 0
    text = (tmp_path / "r" / "report.html").read_text()
    assert "cannot tell forgetting from any other loss of agreement" in text
    assert "dotted line" not in text


@pytest.mark.parametrize(
    ("model", "more"),
    [(SimCLR, {"dim": 4, "where": "poincare"}), (Classifier, {"classes": 3})],
)
def test_checkpoints_see_the_same_views_before_and_after(tmp_path, model, more):
    images, control = pictures(tmp_path / "own"), pictures(tmp_path / "control", 11, seed=1)
    before = checkpoint(tmp_path / "before.safetensors", 0, model=model, **more)
    after = checkpoint(tmp_path / "after.safetensors", 1, model=model, **more)
    same = gather(before, before, images, control)
    for one, two in zip(same.own[:2], same.own[2:], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    folder = tmp_path / "report"
    folders = ["--images", str(images), "--control", str(control)]
    assert main(["audit", before, after, *folders, "--out", str(folder), "--views", "shift"]) == 0
    evidence, found = load_report(folder)
    assert (found.n, found.n_control) == (12, 11)
    assert evidence.before.space.name == more.get("where", "euclidean")
    assert not torch.equal(evidence.own[0], evidence.own[2])
    # By hand: what the first model makes of both variations of the images in the order of their names.
    network = reading.load_model(before)
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(path)))[None] / 255 for path in image_files(images)]
    )
    varied = Augment("shift", reading.generator(0, "audit", "own").initial_seed())
    with torch.no_grad():
        for step in range(2):
            expected = network.embed(varied(pixels, step))
            torch.testing.assert_close(evidence.own[step], expected)


def test_features_are_what_a_user_is_served(tmp_path):
    images = pictures(tmp_path / "own")
    before = checkpoint(tmp_path / "before.safetensors", where="lorentz", dim=4)
    evidence = gather(before, before, images, layer="features")
    assert evidence.before.space.name == "euclidean"
    assert evidence.own[0].shape == (12, 8)


def test_a_grey_picture_among_coloured_ones_is_one_of_them(tmp_path):
    folder = pictures(tmp_path / "own", grey=False)
    Image.new("L", (8, 8), 100).save(folder / "my_05$.png")
    pixels = reading._stack(image_files(folder), 3)
    assert pixels.shape == (12, 3, 8, 8)
    assert pixels[5].unique().tolist() == [100]
    np.testing.assert_array_equal(pixels[7].permute(1, 2, 0), np.array(Image.open(folder / "my_07$.png")))


# Bad input: one sentence, status 2, nothing written.


def embeddings_case(tmp_path, change, **more):
    before, after = arrays(0.2, 1, 0.2), arrays(0.5, 2, 0.2)
    change(after)
    np.savez(tmp_path / "before.npz", **before)
    np.savez(tmp_path / "after.npz", **after, **more)
    return [str(tmp_path / "before.npz"), str(tmp_path / "after.npz")]


def drop_key(*names):
    return lambda after: [after.pop(name) for name in names]


def put_nan(after):
    after["second"][3, 2] = np.nan


def shorten(after):
    for name in ("first", "second"):
        after[name] = after[name][:20]


def same_views(after):
    after["second"] = after["first"]


def integers(after):
    after["first"] = after["first"].astype(int)


def flatten(after):
    after["first"] = after["first"].ravel()


def objects(after):
    after["first"] = np.array([{}])


def no_change(after):
    pass


EMBEDDINGS = {
    "missing view": (drop_key("second"), {}, "has no second; it must hold embeddings"),
    "one control view": (drop_key("control_first"), {}, "one view of control images"),
    "control on one side": (
        drop_key("control_first", "control_second"),
        {},
        "has control images and .* has none",
    ),
    "nan": (put_nan, {}, "after.npz: second holds NaN"),
    "other count": (shorten, {}, "send the same images each time"),
    "same views": (same_views, {}, "are identical"),
    "integers": (integers, {}, "must be floats"),
    "flat": (flatten, {}, "must be floats of shape"),
    "objects": (objects, {}, "cannot be read as arrays of numbers"),
    "space": (no_change, {"space": "sphere"}, "unknown space 'sphere'"),
    "curvature": (no_change, {"space": "poincare", "curv": -1.0}, "curvature -1.0 is not usable"),
    "curvature text": (no_change, {"curv": "much"}, "curv must be one number"),
    "outside": (no_change, {"space": "poincare", "curv": 100.0}, "outside the ball"),
}


def refused(arguments, message, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["audit", *map(str, arguments), "--out", str(tmp_path / "report")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"hacore: [^\n]*{message}[^\n]*\n", captured.err), captured.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_embeddings_that_cannot_be_audited(case, tmp_path, capsys):
    change, more, message = EMBEDDINGS[case]
    refused(embeddings_case(tmp_path, change, **more), message, tmp_path, capsys)


def test_files_that_are_no_evidence(tmp_path, capsys):
    before, after = embeddings_case(tmp_path, no_change)
    model, images = checkpoint(tmp_path / "model.safetensors"), pictures(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "model.pt").write_text("")
    with open(after, "rb") as file:
        (tmp_path / "cut.npz").write_bytes(file.read()[:300])
    with open(model, "rb") as file:
        (tmp_path / "cut.safetensors").write_bytes(file.read()[:-10])
    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, config in (("config", "{}"), ("broken", "{")):
        safetensors.torch.save_file(
            {"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors", {"config": config}
        )
    few = pictures(tmp_path / "few", 3)
    for arguments, message in (
        ([before, tmp_path / "none.npz"], "there is no file .*none.npz"),
        ([before, images], "there is no file"),
        ([before, tmp_path / "model.pt"], "neither .npz nor .safetensors"),
        ([before, tmp_path / "text.npz"], "text.npz cannot be read as arrays"),
        ([before, tmp_path / "cut.npz"], "cut.npz cannot be read as arrays"),
        ([before, tmp_path / "text.safetensors"], "truncated or damaged"),
        ([model, tmp_path / "cut.safetensors", "--images", images], "truncated or damaged"),
        ([before, tmp_path / "other.safetensors"], "has no first and no second"),
        ([before, model, "--images", images], "give two files of embeddings, or two checkpoints"),
        ([model, tmp_path / "config.safetensors", "--images", images], "config.safetensors is no checkpoint"),
        ([model, tmp_path / "broken.safetensors", "--images", images], "broken.safetensors is no checkpoint"),
        ([model, model], "name their folder with --images"),
        ([before, after, "--control", images], "put control_first and control_second"),
        ([before, after, "--images", images], "12 images and .* embeddings of 24"),
        ([model, model, "--images", tmp_path / "empty"], "no images in"),
        ([model, model, "--images", tmp_path / "nowhere"], "no folder"),
        ([model, model, "--images", few], "3 own images are too few"),
        ([model, model, "--images", images, "--control", images], "folder of your own images"),
        ([model, model, "--images", images, "--views", "none"], "augmentation 'none'"),
        ([model, model, "--images", images, "--views", "blur"], "unknown augmentation 'blur'"),
        ([model, model, "--images", images, "--layer", "last"], "unknown layer 'last'"),
    ):
        refused(arguments, message, tmp_path, capsys)


def test_images_that_do_not_fit(tmp_path, capsys):
    model, colour = (checkpoint(tmp_path / f"{c}.safetensors", channels=c) for c in (1, 3))
    images = pictures(tmp_path / "images")
    coloured = pictures(tmp_path / "coloured", grey=False)
    large = pictures(tmp_path / "large", size=9)
    tiny = pictures(tmp_path / "tiny", size=3)
    mixed = pictures(tmp_path / "mixed")
    Image.new("L", (8, 9)).save(mixed / "my_03$.png")
    corrupt = pictures(tmp_path / "corrupt")
    (corrupt / "my_07$.png").write_bytes((corrupt / "my_08$.png").read_bytes()[:60])
    text = pictures(tmp_path / "text")
    (text / "z.jpg").write_text("no picture")
    deep = pictures(tmp_path / "deep")
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(deep / "my_00$.png")
    for arguments, message in (
        ([model, colour, "--images", images], "of 1 channels and .* of 3"),
        ([model, model, "--images", coloured], "are coloured and the models take 1 channel;"),
        ([colour, colour, "--images", images], "are grey and the models take 3 channels"),
        ([model, model, "--images", images, "--control", large], "differ in size"),
        ([model, model, "--images", mixed], "must share one size, but .* 8 x 8 pixels and .* 8 x 9"),
        ([model, model, "--images", corrupt], r"my_07\$.png cannot be read as an image"),
        ([model, model, "--images", text], "z.jpg cannot be read as an image"),
        ([model, model, "--images", deep], "more than 8 bits"),
        ([model, model, "--images", tiny], "at least 4 pixels"),
    ):
        refused(arguments, message, tmp_path, capsys)


def test_a_model_that_answers_nan_is_told(tmp_path, capsys):
    images, good = pictures(tmp_path / "images"), checkpoint(tmp_path / "good.safetensors")
    model = reading.load_model(good)
    with torch.no_grad():
        model.projector[0].weight.fill_(float("nan"))
    save_model(tmp_path / "bad.safetensors", model)
    refused([good, tmp_path / "bad.safetensors", "--images", images], "NaN or infinite", tmp_path, capsys)


def test_a_file_in_the_way_of_the_report_stays(made, tmp_path, capsys):
    (tmp_path / "report").write_text("mine")
    refused(made[0], "report is a file", tmp_path, capsys)
    assert (tmp_path / "report").read_text() == "mine"


def test_a_damaged_report_is_told(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "r")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        load_report(tmp_path)
    numbers = tmp_path / "r" / "audit.json"
    numbers.write_text(numbers.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(ValueError, match="another version of hacore"):
        load_report(tmp_path / "r")
