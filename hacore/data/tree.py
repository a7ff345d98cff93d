"""A tree of concepts: what is a kind of what, such as hexagon, polygon, thing."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from hacore.errors import HacoreError


@dataclass(frozen=True)
class Tree:
    """Named nodes with their parents; node 0 is the root, and every parent stands before its children.

    Nodes are numbers, and a node is its own ancestor. Two trees are equal if their names and parents are.

    Args:
        names: of the nodes, all different.
        parents: the parent of each node, -1 for the root.

    Raises:
        HacoreError: if names and parents do not make one tree in this order, or (of a method) a node does not exist.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.parents) or not self.names:
            raise HacoreError(
                f"a tree has one parent per name and at least a root, not {len(self.names)} names and "
                f"{len(self.parents)} parents; give each node its parent, the root -1"
            )
        if self.parents[0] != -1:
            raise HacoreError(f"the first node of a tree is its root, with parent -1, not {self.parents[0]}")
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise HacoreError(
                    f"node {node} ({self.names[node]}) of the tree has parent {parent}, which does not stand before "
                    "it; list parents before their children"
                )
        seen: set[str] = set()
        for name in self.names:
            if not name.strip() or name in seen:
                raise HacoreError(
                    f"the name {name!r} of a tree's node is empty or there twice; give each its own"
                )
            seen.add(name)

    @classmethod
    def nested(cls, root: str, below: Mapping[str, Any] | Sequence[str]) -> "Tree":
        """Build a tree from nested mappings, whose innermost values are sequences of leaf names.

        Nodes are numbered level by level: ``Tree.nested("thing", {"polygon": ["square"], "star": ["sun"]})``
        has the names thing, polygon, star, square, sun.

        Raises:
            HacoreError: if a name is there twice.
        """
        names, parents, waiting = [root], [-1], deque([(0, below)])
        while waiting:
            parent, children = waiting.popleft()
            for name in children:
                if isinstance(children, Mapping):
                    waiting.append((len(names), children[name]))
                names.append(name)
                parents.append(parent)
        return cls(tuple(names), tuple(parents))

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self.names)

    def node(self, name: str) -> int:
        """The node of this name.

        Raises:
            HacoreError: if there is none; the message lists names that are near.
        """
        if name not in self.names:
            near = get_close_matches(name, self.names, n=5) or self.names[:5]
            raise HacoreError(f"the tree has no concept {name!r}; did you mean one of: {', '.join(near)}?")
        return self.names.index(name)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Edges between each node and the root."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == -1 else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """The nodes without children, in order."""
        return tuple(node for node in range(len(self)) if not self._children[node])

    @cached_property
    def _children(self) -> tuple[tuple[int, ...], ...]:
        children: list[list[int]] = [[] for _ in self.names]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    def children(self, node: int) -> tuple[int, ...]:
        """The nodes right below, in order."""
        self._check(node)
        return self._children[node]

    def siblings(self, node: int) -> tuple[int, ...]:
        """The other children of the node's parent, in order; the root has none."""
        self._check(node)
        return tuple(other for other in self._children[self.parents[node]] if other != node) if node else ()

    def ancestors(self, node: int) -> tuple[int, ...]:
        """The way up: the node itself first, the root last."""
        self._check(node)
        way = [node]
        while self.parents[way[-1]] != -1:
            way.append(self.parents[way[-1]])
        return tuple(way)

    def subtree(self, node: int) -> tuple[int, ...]:
        """Everything below: the node itself first, parents before their children."""
        self._check(node)
        found = [node]
        for known in found:  # grows while it is walked
            found += self._children[known]
        return tuple(found)

    def leaves_of(self, node: int) -> tuple[int, ...]:
        """The leaves of the subtree, in order; of a leaf, itself."""
        return tuple(sorted(below for below in self.subtree(node) if not self._children[below]))

    def is_ancestor(self, a: int, b: int) -> bool:
        """Whether ``a`` is ``b`` or above it."""
        self._check(a)
        return a in self.ancestors(b)

    def lca(self, a: int, b: int) -> int:
        """The lowest node above both, or one of the two."""
        above = set(self.ancestors(a))
        return next(node for node in self.ancestors(b) if node in above)

    def distance(self, a: int, b: int) -> int:
        """Edges on the way between two nodes."""
        common = self.lca(a, b)
        return self.depths[a] + self.depths[b] - 2 * self.depths[common]

    def cover(self, leaves: Iterable[int]) -> tuple[int, ...]:
        """The highest nodes all of whose leaves are among ``leaves``, in order.

        Siblings that make a whole group become the group, and all leaves the root.

        Raises:
            HacoreError: if a node is not a leaf.
        """
        wanted = set(leaves)
        for node in sorted(wanted):
            self._check(node)
            if self._children[node]:
                raise HacoreError(
                    f"{self.names[node]!r} is not a leaf of the tree; give its leaves, leaves_of({node})"
                )
        whole = [wanted.issuperset(self.leaves_of(node)) for node in range(len(self))]
        return tuple(
            node for node, parent in enumerate(self.parents) if whole[node] and not (node and whole[parent])
        )

    def _check(self, node: int) -> None:
        if not 0 <= node < len(self):
            raise HacoreError(
                f"the tree has no node {node}; choose one of 0..{len(self) - 1}, or find it by name"
            )
