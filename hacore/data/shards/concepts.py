"""Concepts found by their words: which samples, and which of their captions, speak of what."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hacore.data.shards.read import Sample
from hacore.data.tokenizer import clean
from hacore.data.tree import Tree
from hacore.errors import HacoreError

ROOT, OTHER = "thing", "other"
SUBREDDIT = "r/"  # a word that begins so is the name of a subreddit
POSTED = " : "  # between a subreddit and a caption
MOST = 8  # captions of one image that are used


def mentions(caption: str, words: Sequence[str]) -> bool:
    """Whether a caption has one of these words or phrases in it, as a whole, in any case or simple plural.

    "dog" is found in "Dogs!" and "dog-house", not in "hotdog" or "dogma"; "golden retriever" in "two golden
    retrievers"; "puppy" in "puppies". Give the singular, and plurals such as "mice" as words of their own.
    """
    pattern = _pattern(tuple(word for word in words if not word.lower().startswith(SUBREDDIT)))
    return pattern is not None and pattern.search(clean(caption).replace("_", " ")) is not None


@lru_cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str] | None:
    forms = []
    for word in words:
        parts = re.split(r"[\s_-]+", clean(word).strip(" _-"))
        last = re.escape(parts[-1])
        if re.search(r"[^\Waeiou]y$", parts[-1]):
            last = f"{last[:-1]}(?:y|ies)"
        elif re.search(r"(?:s|x|z|ch|sh|o)$", parts[-1]):
            last = f"{last}(?:e?s)?"
        elif parts[-1]:
            last = f"{last}s?"
        if not parts[-1]:
            raise HacoreError(f"{word!r} is no word to look for in captions; give a word or phrase")
        forms.append(r"[\s-]+".join([*map(re.escape, parts[:-1]), last]))
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)") if forms else None


def speaks_of(sample: Sample, words: Sequence[str]) -> bool:
    """Whether a caption mentions one of the words, or one, as "r/dogpictures", is the sample's subreddit."""
    return _posted_in(sample.subreddit, words) or any(mentions(text, words) for text in sample.captions)


def select(samples: Iterable[Sample], words: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
    """Divide samples into those that speak of a concept (forget) and the others (retain), in order.

    Raises:
        HacoreError: if there are no words, or one is empty.
    """
    if isinstance(words, str) or not words:
        raise HacoreError(f"select takes a list of words, not {words!r}; give the words of the concept")
    forget: list[Sample] = []
    retain: list[Sample] = []
    for sample in samples:
        (forget if speaks_of(sample, words) else retain).append(sample)
    return forget, retain


def _posted_in(subreddit: str, words: Sequence[str]) -> bool:
    return bool(subreddit) and f"{SUBREDDIT}{subreddit}".lower() in {word.lower() for word in words}


@dataclass(frozen=True)
class Concepts:
    """Concepts by their words, below the root "thing" and beside "other", which all else is.

    What a text speaks of depends on the text alone: on the first concept, in the order given, that it mentions.

    Args:
        words: concept -> what mentions it beside its name; or the concepts alone.

    Raises:
        HacoreError: if names or words do not do.
    """

    words: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, words: Mapping[str, Sequence[str]] | Sequence[str]) -> "Concepts":
        """Concepts from a mapping of names to words, or from names that are the words."""
        if isinstance(words, str):
            words = [words]
        if not isinstance(words, Mapping):
            words = dict.fromkeys(words, ())
        for name, more in words.items():
            if isinstance(more, str):
                raise HacoreError(
                    f"the words of {name!r} are a single string, {more!r}; put them into a list"
                )
        return cls(tuple((name, (name, *more)) for name, more in words.items()))

    def __post_init__(self) -> None:
        if not self.words:
            raise HacoreError("no concept is named; give at least one with its words")
        for name, _ in self.words:
            if name in (ROOT, OTHER):
                raise HacoreError(f"{name!r} names what is no concept of its own; choose another name")
        for node, prompt in enumerate(self.prompts):
            found = self.node(prompt)
            if found != node:
                raise HacoreError(
                    f"{prompt!r}, which asks for {self.tree.names[node]!r}, mentions {self.tree.names[found]!r}; put "
                    "the narrower concept first, or choose other words"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The classes: the concepts in order, and "other"."""
        return (*(name for name, _ in self.words), OTHER)

    @property
    def tree(self) -> Tree:
        """The root, and below it the classes: class k is node k + 1."""
        return Tree((ROOT, *self.names), (-1, *(0 for _ in self.names)))

    def label(self, text: str) -> int:
        """The class a text speaks of."""
        subreddit = text.partition(POSTED)[0] if POSTED in text else ""
        for label, (_, words) in enumerate(self.words):
            if _posted_in(subreddit, words) or mentions(text, words):
                return label
        return len(self.words)

    def node(self, text: str) -> int:
        """The node of the tree a text speaks of: the root's is its prompt only."""
        return 0 if text == self.prompts[0] else self.label(text) + 1

    def read(self, sample: Sample) -> tuple[int, tuple[str, ...]]:
        """The class of a sample, and those of its captions that speak of that.

        The class is the first concept that a caption mentions. A concept that only the subreddit names is put
        before the captions, "dogpictures : good boy": they would not tell what they speak of.
        """
        captions = sample.captions
        posted = any(_posted_in(sample.subreddit, words) for _, words in self.words)
        if posted and all(self.label(text) == len(self.words) for text in captions):
            captions = tuple(f"{sample.subreddit}{POSTED}{text}" for text in captions)
        labels = [self.label(text) for text in captions]
        label = min(labels)
        texts = [text for text, of in zip(captions, labels, strict=True) if of == label]
        return label, tuple(texts[:MOST])

    @property
    def prompts(self) -> tuple[str, ...]:
        """For each node of the tree a text that asks for it."""
        return self.ask("a photo of {}")

    def ask(self, template: str) -> tuple[str, ...]:
        """The template with each node of the tree in its place."""
        spoken = [name.replace("_", " ").lower() for name, _ in self.words]
        named = [f"{'an' if name[:1] in set('aeiou') else 'a'} {name}" for name in spoken]
        return tuple(clean(template.format(what)) for what in ("a thing", *named, "something else"))
