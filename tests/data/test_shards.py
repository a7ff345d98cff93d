"""Tars and folders of images with texts: what is read, what is skipped and why, in which order, by whom."""

import gzip
import io
import json
import sys
import tarfile
import threading
import weakref
from itertools import chain, islice

import numpy as np
import pytest
import torch
from PIL import Image

from hacore.data import Augment
from hacore.data.captioned import Captioned
from hacore.data.reading import Captions
from hacore.data.shards import (
    Concepts,
    Report,
    Sample,
    ShardBatches,
    Shards,
    Unusable,
    decode,
    decoded,
    find,
    image_text,
    mentions,
    select,
)
from hacore.data.shards import read as reading
from hacore.data.shards.pictures import AHEAD
from hacore.data.shards.stream import text_number
from hacore.data.tokenizer import Tokenizer
from hacore.errors import HacoreError
from hacore.train import EpochSource

WORDS = {"dog": ["puppy"], "cat": []}
TOKENIZER = Tokenizer.trained(["a dog", "a cat", "something else"], length=8)
ALONE = (0, 1)


def encoded(value=0, size=(16, 16), kind="PNG", mode="RGB", **options):
    """An image of one colour, whose red says which it is."""
    buffer = io.BytesIO()
    colour = (value, 1, 2) if mode == "RGB" else value
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_folder(path, members):
    for name, content in members:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(start, stop, caption="a dog"):
    """Samples whose number is their key and the red of their image."""
    return [m for k in range(start, stop) for m in ((f"{k:04}.png", encoded(k)), (f"{k:04}.txt", caption))]


def write_shards(folder, counts, captions=("a dog", "a cat", "an old boat")):
    """Tars of this many samples, numbered through, whose captions go round."""
    start = 0
    for shard, count in enumerate(counts):
        members = [pairs(k, k + 1, captions[k % len(captions)]) for k in range(start, start + count)]
        write_tar(folder / f"{shard:05}.tar", chain(*members))
        start += count
    return folder


def keys(source, epoch=None, report=None, **options):
    return [sample.key for sample in Shards(source, **options).samples(report or Report(), epoch)]


def visited(batches):
    """The numbers of the images, written in their red."""
    return [value for batch in batches for value in (batch.images[:, 0, 0, 0] * 255).round().int().tolist()]


# Layouts


def test_the_layouts_of_cc3m_coco_and_redcaps(tmp_path):
    members = [
        ("cc3m.jpg", encoded(kind="JPEG")),
        ("cc3m.txt", "A  Dog\tin the park &amp; a ball\n"),
        ("cc3m.json", json.dumps({"caption": "A  Dog\tin the park &amp; a ball", "status": "success"})),
        ("images/coco.JPEG", encoded(kind="JPEG")),
        ("images/coco.txt", "two dogs\n\nsome grass\ntwo dogs\n"),
        ("list.json", json.dumps({"captions": ["one", None, "two"]})),
        ("list.webp", encoded(kind="WEBP")),
        ("redcaps.json", json.dumps({"caption": "good boy", "subreddit": "DogPictures"})),
        ("redcaps.png", encoded()),
    ]
    report = Report()
    found = list(Shards(write_tar(tmp_path / "a.tar", members)).samples(report))
    assert [(s.key, s.captions, s.subreddit) for s in found] == [
        ("cc3m", ("a dog in the park & a ball",), ""),
        ("images/coco", ("two dogs", "some grass"), ""),
        ("list", ("one", "two"), ""),
        ("redcaps", ("good boy",), "dogpictures"),
    ]
    assert found[3].image == encoded()
    assert report.seen == 0  # what is yielded is counted when it has been decoded


def test_what_does_not_belong_to_a_sample_is_passed_over(tmp_path):
    members = [
        ("__meta__.json", "{}"),
        ("._0001.png", b"resource fork"),
        ("0001.png", encoded()),
        ("0001.seg.png", b"another image, not the sample's"),
        ("0001.txt", "a dog"),
        ("README.md", "about these"),
    ]
    report = Report()
    assert keys(write_tar(tmp_path / "a.tar", members), report=report) == ["0001"]
    assert report.seen == 0


@pytest.mark.parametrize(("suffix", "mode"), [("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar", "w:xz")])
def test_compressed_tars_are_read(tmp_path, suffix, mode):
    path = write_tar(tmp_path / f"a.{suffix}", pairs(0, 3), mode)
    assert keys(path) == ["0000", "0001", "0002"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_and_a_tar_give_equal_data(tmp_path, nested):
    members = list(
        chain(*(pairs(k, k + 1, f"{w} {k}") for k, w in enumerate(["a dog", "a cat", "boat"] * 4)))
    )
    members.append(("0012.png", b"garbage"))
    members.append(("0012.txt", "a dog"))
    if nested:
        members = [(f"part/{name}", content) for name, content in members]
    one, first = image_text(write_folder(tmp_path / "folder", members), WORDS, size=8)
    other, second = image_text(write_tar(tmp_path / "a.tar", members), WORDS, size=8)
    assert torch.equal(one.train_images, other.train_images)
    assert torch.equal(one.test_images, other.test_images)
    assert torch.equal(one.captions, other.captions)
    assert one.texts == other.texts
    assert first.skipped == second.skipped == {"undecodable image": 1}
    assert first.kept == second.kept == 12
    in_folder, in_tar = (list(Shards(tmp_path / name).samples(Report())) for name in ("folder", "a.tar"))
    assert [s._replace(shard="") for s in in_folder] == [s._replace(shard="") for s in in_tar]


# Patterns


def test_patterns_folders_and_lists_name_the_same_shards(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", [1] * 12)
    everything = [tmp_path / "shards" / f"{k:05}.tar" for k in range(12)]
    for source in (
        tmp_path / "shards",
        str(tmp_path / "shards"),
        f"{tmp_path}/shards/{{00000..00011}}.tar",
        f"{tmp_path}/shards/*.tar",
        f"{tmp_path}/**/*.tar",
        f"{tmp_path}/shards/000{{00..09}}.tar {tmp_path}/shards/0001{{0,1}}.tar".split(),
        [*everything, everything[0]],  # a shard named twice is read once
        f"{tmp_path}/{{shards,}}/000{{0,1}}?.tar".replace("shards,", "shards,shards"),
    ):
        assert [shard.path for shard in find(source)] == everything, source
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [shard.path for shard in find("~/shards/{00000..00011}.tar")] == everything


def test_a_path_that_looks_like_a_pattern_is_a_path(tmp_path):
    path = write_tar(tmp_path / "{0..3}" / "[ab].tar", pairs(0, 1))
    assert [shard.path for shard in find(path)] == [path]


def test_sources_that_are_not_there(tmp_path):
    write_shards(tmp_path, [1, 1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"")
    for source, message in {
        f"{tmp_path}/{{00000..00003}}.tar": "2 of 4 shards of .* are missing, the first is .*00002.tar",
        f"{tmp_path}/none*.tar": "1 of 1 shards",
        str(tmp_path / "nothing"): "check the path",
        str(tmp_path / "empty"): "neither tars nor images",
        str(tmp_path / "a.zip"): "is no tar",
    }.items():
        with pytest.raises(HacoreError, match=message):
            find(source)
    with pytest.raises(HacoreError, match="no shards are named"):
        find([])


# What is skipped, and why


def test_bad_samples_are_counted_by_reason_and_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST", 10_000)
    jpeg = encoded(kind="JPEG", size=(64, 64))
    members = [
        *pairs(0, 1),
        ("garbage.jpg", b"\xff\xd8 no image"),
        ("garbage.txt", "a dog"),
        ("cut.jpg", jpeg[: len(jpeg) // 2]),
        ("cut.txt", "a dog"),
        ("deep.png", encoded(300, mode="I;16")),
        ("deep.txt", "a dog"),
        ("silent.png", encoded()),
        ("silent-too.png", encoded()),
        ("silent-too.json", json.dumps({"caption": None, "subreddit": "dogs"})),
        ("empty.png", encoded()),
        ("empty.txt", " \n &nbsp; "),
        ("empty-too.png", encoded()),
        ("empty-too.json", json.dumps({"caption": ""})),
        ("broken.png", encoded()),
        ("broken.json", '{"caption": "a dog'),
        ("array.png", encoded()),
        ("array.json", '["a dog"]'),
        ("words.txt", "a dog"),
        ("huge.png", b"\0" * 10_001),
        ("huge.txt", "a dog"),
        ("pixel.png", encoded(size=(1, 1))),
        ("pixel.txt", "a dog"),
        ("twice.png", encoded(1)),
        ("twice.txt", "a dog"),
        ("twice.png", encoded(2)),
        ("twice.txt", "a cat"),
        ("kinds.jpg", encoded(3, kind="JPEG")),
        ("kinds.png", encoded(4)),
        ("kinds.txt", "a dog"),
    ]
    report = Report()
    stream = Shards(write_tar(tmp_path / "a.tar", members)).samples(report)
    found = {sample.key: (sample, int(image[0, 0, 0])) for sample, image in decoded(stream, report, 8)}
    assert found.keys() == {"0000", "twice", "kinds"}
    assert found["twice"][0].captions == ("a dog",)
    assert found["twice"][1] == 1
    assert found["kinds"][1] == 3
    assert report.skipped == {
        "undecodable image": 3,
        "no caption": 2,
        "empty caption": 2,
        "damaged json": 2,
        "no image": 1,
        "absurd size": 2,
        "duplicate key": 2,
    }
    assert report.kept == 3
    assert report.seen == 17
    assert report.examples["no image"] == [f"{tmp_path}/a.tar: words"]
    text = str(report)
    assert text.startswith("3 of 17 samples kept\n3 skipped, undecodable image: ")
    assert "silent-too" in text


def test_examples_are_a_few():
    report = Report()
    for k in range(1000):
        report.skip("no image", f"a.tar: {k}")
    assert report.examples == {"no image": ["a.tar: 0", "a.tar: 1", "a.tar: 2"]}
    assert report.skipped["no image"] == report.seen == 1000


@pytest.mark.parametrize("length", [0, 100, 512 * 4 + 7, 512 * 6, 512 * 8, 512 * 9 + 100])
def test_a_tar_that_breaks_off_gives_what_is_whole(tmp_path, length):
    """Members of this tar are two blocks long each, header and content: a sample is four."""
    whole = write_tar(tmp_path / "whole.tar", pairs(0, 3)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:length])
    report = Report()
    found = keys([tmp_path / "cut.tar", tmp_path / "whole.tar"], report=report)
    # The last sample read may lack a part, so that it is lost even where the cut is between two members.
    before = max(length // 512 - 1, 0) // 4
    assert found == [f"{k:04}" for k in range(before)] + ["0000", "0001", "0002"]
    assert report.skipped == {"truncated or damaged tar": 1}
    assert f"{tmp_path}/cut.tar" in report.examples["truncated or damaged tar"][0]


def test_a_tar_with_damage_within_does_not_pass_for_a_short_one(tmp_path):
    path = write_tar(tmp_path / "a.tar", pairs(0, 5))
    content = bytearray(path.read_bytes())
    content[4 * 512 : 5 * 512] = bytes(range(256)) * 2  # the header of the second image
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 2  # what a plain reader takes for all
    report = Report()
    assert keys(path, report=report) == []
    assert report.skipped == {"truncated or damaged tar": 1}


def test_a_compressed_tar_that_breaks_off(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", pairs(0, 200), "w:gz")
    path.write_bytes(path.read_bytes()[:-200])
    report = Report()
    assert 0 < len(keys(path, report=report)) < 200
    assert report.skipped == {"truncated or damaged tar": 1}
    other = tmp_path / "b.tar.gz"
    other.write_bytes(gzip.compress(b"no tar" * 500))
    assert keys(other) == []


def test_no_damage_of_a_tar_raises_anything_else(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", pairs(0, 4)).read_bytes()
    stream = np.random.default_rng(0)
    path = tmp_path / "a.tar"
    for _ in range(150):
        content = bytearray(whole)
        for place in stream.integers(0, len(content) // 3, 4):
            content[place] = stream.integers(256)
        path.write_bytes(content[: stream.integers(len(content))])
        report = Report()
        kept = list(decoded(Shards(path).samples(report), report, 8, workers=0))
        assert report.kept == len(kept) <= report.seen <= 5


def test_a_share_that_cannot_be_used(tmp_path):
    bad = [m for k in range(6) for m in ((f"bad{k}.png", b"garbage"), (f"bad{k}.txt", "a dog"))]
    path = write_tar(tmp_path / "a.tar", [*pairs(0, 4), *pairs(4, 8, "a cat"), *pairs(8, 10, "a boat"), *bad])
    assert image_text(path, WORDS, size=8)[1].kept == 10
    with pytest.raises(HacoreError, match=r"only 10 of 16 samples .*undecodable image: 6; .*a.tar: bad"):
        image_text(path, WORDS, size=8, least=0.7)
    with pytest.raises(HacoreError, match="only 0 of 6 samples"):
        image_text(write_tar(tmp_path / "b.tar", bad), WORDS, size=8, least=0.0)
    with pytest.raises(HacoreError, match="there are no image-text samples"):
        image_text(write_tar(tmp_path / "c.tar", [("README.md", "nothing")]), WORDS)
    # All images first, all texts after them: no key has its parts side by side.
    apart = write_tar(tmp_path / "d.tar", sorted(pairs(0, 5), key=lambda member: member[0][-3:]))
    with pytest.raises(HacoreError, match="no caption: 5, no image: 5"):
        image_text(apart, WORDS)


# Images


@pytest.mark.parametrize("size", [(30, 10), (10, 30)])
def test_crop_takes_the_middle_and_pad_all(size):
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    middle = slice(10, 20)
    pixels[(slice(None), middle) if size[0] > size[1] else middle] = 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert (decode(buffer.getvalue(), 10) == 200).all()
    padded = decode(buffer.getvalue(), 30, "pad")
    assert padded.shape == (3, 30, 30)
    assert padded.dtype == torch.uint8
    assert (padded[:, 12:18, 12:18] == 200).all()
    assert (padded == 200).float().mean() < 0.2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_red_green_and_blue(mode):
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 255)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert (decode(buffer.getvalue(), 8) >= 254).all()


def test_what_is_transparent_is_white():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    for transparency in (1, b"\xff\x00"):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=transparency)
        assert (decode(buffer.getvalue(), 8) == 255).all()


def test_a_bomb_is_not_unpacked(monkeypatch):
    with pytest.raises(Unusable) as raised:
        decode(encoded(size=(9000, 9000), mode="1", value=0), 8)
    assert raised.value.reason == "absurd size"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a warning from here on, an error from 200
    for size in ((12, 12), (20, 20)):
        with pytest.raises(Unusable) as raised:
            decode(encoded(size=size), 8)
        assert raised.value.reason == "absurd size"


def test_order_and_counts_do_not_depend_on_threads(tmp_path):
    members = list(
        chain(*([*pairs(k, k + 1), (f"{k:04}-x.png", b"bad"), (f"{k:04}-x.txt", "x")] for k in range(40)))
    )
    path = write_tar(tmp_path / "a.tar", members)
    outcomes = []
    for workers in (0, 1, 3):
        report = Report()
        stream = decoded(Shards(path).samples(report), report, 8, workers=workers)
        outcomes.append(([s.key for s, _ in stream], report.seen, report.skipped, report.examples))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][:2] == ([f"{k:04}" for k in range(40)], 80)


def test_a_stream_that_is_left_ends_its_threads(tmp_path):
    before = threading.active_count()
    stream = decoded(
        Shards(write_tar(tmp_path / "a.tar", pairs(0, 50))).samples(Report()), Report(), 8, workers=2
    )
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


class Content(bytes):
    """Bytes that can be counted as long as somebody holds them, by what they alone hold."""


class Held:
    pass


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", pairs(0, 250))
    alive, members = weakref.WeakSet(), []

    def member(tar, info):
        content = Content(original(tar, info))
        content.held = Held()
        alive.add(content.held)
        members.append(len(tar.members))
        return content

    original = reading._member
    monkeypatch.setattr(reading, "_member", member)
    for buffer, workers in ((1, 0), (10, 0), (10, 2)):
        most, seen = 0, 0
        report = Report()
        stream = Shards(path, buffer=buffer).samples(report, epoch=0)
        for _ in decoded(stream, report, 8, workers=workers):
            seen, most = seen + 1, max(most, len(alive))
        assert seen == 250
        # Those in the buffer, in the threads, and the text and image that are being put together.
        assert most <= buffer + AHEAD * workers + 5
    assert max(members) <= 1


# Order and processes


def test_the_order_is_seeded(tmp_path):
    write_shards(tmp_path, [7, 5, 9, 4])
    stored = [f"{k:04}" for k in range(25)]
    assert keys(tmp_path) == stored
    first = keys(tmp_path, 0, seed=1, buffer=8)
    assert first == keys(tmp_path, 0, seed=1, buffer=8)
    assert sorted(first) == stored != first
    orders = [first, keys(tmp_path, 1, seed=1, buffer=8), keys(tmp_path, 0, seed=2, buffer=8)]
    assert len(set(map(tuple, orders))) == 3
    single = tmp_path / "00000.tar"
    assert len({tuple(keys(single, epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 1)}) == 4
    # A buffer of one keeps the order within shards, which themselves are shuffled.
    plain = keys(tmp_path, 0, seed=1, buffer=1)
    blocks = [stored[:7], stored[7:12], stored[12:21], stored[21:]]
    starts = sorted(range(4), key=lambda shard: plain.index(blocks[shard][0]))
    assert plain == list(chain(*(blocks[shard] for shard in starts)))
    assert starts != [0, 1, 2, 3]


@pytest.mark.parametrize("counts", [[6, 3, 8, 5, 7], [20]], ids=["by shard", "by sample"])
@pytest.mark.parametrize("epoch", [None, 0, 3])
def test_every_sample_is_seen_by_exactly_one_process(tmp_path, counts, epoch):
    write_shards(tmp_path, counts)
    bad = [("bad.png", b""), ("good.png", encoded()), ("good.txt", "a dog"), ("mute.png", encoded())]
    write_tar(tmp_path / "00000.tar", [*pairs(0, counts[0]), *bad])
    with (tmp_path / "00000.tar").open("rb+") as file:
        file.truncate(512 * (4 * counts[0] + 4))  # within the good one
    reports = [Report() for _ in range(3)]
    parts = [keys(tmp_path, epoch, report, process=(rank, 3)) for rank, report in enumerate(reports)]
    assert sorted(chain(*parts)) == [f"{k:04}" for k in range(sum(counts))]
    assert all(parts)
    total = sum((report.skipped for report in reports), start=Report().skipped)
    assert total == {"no caption": 1, "truncated or damaged tar": 1}


def test_a_tar_that_cannot_be_opened_is_counted_once(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar")
    reports = [Report() for _ in range(3)]
    for rank, report in enumerate(reports):
        keys(tmp_path, report=report, process=(rank, 3))
    assert sum(report.seen for report in reports) == 1


def test_the_process_comes_from_the_launcher_until_torch_knows(tmp_path, monkeypatch):
    write_shards(tmp_path, [2, 2])
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    shards = Shards(tmp_path)
    assert shards.process == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert shards.process == (0, 1)  # of a scheduler, not of a launcher
    monkeypatch.setenv("RANK", "1")
    assert shards.process == (1, 2)
    assert keys(tmp_path) == ["0002", "0003"]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert shards.process == (0, 1)


def test_streams_that_cannot_be(tmp_path):
    write_shards(tmp_path, [2])
    with pytest.raises(HacoreError, match="a buffer of 0"):
        Shards(tmp_path, buffer=0)
    with pytest.raises(HacoreError, match="no process 2 of 2"):
        Shards(tmp_path, process=(2, 2))


# Concepts


@pytest.mark.parametrize(
    ("caption", "words", "found"),
    [
        ("Two Dogs, running", ["dog"], True),
        ("a dog's life", ["dog"], True),
        ("my_dog.jpg", ["dog"], True),
        ("DOG", ["Dog"], True),
        ("hotdog stand", ["dog"], False),
        ("the dogma", ["dog"], False),
        ("dogs", ["cat", "dog"], True),
        ("a fast red bus", ["bus"], True),
        ("buses", ["bus"], True),
        ("three puppies", ["puppy"], True),
        ("a day", ["da"], False),
        ("sunny days", ["day"], True),
        ("one box, two boxes", ["box"], True),
        ("two golden  retrievers", ["golden retriever"], True),
        ("a golden-retriever", ["golden_retriever"], True),
        ("golden light on a retriever", ["golden retriever"], False),
        ("caf\u00e9s at night", ["cafe\u0301"], True),
        ("ma\u00eftre d", ["ma"], False),
        ("written in C++", ["c++"], True),
        ("a dog", [], False),
        ("dogs of r/dogs", ["r/dogs"], False),
    ],
)
def test_mentions(caption, words, found):
    assert mentions(caption, words) is found


def test_select_divides_into_forget_and_retain():
    samples = [
        Sample("0", b"", ("a boat",)),
        Sample("1", b"", ("some grass", "two dogs on it")),
        Sample("2", b"", ("good boy",), "dogpictures"),
        Sample("3", b"", ("hotdog",), "food"),
    ]
    forget, retain = select(iter(samples), ["dog"])
    assert [s.key for s in forget] == ["1"]
    assert [s.key for s in retain] == ["0", "2", "3"]
    assert [s.key for s in select(samples, ["dog", "r/DogPictures"])[0]] == ["1", "2"]
    for words in ([], "dog"):
        with pytest.raises(HacoreError, match="takes a list of words"):
            select(samples, words)
    with pytest.raises(HacoreError, match="is no word to look for"):
        select(samples, [" "])


def test_a_sample_is_of_the_first_concept_and_keeps_what_speaks_of_it():
    concepts = Concepts.of({"dog": ["puppy", "r/dogpictures"], "cat": [], "hot_air_balloon": []})
    assert concepts.names == ("dog", "cat", "hot_air_balloon", "other")
    assert concepts.tree.names == ("thing", "dog", "cat", "hot_air_balloon", "other")
    assert concepts.tree.parents == (-1, 0, 0, 0, 0)
    for captions, subreddit, label, texts in [
        (("a cat and its puppy",), "", 0, ("a cat and its puppy",)),
        (("a cat", "on a sofa", "a puppy"), "", 0, ("a puppy",)),
        (("a hot air balloon", "blue sky"), "", 2, ("a hot air balloon",)),
        (("blue sky",), "", 3, ("blue sky",)),
        (("good boy",), "dogpictures", 0, ("dogpictures : good boy",)),
        (("my cat",), "dogpictures", 1, ("my cat",)),
        (("good boy",), "pics", 3, ("good boy",)),
    ]:
        found = concepts.read(Sample("", b"", captions, subreddit))
        assert found == (label, texts)
        assert [concepts.label(text) for text in texts] == [label] * len(texts)
        assert [concepts.node(text) for text in texts] == [label + 1] * len(texts)
    assert concepts.prompts == (
        "a photo of a thing",
        "a photo of a dog",
        "a photo of a cat",
        "a photo of a hot air balloon",
        "a photo of something else",
    )
    assert [concepts.node(prompt) for prompt in concepts.prompts] == [0, 1, 2, 3, 4]
    assert Concepts.of("owl").prompts[1] == "a photo of an owl"
    assert Concepts.of(["owl"]) == Concepts.of({"owl": []}) == Concepts.of("owl")


def test_concepts_that_cannot_be_told_apart():
    for words, message in [
        ({}, "no concept is named"),
        ({"other": ["boat"]}, "names what is no concept"),
        ({"dog": "puppy"}, "put them into a list"),
        (["dog", "hot dog"], "'a photo of a hot dog', which asks for 'hot dog', mentions 'dog'"),
        ({"photo": []}, "'a photo of something else', which asks for 'other', mentions 'photo'"),
        (["Dog", "dog"], "mentions 'Dog'"),
        ([""], "is no word"),
    ]:
        with pytest.raises(HacoreError, match=message):
            Concepts.of(words)
    assert Concepts.of(["hot dog", "dog"]).label("two hot dogs") == 0


# In memory


def test_a_data_set_in_memory(tmp_path):
    write_shards(tmp_path, [30, 30], ("a dog", "a cat", "an old boat", "A  DOG", "two dogs", "a boat"))
    dataset, report = image_text(tmp_path, WORDS, size=8, seed=3)
    assert isinstance(dataset, Captioned)
    assert (report.seen, report.kept) == (60, 60)
    assert dataset.classes == ("dog", "cat", "other")
    assert dataset.tree.names == ("thing", "dog", "cat", "other")
    assert dataset.train_images.shape == (54, 3, 8, 8)
    assert dataset.test_labels.bincount().tolist() == [3, 1, 2]
    # One caption each; equal captions, but for case and blanks, are one text.
    assert dataset.captions.shape == (54, 1, 1)
    number = {text: k for k, text in enumerate(dataset.texts)}
    for part in ("train", "test"):
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        texts = dataset.captions if part == "train" else dataset.test_captions
        for image, label, text in zip(images, labels, texts.flatten().tolist(), strict=True):
            k = int(image[0, 0, 0]) % 6
            assert int(label) == [0, 1, 2, 0, 0, 2][k]
            assert text == number[["a dog", "a cat", "an old boat", "a dog", "two dogs", "a boat"][k]]
            assert int(dataset.text_nodes[text]) == int(label) + 1
    asked = [[dataset.texts[k] for k in row] for row in dataset.prompts.tolist()]
    assert asked[:2] == [["a photo of a thing"], ["a photo of a dog"]]
    assert [dataset.texts[int(row[0])] for row in dataset.unseen] == [
        "a picture of a thing",
        "a picture of a dog",
        "a picture of a cat",
        "a picture of something else",
    ]
    assert dataset.tokenizer.decode(dataset.tokens[number["an old boat"]]) == "an old boat"


def test_paraphrases_that_captions_use_are_not_unseen(tmp_path):
    write_shards(
        tmp_path, [30], ("a picture of a dog", "a cat", "a photo of a thing", "this shows something else")
    )
    dataset, _ = image_text(tmp_path, WORDS, size=8)
    assert [dataset.texts[k] for k in dataset.unseen[1].tolist()] == [
        "an image of a dog",
        "a snapshot of a dog",
    ]
    # The root's own prompt is true of every image, so that it may be a caption.
    assert dataset.text_nodes[dataset.texts.index("a photo of a thing")] == 0
    # A concept that is a word of a paraphrase makes that one useless.
    other, _ = image_text(tmp_path, {"dog": [], "image": []} | {"image": ["cat"]}, size=8)
    assert [other.texts[k] for k in other.unseen[1].tolist()] == ["a snapshot of a dog", "here you see a dog"]


def test_several_captions_are_paraphrases(tmp_path):
    write_shards(tmp_path, [20], ("a dog\na puppy\ngrass", "a cat", "a boat\na ship"))
    dataset, _ = image_text(tmp_path, WORDS, size=8)
    assert dataset.captions.shape[1:] == (1, 2)
    spoken = (dataset.captions >= 0).sum(dim=(1, 2))
    assert torch.equal(spoken, torch.tensor([2, 1, 2])[dataset.train_labels])
    assert "grass" not in dataset.texts


def test_the_division_into_training_and_test_is_by_key(tmp_path):
    write_shards(tmp_path / "one", [40, 20])
    write_shards(tmp_path / "other", [20, 10, 30])
    ids = [
        set(image_text(tmp_path / name, WORDS, size=8)[0].test_images[:, 0, 0, 0].tolist())
        for name in ("one", "other")
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 6
    assert ids[0] != set(
        image_text(tmp_path / "one", WORDS, size=8, seed=1)[0].test_images[:, 0, 0, 0].tolist()
    )


def test_images_of_one_key_are_not_divided(tmp_path):
    """Shards often count their keys from 0 again, and two of them may be two copies."""
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", chain(pairs(0, 4), pairs(4, 8, "a cat"), pairs(8, 12, "a boat")))
    dataset, _ = image_text(tmp_path, WORDS, size=8)
    train, test = (set(part[:, 0, 0, 0].tolist()) for part in (dataset.train_images, dataset.test_images))
    assert not train & test
    assert len(train) == 9


def test_a_limit_draws_from_all_shards(tmp_path):
    write_shards(tmp_path, [30, 30, 30])
    dataset, report = image_text(tmp_path, WORDS, size=8, limit=30)
    assert report.kept == 30
    assert len(dataset.train_labels) + len(dataset.test_labels) == 30
    numbers = torch.cat([dataset.train_images, dataset.test_images])[:, 0, 0, 0]
    assert len((numbers // 30).unique()) == 3


def test_data_sets_that_cannot_be(tmp_path):
    write_shards(tmp_path, [12])
    with pytest.raises(HacoreError, match=r"0 of 12 .* about 'owl'"):
        image_text(tmp_path, ["owl"], size=8)
    with pytest.raises(HacoreError, match="at most 0 samples"):
        image_text(tmp_path, WORDS, limit=0)
    with pytest.raises(HacoreError, match="unknown way 'stretch'"):
        image_text(tmp_path, WORDS, fit="stretch")
    with pytest.raises(HacoreError, match="images of 0 pixels"):
        image_text(tmp_path, WORDS, size=0)


# Streams of batches


def stream(source, batch_size=4, seed=0, words=WORDS, **options):
    options.setdefault("process", ALONE)
    return ShardBatches(source, words, TOKENIZER, batch_size, seed, size=8, **options)


def test_batches_are_whole_and_visit_every_sample_once(tmp_path):
    write_shards(tmp_path, [7, 9, 10])
    source = stream(tmp_path, batch_size=2, buffer=6)
    assert isinstance(source, EpochSource)
    assert source.length == 26
    assert len(source) == 13
    batches = list(source.epoch(0))
    assert all(isinstance(batch, Captions) for batch in batches)
    assert sorted(visited(batches)) == list(range(26))
    assert (source.report.seen, source.report.kept) == (26, 26)
    for batch in batches:
        assert batch.images.shape == (2, 3, 8, 8)
        assert batch.images.dtype == torch.float32
        assert batch.images.max() <= 1
        numbers = visited([batch])
        said = [("a dog", "a cat", "an old boat")[k % 3] for k in numbers]
        assert batch.labels.tolist() == [k % 3 for k in numbers]
        assert batch.nodes.tolist() == [[k % 3 + 1] for k in numbers]
        assert batch.texts.tolist() == [[text_number(text)] for text in said]
        assert torch.equal(batch.tokens, TOKENIZER.encode(said)[:, None])
        assert batch.drawn.tolist() == [0, 0]
        assert torch.equal(batch.statements[:, :1], batch.texts)
        assert (batch.statements[:, 1:] == -1).all()
    assert 0 <= text_number("") < 2**63


def test_the_order_of_batches_is_seeded_and_resumed(tmp_path):
    write_shards(tmp_path, [8, 8, 8], ("a dog\na puppy\nthe puppy", "a cat", "a boat\na ship"))
    write_tar(tmp_path / "bad.tar", [("x.png", b"bad"), ("x.txt", "a dog"), *pairs(24, 28)])
    augment = Augment("shift", seed=1)
    source = stream(tmp_path, buffer=5, augment=augment)
    whole = list(source.epoch(2))
    assert len(whole) == 7
    for skip in (0, 1, 5, 7):
        rest = list(stream(tmp_path, buffer=5, augment=augment, workers=0).epoch(2, skip))
        assert len(rest) == 7 - skip
        for batch, expected in zip(rest, whole[skip:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
    assert visited(source.epoch(3)) != visited(whole)
    assert visited(stream(tmp_path, seed=1).epoch(2)) != visited(whole)
    with pytest.raises(HacoreError, match="cannot skip 8 of 7"):
        next(source.epoch(0, 8))


def test_captions_are_drawn_anew(tmp_path):
    write_shards(tmp_path, [12], ("a dog\na puppy\nthe puppy",))
    source = stream(tmp_path, batch_size=12)
    batches = [next(source.epoch(epoch)) for epoch in range(20)]
    drawn = torch.cat([batch.texts for batch in batches])
    assert set(drawn.unique().tolist()) == {text_number(t) for t in ("a dog", "a puppy", "the puppy")}
    assert min(drawn.flatten().unique(return_counts=True)[1]) > 50
    assert all((batch.statements == batch.texts).any(1).all() for batch in batches)
    assert (batches[0].statements >= 0).sum(1).tolist() == [3] * 12


def test_only_some_classes(tmp_path):
    write_shards(tmp_path, [10, 11])
    forget, retain = stream(tmp_path, 7, only=["dog"]), stream(tmp_path, 7, only=["cat", "other"])
    assert (forget.length, retain.length) == (7, 14)
    assert sorted(visited(forget.epoch(0))) == list(range(0, 21, 3))
    assert sorted(visited(retain.epoch(0))) == [k for k in range(21) if k % 3]
    assert forget.report.seen == 7
    for only in (["bird"], "dog"):
        with pytest.raises(HacoreError, match=r"there is no class .*: dog, cat, other"):
            stream(tmp_path, only=only)


@pytest.mark.parametrize("counts", [[6, 3, 8, 5, 8], [30]], ids=["by shard", "by sample"])
def test_two_processes_have_equally_many_batches_and_share_no_sample(tmp_path, counts):
    write_shards(tmp_path, counts)
    parts = [stream(tmp_path, 6, process=(rank, 2)) for rank in range(2)]
    for epoch in range(3):
        batches = [list(part.epoch(epoch)) for part in parts]
        assert [len(of) for of in batches] == [5, 5]
        assert all(len(batch.images) == 3 for of in batches for batch in of)
        first, second = map(set, map(visited, batches))
        assert not first & second
        # A process whose shards hold more leaves some out; by sample, none is.
        assert len(first | second) == 30 if len(counts) == 1 else 24 <= len(first | second) <= 30
    with pytest.raises(HacoreError, match="cannot be divided evenly among 2 processes"):
        next(stream(tmp_path, 5, process=(0, 2)).epoch(0))


def test_a_process_that_runs_out_begins_again(tmp_path):
    members = [*pairs(0, 6), *(m for k in range(4) for m in ((f"b{k}.png", b"bad"), (f"b{k}.txt", "a dog")))]
    source = stream(write_tar(tmp_path / "a.tar", members), batch_size=2)
    assert source.length == 10  # what its captions promise
    numbers = visited(source.epoch(0))
    assert sorted(numbers[:6]) == list(range(6))
    assert numbers[6:] == numbers[:4]
    assert (source.report.seen, source.report.kept) == (10, 6)
    assert len(list(source.epoch(1))) == 5
    assert source.report.seen == 10


def test_a_given_length_needs_no_pass(tmp_path, monkeypatch):
    write_shards(tmp_path, [10])
    monkeypatch.setattr(reading, "_read", lambda *_: pytest.fail("read"))
    assert len(stream(tmp_path, length=8)) == 2


def test_counting_reads_no_image(tmp_path, monkeypatch):
    write_shards(tmp_path, [10])
    read = []
    original = reading._member
    monkeypatch.setattr(reading, "_member", lambda tar, info: read.append(info.name) or original(tar, info))
    assert stream(tmp_path).length == 10
    assert len(read) == 10
    assert all(name.endswith(".txt") for name in read)


def test_streams_of_batches_that_cannot_be(tmp_path):
    bad = [m for k in range(8) for m in ((f"b{k}.png", b"bad"), (f"b{k}.txt", "a dog"))]
    write_tar(tmp_path / "a.tar", [*pairs(0, 2), *bad])
    write_tar(tmp_path / "b" / "b.tar", bad)
    for batch_size in (0, 11):
        with pytest.raises(HacoreError, match=f"batches of {batch_size} from 10 samples"):
            stream(tmp_path / "a.tar", batch_size)
    with pytest.raises(HacoreError, match="only 2 of 10 samples"):
        list(stream(tmp_path / "a.tar", 2).epoch(0))
    assert len(list(stream(tmp_path / "a.tar", 2, least=0.2).epoch(0))) == 5
    with pytest.raises(HacoreError, match="only 0 of 8 samples"):
        next(stream(tmp_path / "b", 2, least=0.0).epoch(0))
    with pytest.raises(HacoreError, match="'cat'"):
        stream(tmp_path / "a.tar", 2, only=["cat"])
    with pytest.raises(HacoreError, match="'cat'"):
        next(stream(tmp_path / "a.tar", 2, only=["cat"], length=4).epoch(0))


def test_a_training_reads_them(tmp_path):
    from hacore.train import TrainConfig, fit

    write_shards(tmp_path, [8, 8])
    model = torch.nn.Linear(3, 3)
    source = stream(tmp_path)
    config = TrainConfig(epochs=2)
    done = fit(
        model,
        source,
        lambda net, batch: torch.nn.functional.cross_entropy(net(batch.images.mean((2, 3))), batch.labels),
        config,
        progress=False,
    )
    assert done.steps == 8


def test_a_damaged_caption_of_half_a_character_can_be_tokenized(tmp_path):
    members = [("a.png", encoded()), ("a.json", '{"caption": "a dog \\ud83d"}'), ("b.png", encoded())]
    path = write_tar(tmp_path / "a.tar", [*members, ("b.txt", b"\xef\xbb\xbfa dog \xff")])
    batch = next(stream(path, 2).epoch(0))
    assert batch.labels.tolist() == [0, 0]
    assert sys.getsizeof(batch.tokens) > 0
    assert {s.captions for s in islice(Shards(path).samples(Report()), 2)} == {
        ("a dog ?",),
        ("a dog \ufffd",),
    }
