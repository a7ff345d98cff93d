"""nbval bites: a changed number, a broken loss or an unexecuted cell fails; tolerances hold what they promise."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent

# What the cell prints now, what is stored, tags, and whether nbval must accept it.
CELLS = {
    "same text": ("accuracy 98.3", "accuracy 98.3", [], True),
    "a digit changed": ("accuracy 98.3", "accuracy 98.2", [], False),
    "a word changed": ("accuracy 98.3", "precision 98.3", ["atol=1"], False),
    "within atol": ("accuracy 98.3", "accuracy 97.9", ["atol=0.5"], True),
    "outside atol": ("accuracy 98.3", "accuracy 97.7", ["atol=0.5"], False),
    "within rtol": ("loss 1.2345e-05", "loss 1.2346e-05", ["rtol=1e-3"], True),
    "outside rtol": ("loss 1.2345e-05", "loss 1.2446e-05", ["rtol=1e-3"], False),
    "both tolerances add up": ("steps 112", "steps 100", ["rtol=0.1", "atol=2"], True),
    "sign counts": ("gap -3.0", "gap 3.0", ["rtol=0.1"], False),
    "a column is wider": ("a  b\n9.99  1", " a  b\n10.01  1", ["atol=0.1"], True),
    "a number is missing": ("1.0 2.0", "1.0", ["atol=9"], False),
    "an integer in a name": ("cifar100 70", "cifar10 70", ["rtol=0.1"], False),
    "nan is no number": ("loss nan", "loss 1.0", ["atol=9"], False),
    "nothing is printed any more": ("", "accuracy 98.3", ["atol=9"], False),
    "something new is printed": ("accuracy 98.3", "", [], False),
    "a picture, not compared": ("now", "then", ["nbval-ignore-output"], True),
}


def nbval(folder, **environment):
    """Run nbval on a folder's notebooks with the book's rules; return {cell number: passed}."""
    shutil.copy(ROOT / "book" / "conftest.py", folder)
    report = folder / "report.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", f"--junitxml={report}", "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        check=False,
    )
    cases = ET.parse(report).findall(".//testcase")
    return {int(case.get("name").rsplit(" ", 1)[1]): len(case) == 0 for case in cases}


def write(path, cells):
    nbformat.write(new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    cells = []
    for number, (printed, stored, tags, _) in enumerate(CELLS.values(), start=1):
        cell = new_code_cell(f"print({printed!r}, end='')", execution_count=number, metadata={"tags": tags})
        cell.outputs = [new_output("stream", name="stdout", text=stored)] if stored else []
        cells.append(cell)
    write(folder / "cells.ipynb", cells)
    return nbval(folder)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_compared_with_its_stored_output(outcomes, name):
    assert outcomes[list(CELLS).index(name)] is CELLS[name][3]


def test_a_cell_that_was_never_run_or_is_skipped_fails(tmp_path):
    skipped = new_code_cell("1", execution_count=1, metadata={"tags": ["nbval-skip"]})
    write(tmp_path / "unrun.ipynb", [new_code_cell("1"), skipped, new_code_cell("", execution_count=2)])
    assert nbval(tmp_path) == {0: False, 1: False, 2: True}


LOSS = """
import torch
from hacore.geometry import Poincare
from hacore.losses import contrastive_unlearning
points = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64).view(6, 2)
labels = torch.tensor([0, 0, 1, 1, 2, 2])
print(contrastive_unlearning(points[:2], labels[:2], points, labels, Poincare(), 0.5))
"""
SLIDER = """
from hacore.plots import slider
slider({"a": b"", "b": b""}, "frame", "nothing")
"""


def refresh(path, source, tags=()):
    """Write a notebook of one cell and store its outputs as `make refresh` does; return the file's text."""
    write(path, [new_code_cell(source.strip(), id="cell", metadata={"tags": list(tags)})])
    subprocess.run(
        [sys.executable, ROOT / "tools" / "book.py", "refresh", path], check=True, capture_output=True
    )
    return path.read_text()


def test_refresh_stores_the_same_bytes_each_time(tmp_path):
    """Also of widgets, whose names are random; with their state, without which the site cannot show them."""
    stored = refresh(tmp_path / "slider.ipynb", SLIDER)
    assert stored == refresh(tmp_path / "slider.ipynb", SLIDER)
    assert "StackModel" in stored
    assert nbval(tmp_path) == {0: True}


def test_a_chapter_holds_until_a_loss_breaks(tmp_path):
    refresh(tmp_path / "loss.ipynb", LOSS, ["rtol=1e-6"])
    assert nbval(tmp_path) == {0: True}

    shutil.copytree(ROOT / "hacore", tmp_path / "broken" / "hacore")
    source = tmp_path / "broken" / "hacore" / "losses" / "unlearning.py"
    assert source.read_text().count("(share * push - pull *") == 1
    source.write_text(source.read_text().replace("(share * push - pull *", "(share * push + pull *"))
    assert nbval(tmp_path, PYTHONPATH=str(tmp_path / "broken")) == {0: False}
