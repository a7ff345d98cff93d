"""Imports only go upward: a module imports from layers below its own, never from above."""

import ast
from pathlib import Path

import pytest

import hacore

PACKAGE = Path(hacore.__file__).parent
LAYERS = [
    "errors", "files", "geometry", "data", "encoders", "losses", "models", "train",
    "evaluate", "unlearning", "results", "experiments", "search", "plots", "audit", "__main__",
]  # fmt: skip
# Reading records and drawing them needs no torch: a reader's machine may have none.
WITHOUT_TORCH = {"errors", "files", "results", "plots"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Everything a file imports, at the top or within functions, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_upward(path):
    own = layer(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "hacore" and parts[1] in LAYERS:
            within = parts[1] == own and (PACKAGE / own).is_dir()
            assert within or LAYERS.index(parts[1]) < LAYERS.index(own), f"{own} imports {name}"
        if own in WITHOUT_TORCH:
            assert parts[0] not in {"torch", "geoopt"}, f"{own} imports {name}"
            assert parts[0] != "hacore" or parts[1] in WITHOUT_TORCH, f"{own} imports {name}"


def test_every_module_has_a_layer():
    assert {layer(path) for path in MODULES} <= set(LAYERS)
