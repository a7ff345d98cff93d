"""Loading: what is read, what is cached, and what every bad file says."""

import resource
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hacore.data import DATASETS, load, sources
from hacore.errors import HacoreError


def test_digits_come_with_scikit_learn():
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    digits = load("digits")
    assert digits.train_images.shape == (1078, 1, 8, 8)
    assert digits.test_images.shape == (719, 1, 8, 8)
    assert digits.channels == 1
    shares = digits.train_labels.bincount() / torch.from_numpy(target).bincount()
    assert (shares - 0.6).abs().max() < 0.005
    # Every image is there once, and the scaling is undone by rounding.
    images = torch.cat([digits.train_images, digits.test_images])
    rows = torch.cat(
        [
            (images.float() / 255 * 16).round().flatten(1),
            torch.cat([digits.train_labels, digits.test_labels])[:, None],
        ],
        1,
    )
    expected = torch.cat([torch.from_numpy(pixels).float(), torch.from_numpy(target)[:, None]], 1)
    assert torch.equal(rows.unique(dim=0), expected.unique(dim=0))
    assert images.unique().tolist() == [int(k * 255 / 16 + 0.5) for k in range(17)]
    assert torch.equal(load("digits").train_images, digits.train_images)


def test_pixels_and_labels_are_exact(cifar10):
    root, pixels = cifar10
    dataset = load("cifar10", root)
    assert torch.equal(torch.cat([dataset.train_images, dataset.test_images]), pixels)
    assert dataset.train_labels.tolist() == [*range(10), *range(10)]
    assert dataset.classes[5] == "dog"
    assert dataset.superclasses == dataset.superclass_of == ()
    scaled = pixels[:20].double() / 255
    assert torch.allclose(torch.tensor(dataset.mean).double(), scaled.mean((0, 2, 3)))
    assert torch.allclose(torch.tensor(dataset.std).double(), scaled.std((0, 2, 3), correction=0))


def test_folder_comes_from_the_environment(cifar10, monkeypatch):
    monkeypatch.setenv("HACORE_DATA", str(cifar10[0]))
    assert len(load("cifar10").train_labels) == 20


def test_svhn_names_its_image_column_image(tmp_path, png, write_parquet):
    grey = png(np.full((32, 32), 7, dtype=np.uint8))  # any mode Pillow reads becomes RGB
    for part in ("train", "test"):
        write_parquet(
            tmp_path / f"svhn/{part}-0.parquet", {"image": [grey] * 3, "label": [0, 9, 4]}, image="image"
        )
    dataset = load("svhn", tmp_path)
    assert (dataset.test_images == 7).all()
    assert dataset.train_labels.tolist() == [0, 9, 4]


def write_cifar100(root, png, write_parquet, coarse):
    fine = list(range(100))
    for part in ("train", "test"):
        columns = {
            "img": [png(np.zeros((32, 32, 3), dtype=np.uint8))] * 100,
            "fine_label": fine,
            "coarse_label": coarse,
        }
        write_parquet(root / f"cifar100/{part}-00000-of-00001.parquet", columns)
        coarse = [k % 20 for k in fine]


def test_superclasses_are_read_from_the_files(tmp_path, png, write_parquet):
    write_cifar100(tmp_path, png, write_parquet, [k % 20 for k in range(100)])
    dataset = load("cifar100", tmp_path)
    assert dataset.superclass_of == tuple(k % 20 for k in range(100))
    assert (len(dataset.classes), len(dataset.superclasses)) == (100, 20)
    assert load("cifar100", tmp_path).superclass_of == dataset.superclass_of  # from the cache


def test_contradicting_superclasses_are_refused(tmp_path, png, write_parquet):
    write_cifar100(tmp_path, png, write_parquet, [0] * 100)
    with pytest.raises(HacoreError, match="exactly one superclass"):
        load("cifar100", tmp_path)


class TestCache:
    @pytest.fixture
    def decoded(self, monkeypatch):
        """The files decoded so far."""
        seen, decode = [], sources._decode_images
        monkeypatch.setattr(
            sources, "_decode_images", lambda path, *rest: seen.append(path.name) or decode(path, *rest)
        )
        return seen

    def test_images_are_decoded_once(self, cifar10, decoded, tmp_path):
        first, second = load("cifar10", cifar10[0]), load("cifar10", cifar10[0])
        assert len(decoded) == 3
        assert torch.equal(first.train_images, second.train_images)
        assert first.mean == second.mean
        assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".safetensors"]

    def test_a_changed_file_is_decoded_again(self, cifar10, decoded, png, write_parquet):
        root, pixels = cifar10
        load("cifar10", root)
        encoded = png(pixels[0].permute(1, 2, 0).contiguous().numpy())
        write_parquet(root / "cifar10/test-00000-of-00001.parquet", {"img": [encoded] * 4, "label": [1] * 4})
        assert load("cifar10", root).test_labels.tolist() == [1] * 4
        assert len(decoded) == 6

    @pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
    def test_a_damaged_cache_is_rebuilt(self, cifar10, decoded, tmp_path, caplog, damage):
        expected = load("cifar10", cifar10[0]).train_images.clone()
        (cache,) = (tmp_path / "cache").iterdir()
        content = bytearray(cache.read_bytes())
        content[-1] ^= 1
        cache.write_bytes({"flip": content, "truncate": content[:-9], "empty": b""}[damage])
        assert torch.equal(load("cifar10", cifar10[0]).train_images, expected)
        assert "is damaged" in caplog.text
        load("cifar10", cifar10[0])
        assert len(decoded) == 6

    def test_a_full_disk_costs_the_cache_only(self, cifar10, tmp_path, caplog):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            dataset = load("cifar10", cifar10[0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(dataset.train_images) == 20
        assert "cannot write" in caplog.text
        assert list((tmp_path / "cache").iterdir()) == []

    def test_an_unwritable_folder_costs_the_cache_only(self, cifar10, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").touch()
        monkeypatch.setenv("HACORE_CACHE", str(tmp_path / "file"))
        assert len(load("cifar10", cifar10[0]).train_images) == 20
        assert "set HACORE_CACHE" in caplog.text


class TestHub:
    def test_the_right_files_are_asked_for(self, cifar10, monkeypatch):
        asked = {}

        def snapshot_download(repository, **options):
            asked[repository] = options
            (cifar10[0] / "cifar10").rename(cifar10[0] / "plain_text")  # the hub's layout
            return str(cifar10[0])

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        assert len(load("cifar10").train_labels) == 20
        patterns = ["plain_text/train-*.parquet", "plain_text/test-*.parquet"]
        assert asked == {"uoft-cs/cifar10": {"repo_type": "dataset", "allow_patterns": patterns}}

    @pytest.mark.parametrize("kind", ["offline", "unreachable", "interrupted", "gone"])
    def test_failures_say_what_to_do(self, monkeypatch, kind):
        from huggingface_hub import errors

        error = {
            "offline": errors.OfflineModeIsEnabled("offline mode is enabled"),
            "unreachable": errors.LocalEntryNotFoundError("check your connection\nand more"),
            "interrupted": errors.HTTPError("the server closed the connection"),
            "gone": RuntimeError(),
        }[kind]

        def snapshot_download(*_, **__):
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        with pytest.raises(HacoreError, match=r"cannot download svhn .*set HACORE_DATA") as caught:
            load("svhn")
        assert "\n" not in str(caught.value)


def test_decoding_shows_progress_on_a_terminal_only(cifar10, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    load("cifar10", cifar10[0])
    assert capsys.readouterr().err == ""
    for file in (cifar10[0] / "cifar10").iterdir():
        file.touch()  # so that the cache does not apply
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    load("cifar10", cifar10[0])
    assert "decoding cifar10: 30 images" in capsys.readouterr().err
    for file in (cifar10[0] / "cifar10").iterdir():
        file.touch()
    monkeypatch.setenv("CI", "true")
    load("cifar10", cifar10[0])
    assert capsys.readouterr().err == ""


TEST_FILE = "cifar10/test-00000-of-00001.parquet"
BAD = {
    "no folder": ("no test-\\*.parquet in", lambda path: path.unlink()),
    "missing shard": (
        "holds 1 of 2 test files",
        lambda path: path.rename(path.with_stem("test-00000-of-00002")),
    ),
    "truncated": (f"cannot read .*{TEST_FILE}", lambda path: path.write_bytes(path.read_bytes()[:-40])),
    "no parquet": (f"cannot read .*{TEST_FILE}", lambda path: path.write_bytes(b"<html>not found</html>")),
    "empty file": (f"cannot read .*{TEST_FILE}", lambda path: path.write_bytes(b"")),
}
COLUMNS = {
    "no label": ("no column 'label'", lambda good: {"img": [good]}),
    "labels of text": (
        "'label' .* not free of gaps and integer",
        lambda good: {"img": [good], "label": ["cat"]},
    ),
    "gaps in labels": ("'label' .* not free of gaps", lambda good: {"img": [good] * 2, "label": [1, None]}),
    "label too large": ("'label' .* leaves the range 0..9", lambda good: {"img": [good], "label": [10]}),
    "label negative": ("'label' .* leaves the range 0..9", lambda good: {"img": [good], "label": [-1]}),
    "no image bytes": (
        "image 1 of .* cannot be decoded",
        lambda good: {"img": [good, None], "label": [1, 1]},
    ),
    "no image": (
        "image 1 of .* cannot be decoded",
        lambda good: {"img": [good, b"no image"], "label": [1, 1]},
    ),
    "half an image": ("image 0 of .* cannot be decoded", lambda good: {"img": [good[:200]], "label": [1]}),
    "no rows": ("0 test images", lambda _: {"img": [], "label": pa.array([], pa.int64())}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_end_in_one_sentence(cifar10, tmp_path, case):
    message, spoil = BAD[case]
    spoil(cifar10[0] / TEST_FILE)
    with pytest.raises(HacoreError, match=message) as caught:
        load("cifar10", cifar10[0])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("case", COLUMNS)
def test_bad_columns_end_in_one_sentence(cifar10, tmp_path, png, write_parquet, case):
    message, columns = COLUMNS[case]
    good = png(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    write_parquet(cifar10[0] / TEST_FILE, columns(good))
    with pytest.raises(HacoreError, match=message) as caught:
        load("cifar10", cifar10[0])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.struct([("path", pa.string())]), pa.struct([("bytes", pa.int64())])]
)
def test_an_image_column_of_another_kind_is_refused(cifar10, kind):
    pq.write_table(pa.table({"img": pa.array([None], kind), "label": [1]}), cifar10[0] / TEST_FILE)
    with pytest.raises(HacoreError, match="not a struct with binary bytes"):
        load("cifar10", cifar10[0])


def test_images_of_another_size_are_refused(cifar10, png, write_parquet):
    write_parquet(cifar10[0] / TEST_FILE, {"img": [png(np.zeros((28, 32, 3), dtype=np.uint8))], "label": [1]})
    with pytest.raises(HacoreError, match=r"image 0 of .* is 32 x 28 pixels, not 32 x 32"):
        load("cifar10", cifar10[0])


def test_unknown_names_and_folders(tmp_path):
    with pytest.raises(HacoreError, match="unknown dataset 'mnist'; choose one of: digits, world, cifar10"):
        load("mnist")
    with pytest.raises(HacoreError, match="set HACORE_DATA to the folder that holds cifar10/"):
        load("cifar10", tmp_path / "nowhere")


def test_class_names_are_distinct():
    for source in DATASETS.values():
        assert len(set(source.classes)) == len(source.classes)
    assert [len(source.classes) for source in DATASETS.values()] == [10, 16, 10, 100, 10]
