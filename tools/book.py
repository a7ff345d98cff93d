"""Build the site, or refresh the outputs stored in its chapters.

    python tools/book.py build            execute the chapters (through the cache), then build the site
    python tools/book.py build --stored   build from the outputs stored in the notebooks, executing nothing
    python tools/book.py refresh [FILE…]  execute chapters in place; commit the result

Warnings are errors, and every warning is shown before the build fails.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import nbformat
from jupyter_book.sphinx import build_sphinx
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def isolate_kernels() -> None:
    """Keep a reader's IPython start-up files out of the book, and ipykernel's warning about local sockets."""
    profile = ROOT / "_build" / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n", encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(profile.parent)


def build(stored: bool) -> int:
    """What `jupyter-book build . -W -n --keep-going` does; ``stored`` turns execution off."""
    overrides = {
        "external_toc_path": str(ROOT / "_toc.yml"),
        "latex_individualpages": False,
        "nitpicky": True,
    }
    if stored:
        overrides["nb_execution_mode"] = "off"
    # A page that left the book must leave the site.
    shutil.rmtree(SITE, ignore_errors=True)
    result = build_sphinx(
        ROOT,
        SITE,
        noconfig=True,
        path_config=ROOT / "_config.yml",
        confoverrides=overrides,
        # Sphinx reports a page's warnings only when it reads the page, so every page is read each time.
        freshenv=True,
        warningiserror=True,
        keep_going=True,
        quiet=stored,
    )
    if isinstance(result, Exception):
        raise result
    # The explorer's script links to records by their names; Sphinx copies only what a page itself links to.
    for folder in ("results", "shadows", "searches"):
        if (ROOT / "book" / folder).exists():
            shutil.copytree(ROOT / "book" / folder, SITE / "book" / folder, dirs_exist_ok=True)
    return result


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs with what a cell prints in one piece, however the kernel happened to send it."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def refresh(path: Path) -> None:
    """Execute one notebook in its folder and store outputs that do not change from run to run."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=180,  # a busy machine takes longer than the usual minute
        kernel_name="python3",
        record_timing=False,
        store_widget_state=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = nbformat.NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    if widgets:
        notebook.metadata["widgets"] = widgets
    text = nbformat.writes(notebook)
    states = widgets["application/vnd.jupyter.widget-state+json"]["state"] if widgets else {}
    # Widgets are named at random; number them in the order of their creation instead.
    for number, name in enumerate(states):
        text = text.replace(name, f"{number:032x}")
    # nbformat sorts keys, and the names were keys.
    text = nbformat.writes(nbformat.reads(text, as_version=4))
    path.write_text(text + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build the site into _build/html")
    building.add_argument("--stored", action="store_true", help="use stored outputs, execute nothing")
    refreshing = commands.add_parser("refresh", help="execute chapters in place")
    refreshing.add_argument("notebooks", nargs="*", type=Path, help="default: all of book/")
    arguments = parser.parse_args()
    isolate_kernels()
    if arguments.command == "build":
        return build(arguments.stored)
    # Stored outputs are those of the quick profile on the CPU; nbval compares under the same settings.
    os.environ.update(HACORE_PROFILE="quick", HACORE_DEVICE="cpu")
    for path in arguments.notebooks or sorted((ROOT / "book").glob("*.ipynb")):
        print(f"executing {path}", flush=True)
        refresh(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
