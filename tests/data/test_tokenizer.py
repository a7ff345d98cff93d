"""The tokenizer: CLIP's scheme against a slow reading of it, laws of every tokenizer, and what it refuses."""

import copy
import gzip
import itertools
import json
import os
import pickle
import subprocess
import sys

import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hacore.data.tokenizer import BYTES, CLIP_MERGES, Tokenizer, _read_merges, clean
from hacore.errors import HacoreError

CAPTIONS = [f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "green", "blue")
            for shape in ("star", "cross", "polygon", "circle")]  # fmt: skip
MERGES = ("s t", "a r", "st ar", "star </w>", "r e", "re d</w>", "star s</w>", "t h", "th e</w>", "l l</w>")
STAR = [merge.replace(" ", "") for merge in MERGES].index("star")


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.trained(CAPTIONS, size=280, length=12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tokenizer of CLIP's kind with a handful of merges; the fourth of MERGES is not one of CLIP's."""
    path = tmp_path_factory.mktemp("merges") / "merges.txt.gz"
    merges = [merge for merge in MERGES if merge != "star </w>"]
    path.write_bytes(gzip.compress(("#version: 0.2\n" + "\n".join(merges) + "\n").encode()))
    return Tokenizer("clip", _read_merges(path), 12)


def slow_clip(text, merges):
    """Tokens of CLIP's scheme, merged pair by pair as its paper says: the earliest merge there is, everywhere."""
    signs = {byte: sign for sign, byte in BYTES.items()}
    found = []
    for word in regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", text):
        parts = [signs[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while True:
            here = [m for m in merges if m in [f"{a} {b}" for a, b in itertools.pairwise(parts)]]
            if not here:
                break
            first, second = here[0].split(" ")
            merged, i = [], 0
            while i < len(parts):
                if parts[i : i + 2] == [first, second]:
                    merged.append(first + second)
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        found += parts
    vocabulary = [*BYTES, *(sign + "</w>" for sign in BYTES), *(m.replace(" ", "") for m in merges)]
    return [vocabulary.index(part) for part in found]


@pytest.mark.parametrize(
    "text",
    ["the stars", "red", "a red star's end", "they'll see 42 stars!?", "été ✨ 星", "x<|endoftext|>y"],
)
def test_clip_merges_as_written(clip, text):
    expected = slow_clip(text, clip.merges)[:10]
    assert clip.encode([text]).tolist() == [
        [clip.start, *expected, clip.end] + [0] * (12 - 2 - len(expected))
    ]


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="starehld 's1!é\n", max_size=20))
def test_clip_merges_any_text(text):
    tokenizer = Tokenizer("clip", tuple(m for m in MERGES if m != "star </w>"), 64)
    expected = slow_clip(clean(text), tokenizer.merges)
    assert tokenizer.encode([text])[0, 1 : len(expected) + 2].tolist() == [*expected, tokenizer.end]


def test_clip_numbers_by_hand(clip):
    """CLIP numbers bytes by their visible sign, then bytes that end a word, merges, start and end."""
    assert clip.size == 512 + 9 + 2
    assert (clip.start, clip.end) == (521, 522)
    assert clip.encode(["a !"])[0, :4].tolist() == [521, 256 + ord("a") - ord("!"), 256, 522]
    assert clip.encode(["starx"])[0, 1].item() == 512 + clip.merges.index("st ar")


def test_clip_file_gives_the_released_vocabulary(tmp_path):
    """A file as long as CLIP's (the merges are others): plain, and gzipped under any name."""
    signs = list(BYTES)
    pairs = [f"{a} {b}{end}" for a in signs for b in signs for end in ("", "</w>")]
    text = "\n".join(["#version: 0.2", *pairs[: CLIP_MERGES + 300]])
    (tmp_path / "plain.txt").write_text(text, encoding="utf-8")
    (tmp_path / "zipped.txt").write_bytes(gzip.compress(text.encode()))
    tokenizer = Tokenizer.clip(tmp_path / "plain.txt")
    assert tokenizer == Tokenizer.clip(tmp_path / "zipped.txt")
    assert (tokenizer.size, tokenizer.start, tokenizer.end, tokenizer.length) == (49408, 49406, 49407, 77)
    assert tokenizer.encode(["a dog"]).shape == (1, 77)
    assert copy.deepcopy(tokenizer).encode(["a dog"]).equal(tokenizer.encode(["a dog"]))


@pytest.mark.parametrize("style", ["trained", "clip"])
@settings(deadline=None, max_examples=100)
@given(texts=st.lists(st.text(max_size=30), max_size=4))
def test_laws(style, texts):
    tokenizer = (
        Tokenizer.trained(CAPTIONS, size=270, length=9) if style == "trained" else Tokenizer("clip", (), 9)
    )
    rows = tokenizer.encode(texts)
    assert rows.dtype == torch.int64
    assert rows.shape == (len(texts), 9)
    assert tokenizer.end == tokenizer.size - 1 > tokenizer.start
    for row in rows.tolist():
        end = row.index(tokenizer.end)
        assert row[0] == tokenizer.start
        assert row.count(tokenizer.end) == row.count(tokenizer.start) == 1
        assert not any(row[end + 1 :])
        assert max(row) < tokenizer.size


@pytest.mark.parametrize("text", ["a small red star", "été ✨ 星", "don't <go> & stay!", ""])
def test_trained_decodes_what_it_encoded(text):
    tokenizer = Tokenizer.trained(CAPTIONS, length=64)
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_clip_decodes_words(clip):
    assert clip.decode(clip.encode(["The  RED stars"])[0]) == "the red stars"


def test_long_texts_are_cut_and_keep_their_end(trained):
    row = trained.encode(["star cross " * 20])[0]
    assert row[-1] == trained.end
    assert trained.decode(row).startswith("star cross")


def test_training_merges_whole_words(trained):
    """256 bytes, start and end are 258: 22 merges are left for these words."""
    assert trained.size == 280
    assert len(trained.merges) == 22
    words = (trained.encode(["a small red star"]) > 0).sum()
    letters = (Tokenizer.trained(["x"], 258, 32).encode(["a small red star"]) > 0).sum()
    assert words < letters == 2 + len(" a small red star")


def test_training_is_the_same_in_every_process(trained):
    program = (
        f"from hacore.data.tokenizer import Tokenizer; print(Tokenizer.trained({CAPTIONS}, 280, 12).merges)"
    )
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == str(trained.merges)


def test_copies_encode_alike(trained, clip):
    for tokenizer in (trained, clip):
        expected = tokenizer.encode(CAPTIONS)
        copies = (
            copy.deepcopy(tokenizer),
            pickle.loads(pickle.dumps(tokenizer)),
            Tokenizer.from_config(json.loads(json.dumps(tokenizer.config))),
        )
        for other in copies:
            assert other == tokenizer
            assert other.encode(CAPTIONS).equal(expected)
    assert trained != clip


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  A\tred\n\nStar ", "a red star"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("e\u0301te\u0301", "été"),
    ],
)
def test_cleaning(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tokenizer.trained([]), "no text to learn"),
        (lambda: Tokenizer.trained([" "]), "no text to learn"),
        (lambda: Tokenizer.trained("a red star"), "a list of strings"),
        (lambda: Tokenizer.trained(CAPTIONS, size=257), "258 or more"),
        (lambda: Tokenizer.trained(CAPTIONS, length=2), "3 or more"),
        (lambda: Tokenizer("words", (), 8), "choose clip or bytes"),
        (lambda: Tokenizer("bytes", ("a b c",), 8), "merge 0 of the tokenizer, 'a b c', does not join"),
        (lambda: Tokenizer("bytes", ("a b", "ab cd"), 8), "merge 1 of the tokenizer, 'ab cd'"),
        (lambda: Tokenizer.from_config({"style": "clip"}), "style, merges and length, not style"),
        (lambda: Tokenizer("bytes", (), 8).encode("star"), "a list of strings"),
        (lambda: Tokenizer("bytes", (), 8).decode(torch.tensor([256, 300])), "numbered 0 to 257"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(HacoreError, match=message):
        make()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read merges from .*No such file"),
        (b"#version: 0.2\ni n\nt h\n", "holds 2 merges, CLIP's file 48,894 or more"),
        (gzip.compress(b"#version: 0.2\n" * 1000)[:40], "cannot read merges"),
        (b"\x1f\x8b\x08\x00" + bytes(6) + b"\xff" * 40, "cannot read merges"),
        (b"\xff\xfe" * 20, "cannot read merges"),
        (b"header\n" + b"a dog on a mat\n" * 48_894, "does not join two tokens"),
    ],
    ids=["missing", "short", "cut", "damaged", "binary", "prose"],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "merges.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HacoreError, match=message):
        Tokenizer.clip(path)
