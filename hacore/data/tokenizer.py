"""Texts to rows of numbers: byte-pair encoding, learned from the captions at hand or read from CLIP's file.

Byte-level encoding (Sennrich et al., 2016; Radford et al., 2019): a text is bytes, written as 256 visible
characters, and neighbours that often stand together are merged, in the order in which the merges were
learned. Bytes make up every text there is, so that no character is unknown.
"""

import gzip
import html
import json
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import torch
from jaxtyping import Int64
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor

from hacore.errors import HacoreError

CLIP_MERGES = 48_894  # 49,408 tokens without 512 bytes, the start and the end
END_OF_WORD = "</w>"
# The words that CLIP merges within: English endings, runs of letters, single digits, runs of other signs.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

# Each byte's visible character, in the order of CLIP's vocabulary: printable ones stand for themselves.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(_OTHERS)}


@dataclass(frozen=True)
class Tokenizer:
    """Byte-pair encoding between a start and an end token; made by :meth:`trained` or :meth:`clip`.

    A text is cleaned as CLIP does (characters of HTML, Unicode's composed form, blanks collapsed, lower
    case), except that CLIP's ``ftfy`` also repairs wrongly decoded text and curly quotes; and the words
    ``<|startoftext|>`` and ``<|endoftext|>`` within a text are text here. A text longer than the context
    is cut and keeps its end token. Two tokenizers are equal if they encode alike.

    Args:
        style: ``"clip"``, words that end in ``</w>``, or ``"bytes"``, words that begin with their blank.
        merges: pairs of tokens, as ``"a b"``, the first learned first.
        length: of the context, with start and end: at least 3.

    Raises:
        HacoreError: if an argument does not fit.
    """

    style: str
    merges: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        if self.style not in ("clip", "bytes"):
            raise HacoreError(f"there is no tokenizer of style {self.style!r}; choose clip or bytes")
        if self.length < 3:
            raise HacoreError(
                f"a context of {self.length} tokens holds no text between start and end; take 3 or more"
            )
        known = set(self._vocabulary)
        for number, merge in enumerate(self.merges):
            if len(merge.split(" ")) != 2 or not known.issuperset(merge.split(" ")):
                raise HacoreError(
                    f"merge {number} of the tokenizer, {merge[:40]!r}, does not join two tokens; use a complete file"
                )

    @classmethod
    def trained(cls, texts: Sequence[str], size: int = 512, length: int = 16) -> "Tokenizer":
        """Learn at most ``size`` tokens from texts: 256 bytes, start, end, and merges; the same ones in every run.

        Raises:
            HacoreError: if there are no texts, or ``size`` leaves no room for the bytes.
        """
        texts = _strings(texts)
        if not any(text.strip() for text in texts):
            raise HacoreError("there is no text to learn a tokenizer from; give it the captions")
        if size < len(BYTES) + 2:
            raise HacoreError(f"a vocabulary of {size} tokens does not hold all bytes; take 258 or more")
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = _words("bytes")
        trainer = trainers.BpeTrainer(
            vocab_size=size - 2, initial_alphabet=list(BYTES), special_tokens=[], show_progress=False
        )
        learner.train_from_iterator(map(clean, texts), trainer)
        merges = json.loads(learner.to_str())["model"]["merges"]
        return cls("bytes", tuple(" ".join(pair) for pair in merges), length)

    @classmethod
    def clip(cls, merges_file: str | Path, length: int = 77) -> "Tokenizer":
        """CLIP's 49,408 tokens, from a ``bpe_simple_vocab_16e6.txt`` or ``.txt.gz`` that you have.

        Released CLIP, MERU and HyCoCLIP models read these, with start 49406 and end 49407.

        Raises:
            HacoreError: if the file cannot be read or is another one.
        """
        return cls("clip", _read_merges(Path(merges_file), CLIP_MERGES), length)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Tokenizer":
        """The tokenizer of this :attr:`config`; raises HacoreError where it is another thing's."""
        if set(config) != {"style", "merges", "length"}:
            raise HacoreError(
                f"a tokenizer has style, merges and length, not {', '.join(config) or 'nothing'}; "
                "give the configuration that Tokenizer.config wrote"
            )
        return cls(config["style"], tuple(config["merges"]), config["length"])

    @property
    def config(self) -> dict[str, Any]:
        """What :meth:`from_config` rebuilds it from, as JSON types."""
        return {"style": self.style, "merges": list(self.merges), "length": self.length}

    @property
    def size(self) -> int:
        """How many tokens there are; their numbers are 0 to ``size - 1``."""
        return self.end + 1

    @property
    def start(self) -> int:
        """The number of the token that every row begins with."""
        return len(self._vocabulary)

    @property
    def end(self) -> int:
        """The number of the token that ends every text: the largest, which text encoders look for."""
        return len(self._vocabulary) + 1

    def encode(self, texts: Sequence[str]) -> Int64[Tensor, "n length"]:
        """Rows of start, tokens of the text, end, and zeros up to the context's length.

        Raises:
            HacoreError: if a text is not a string.
        """
        rows = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, text in zip(rows, _strings(texts), strict=True):
            # One by one: encode_batch starts threads, which a data loader's fork would warn of.
            ids = self._bpe.encode(clean(text)).ids[: self.length - 2]
            row[: len(ids) + 2] = torch.tensor([self.start, *ids, self.end])
        return rows

    def decode(self, row: Int64[Tensor, " length"]) -> str:
        """The cleaned text of one row, up to its end token; words are parted by single blanks.

        Raises:
            HacoreError: if a number is none of a token.
        """
        ids = row.tolist()
        if not all(0 <= number < self.size for number in ids):
            raise HacoreError(f"tokens are numbered 0 to {self.size - 1}; decode rows of this tokenizer")
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        tokens = [self._vocabulary[number] for number in ids if number != self.start]
        if self.style == "clip":
            blank = next(sign for sign, byte in BYTES.items() if byte == ord(" "))
            ends = [token.endswith(END_OF_WORD) for token in tokens]
            pairs = zip(tokens, ends, strict=True)
            tokens = [token.removesuffix(END_OF_WORD) + blank * end for token, end in pairs]
        return bytes(BYTES[sign] for sign in "".join(tokens)).decode(errors="replace").strip()

    @cached_property
    def _vocabulary(self) -> list[str]:
        """All tokens but start and end, by number; two merges can make the same one."""
        ends = [sign + END_OF_WORD for sign in BYTES] if self.style == "clip" else []
        return list(dict.fromkeys([*BYTES, *ends, *(merge.replace(" ", "") for merge in self.merges)]))

    @cached_property
    def _bpe(self) -> tokenizers.Tokenizer:
        numbers = {token: number for number, token in enumerate(self._vocabulary)}
        pairs = [(first, second) for first, second in (merge.split(" ") for merge in self.merges)]
        suffix = {"end_of_word_suffix": END_OF_WORD} if self.style == "clip" else {}
        bpe = tokenizers.Tokenizer(models.BPE(numbers, pairs, **suffix))
        bpe.pre_tokenizer = _words(self.style)
        return bpe

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the merges, not the encoder that is built from them."""
        return Tokenizer, (self.style, self.merges, self.length)


def clean(text: str) -> str:
    """A text as it is tokenized: HTML's signs resolved, composed characters, single blanks, lower case."""
    text = html.unescape(html.unescape(text))  # twice, as CLIP does: captions of the web are escaped twice
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def _words(style: str) -> pre_tokenizers.PreTokenizer:
    if style == "bytes":
        return pre_tokenizers.ByteLevel(add_prefix_space=True)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _strings(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise HacoreError("a tokenizer takes a list of strings; put a single text into a list")
    return texts


def _read_merges(path: Path, count: int | None = None) -> tuple[str, ...]:
    """The first ``count`` merges of a file after its header, all of them for None, blanks as they stand."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":  # gzip's mark, whatever the name says
            content = gzip.decompress(content)
        lines = content.decode().split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise HacoreError(f"cannot read merges from {path} ({error}); give CLIP's merges file") from error
    merges = tuple(line for line in (line.strip() for line in lines[1:]) if line)
    if count is not None and len(merges) < count:
        raise HacoreError(
            f"{path} holds {len(merges):,} merges, CLIP's file {count:,} or more; "
            "use a complete bpe_simple_vocab_16e6.txt"
        )
    return merges[:count]
