"""The report of an audit: numbers, a notebook that can be run again, and one page that needs nothing else."""

import base64
import dataclasses
import html
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hacore import __version__, geometry, plots
from hacore.audit.evidence import VIEWS, Evidence, Side
from hacore.errors import HacoreError
from hacore.evaluate import auditing
from hacore.evaluate.alignment import alignment_matrix
from hacore.evaluate.auditing import Audit
from hacore.experiments import environment
from hacore.files import replacing

FORMAT = 1  # raise it when what audit.json holds changes its meaning
NUMBERS, EMBEDDINGS, NOTEBOOK, PAGE = "audit.json", "embeddings.npz", "report.ipynb", "report.html"
IN_A_ROW = 8  # pictures of the gallery
TITLE = "Did the service forget your images?"


def result(evidence: Evidence, seed: int = 0, level: float = 0.95) -> Audit:
    """What :func:`hacore.evaluate.auditing.audit` finds in the evidence; raises as it does."""
    spaces = evidence.before.space, evidence.after.space
    return auditing.audit(*evidence.own, *spaces, evidence.control, seed, level)


def image_drops(evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The drops of :func:`hacore.evaluate.auditing.image_drops`, as arrays."""
    spaces = evidence.before.space, evidence.after.space
    own, compared = auditing.image_drops(evidence.own, *spaces, evidence.control)
    return own.numpy(), compared.numpy()


def matrices_figure(evidence: Evidence) -> Figure:
    """The alignment matrices of at most 60 own images, see :func:`hacore.plots.matrices`.

    Where the geometry changed, similarities have no common unit: each matrix then counts in standard deviations
    of its mismatched pairs, from their mean.
    """
    chosen = torch.from_numpy(plots.spaced(len(evidence.before.first)))
    found = []
    for side in (evidence.before, evidence.after):
        matrix = alignment_matrix(side.first[chosen], side.second[chosen], side.space).double().numpy()
        if not evidence.one_geometry:
            mismatched = matrix[~np.eye(len(matrix), dtype=bool)]
            matrix = (matrix - mismatched.mean()) / mismatched.std()
        found.append(matrix)
    return plots.matrices(
        found[0], found[1], unit="similarity" if evidence.one_geometry else "standardised similarity"
    )


def drops_figure(evidence: Evidence) -> Figure:
    """The drops of :func:`image_drops`, see :func:`hacore.plots.drops`."""
    own, others = image_drops(evidence)
    if evidence.control is not None:
        return plots.drops(own, others)
    # Means over many pairs spread less than single pairs do: no threshold for single images lies in them.
    return plots.drops(own, others, ("your images", "mismatched pairs"), level=None)


def gallery_figure(evidence: Evidence) -> Figure:
    """The own images that changed most and least, with their drops.

    Raises:
        HacoreError: if the evidence has no thumbnails of them.
    """
    own, _ = image_drops(evidence)
    most, least = _extremes(own)
    if not {*most, *least} <= evidence.thumbnails.keys():
        raise HacoreError("this audit was given no images to show; audit again with --images")
    rows = [
        (title, [evidence.thumbnails[i] for i in chosen], [_caption(evidence, i, own[i]) for i in chosen])
        for title, chosen in (("dropped most", most), ("dropped least, or rose", least))
    ]
    return plots.gallery(rows)


def _extremes(own: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    order = np.argsort(-own, kind="stable").tolist()
    count = min(IN_A_ROW, len(order) // 2)
    return order[:count], order[::-1][:count]


def _caption(evidence: Evidence, i: int, drop: float) -> str:
    # The end of a name is what tells files of a folder apart.
    name = Path(evidence.names[i]).stem if evidence.names else str(i)
    return f"{name if len(name) <= 16 else '…' + name[-15:]}\n{drop:+.2f}"


# Writing and reading


def write_report(
    evidence: Evidence, folder: str | Path, seed: int = 0, command: str = "", level: float = 0.95
) -> Audit:
    """Audit the evidence, write the report into ``folder`` and return what was found.

    ``audit.json`` holds all numbers, ``embeddings.npz`` what they come from, ``report.ipynb`` a notebook that
    computes them again from these two, ``report.html`` a page that needs no other file and no network. All is
    computed before the first file is written.

    Args:
        evidence: see :func:`hacore.audit.gather`.
        folder: made where it is missing; an older report in it is replaced.
        seed: of permutations and bootstrap.
        command: how the report was asked for.
        level: of the intervals.

    Raises:
        HacoreError: as :func:`result`, or if the folder cannot be written to.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise HacoreError(f"{folder} is a file; choose another folder for the report")
    found = result(evidence, seed, level)
    with mpl.rc_context():
        plots.use_style()
        blocks = _blocks(evidence, found, seed, command)
    contents = {
        EMBEDDINGS: _pack(evidence),
        NUMBERS: json.dumps(_numbers(evidence, found, seed, command), indent=1, ensure_ascii=False).encode(),
        NOTEBOOK: _notebook(blocks).encode(),
        PAGE: _page(blocks).encode(),
    }
    for name, content in contents.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return found


def load_report(folder: str | Path) -> tuple[Evidence, Audit]:
    """The evidence and the result of a report that :func:`write_report` wrote.

    Thumbnails are those of the images that the report shows.

    Raises:
        HacoreError: if a file is missing, damaged or of another version of hacore.
    """
    folder = Path(folder)
    try:
        numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
        if numbers["format"] != FORMAT:
            raise HacoreError(f"{folder / NUMBERS} is of another version of hacore; audit again")
        with (folder / EMBEDDINGS).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        sides = []
        for when in ("before", "after"):
            about = numbers[when]
            points = {
                view: torch.from_numpy(arrays[f"{when}_{view}"])
                for view in VIEWS
                if f"{when}_{view}" in arrays
            }
            sides.append(Side(about["source"], geometry.space(about["space"], about["curv"]), **points))
        pictures = {int(name[10:]): array for name, array in arrays.items() if name.startswith("thumbnail_")}
        evidence = Evidence(sides[0], sides[1], numbers["origin"], tuple(numbers["names"]), pictures)
        return evidence, Audit(**numbers["audit"])
    except HacoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise HacoreError(
            f"the report in {folder} is incomplete or damaged ({error}); audit again"
        ) from error


def _numbers(evidence: Evidence, found: Audit, seed: int, command: str) -> dict[str, Any]:
    own, others = image_drops(evidence)
    sides = {"before": evidence.before, "after": evidence.after}
    return {
        "format": FORMAT,
        "sentence": found.sentence(),
        "audit": dataclasses.asdict(found),
        "seed": seed,
        "command": command,
        "origin": evidence.origin,
        **{
            when: {"source": side.source, "space": side.space.name, "curv": float(side.space.curv.detach())}
            for when, side in sides.items()
        },
        "names": list(evidence.names),
        "drops": {"own": own.tolist(), "others": others.tolist()},
        "environment": {"hacore": __version__, **environment()},
    }


def _pack(evidence: Evidence) -> bytes:
    arrays = {
        f"{when}_{view}": points.numpy()
        for when, side in (("before", evidence.before), ("after", evidence.after))
        for view in VIEWS
        if (points := getattr(side, view)) is not None
    }
    most, least = _extremes(image_drops(evidence)[0])
    for i in (*most, *least):
        if i in evidence.thumbnails:
            arrays[f"thumbnail_{i}"] = evidence.thumbnails[i]
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


# The report as blocks, which the notebook and the page set each in its own way


@dataclass(frozen=True)
class _Block:
    """A section: its paragraphs, and a table, code, a picture or some printed text, if it has one."""

    title: str
    paragraphs: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    table: tuple[tuple[str, str], ...] = ()
    listing: str = ""
    code: str = ""
    picture: bytes = field(default=b"", repr=False)
    text: str = ""  # what is printed, or what a picture shows in words


def _blocks(evidence: Evidence, found: Audit, seed: int, command: str) -> list[_Block]:
    blocks = [
        _Block(
            TITLE,
            text=found.sentence(),
            code="from IPython.display import Image\n\n"
            "from hacore.audit import drops_figure, gallery_figure, load_report, matrices_figure, result\n"
            "from hacore.plots import png, use_style\n\n"
            "use_style()\n"
            "evidence, stored = load_report('.')  # audit.json and embeddings.npz, beside this notebook\n"
            f"found = result(evidence, seed={seed}, level={found.level})\n"
            "assert found.verdict == stored.verdict\n"
            "print(found.sentence())",
        ),
        _Block("The numbers", table=_table(evidence, found)),
        _matrices_block(evidence, found),
        _drops_block(evidence, found),
    ]
    own, _ = image_drops(evidence)
    most, least = _extremes(own)
    if {*most, *least} <= evidence.thumbnails.keys():
        blocks.append(
            _Block(
                "The images that changed most and least",
                (
                    "Above each image stands its drop. Single images are noisy: two views are one draw of chance, "
                    "so that this picture illustrates the score and proves nothing about an image in it.",
                ),
                code="Image(png(gallery_figure(evidence), colors=256))",
                picture=plots.png(gallery_figure(evidence), colors=256),
                text=f"Two rows of {len(most)} images each: those whose agreement dropped most, by "
                f"{own[most[-1]]:.2f} to {own[most[0]]:.2f}, and those where it dropped least, by "
                f"{own[least[0]]:.2f} to {own[least[-1]]:.2f}.",
            )
        )
    blocks.append(_limits(found))
    if command:
        blocks.append(
            _Block(
                "How this report was made",
                (f"From {evidence.origin}, by hacore {__version__}:",),
                listing=command,
            )
        )
    return blocks


def _between(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def _table(evidence: Evidence, found: Audit) -> tuple[tuple[str, str], ...]:
    level = f"{100 * found.level:g} %"
    rows = [
        ("Verdict", found.verdict),
        ("Score: drop beyond that of " + ("the control" if found.n_control else "mismatched pairs"),
         f"{found.score:.3f} standard deviations of mismatched pairs"),
        (f"{level} interval of the score", _between(found.low, found.high)),
        ("p-value, one-sided; 0.05 or less is called visible", f"{found.p_value:.4f}"),
        ("Own images", str(found.n)),
        ("Control images", str(found.n_control) if found.n_control else "none"),
        ("Agreement of own pairs, before and after", f"{found.before:.3f}, {found.after:.3f}"),
    ]  # fmt: skip
    if found.control_before is not None:
        rows.append(
            (
                "Agreement of control pairs, before and after",
                f"{found.control_before:.3f}, {found.control_after:.3f}",
            )
        )
    if evidence.one_geometry:
        rows.append(
            (
                f"Plain drop of own pairs, {level} interval",
                f"{found.raw:.3f}, {_between(found.raw_low, found.raw_high)}",
            )
        )
    for when, side in (("before", evidence.before), ("after", evidence.after)):
        curvature = (
            "" if side.space.name == "euclidean" else f", curvature -{float(side.space.curv.detach()):g}"
        )
        rows.append((f"The service {when}", f"{side.source} ({side.space.name}{curvature})"))
    return tuple(rows)


def _matrices_block(evidence: Evidence, found: Audit) -> _Block:
    shown = len(plots.spaced(found.n))
    which = (
        f"Shown are {shown} of the {found.n} images, evenly spaced, in their order; the score counts all."
        if shown < found.n
        else f"Shown are all {found.n} images, in their order."
    )
    unit = (
        "Both matrices share one scale of colours."
        if evidence.one_geometry
        else "The geometry of the service changed, so that each matrix counts in standard deviations of its "
        "mismatched pairs."
    )
    return _Block(
        "How alike two views of your images are to the service",
        (
            "Row i is image i in one view, column j image j in another. On the diagonal both are the same image; a "
            "service that learned from your images tends to see them alike, a bright diagonal. Forgetting that can "
            f"be seen dims the diagonal and leaves the rest: a line of the colour of drops in the third matrix. {unit} "
            f"{which}",
        ),
        code="Image(png(matrices_figure(evidence), colors=256))",
        picture=plots.png(matrices_figure(evidence), colors=256),
        text=f"Three alignment matrices of {shown} images: before, after, and the change. The mean of the true pairs "
        f"went from {found.before:.3f} to {found.after:.3f}.",
    )


def _drops_block(evidence: Evidence, found: Audit) -> _Block:
    if found.n_control:
        others, told = "the control images", (
            "The dotted line is a threshold for single images: it lies above 95 % of the control. Where many more than "
            "5 % of your images lie beyond it, the change can be seen image by image; the verdict does not need that, "
            "it compares the means."
        )  # fmt: skip
    else:
        others, told = "mismatched pairs", (
            "Without control images, the drop of the mean mismatched pair of each image takes their place. It shows "
            "how far all similarities fell, but not whether true pairs of other images fell as yours did."
        )  # fmt: skip
    return _Block(
        "Image by image",
        (
            "The drop of an image is how far the agreement of its two views fell, in standard deviations of mismatched "
            f"pairs. The solid lines are the means, and their distance is the score. {told}",
        ),
        code="Image(png(drops_figure(evidence), colors=256))",
        picture=plots.png(drops_figure(evidence), colors=256),
        text=f"Histograms of the drops of your images, mean {found.drop:.2f}, and of {others}, mean "
        f"{found.control_drop:.2f}.",
    )


def _limits(found: Audit) -> _Block:
    control = (
        "It is right about the rate of false alarms, 5 %, if the control images are of the kind of yours and the "
        "service treated both alike but for your request. Control images of another kind can raise or hide an alarm: "
        "images the service never trained on agree less to begin with, and a mere update moves them less. Best hold "
        "back some of your own images, which the service trained on too and is not asked to forget."
        if found.n_control
        else "Without control images it cannot tell forgetting from any other loss of agreement, such as that of a "
        "service which was merely trained again: there is no rate of false alarms to rely on."
    )
    return _Block(
        "What this audit can say, and what it cannot",
        points=(
            "It can say whether the service changed on your images more than chance explains. It needs nothing but "
            "the embeddings of two views of each image, before and after.",
            control,
            "Visible is not yet forgotten. A service can lower the agreement of your images on purpose and still hold "
            "what it learned from them, where other questions would find it.",
            "Nor is invisible kept. A service that was trained anew without your images may see their two views as "
            "alike as ever, because it learned from others that such views belong together.",
            "It says nothing about copies of your images elsewhere, or about a service that knows it is being audited.",
        ),
    )


def _notebook(blocks: Sequence[_Block]) -> str:
    """The report as a notebook with its outputs."""
    import nbformat
    from nbformat import v4

    cells = []
    for number, block in enumerate(blocks):
        parts = [f"{'#' if number == 0 else '##'} {block.title}", *block.paragraphs]
        if block.points:
            parts.append("\n".join(f"- {point}" for point in block.points))
        if block.table:
            rows = [f"| {_literal(name)} | {_literal(value)} |" for name, value in block.table]
            parts.append("\n".join(["| | |", "|:--|:--|", *rows]))
        if block.listing:
            fence = "`" * 3
            while fence in block.listing:
                fence += "`"
            parts.append(f"{fence}sh\n{block.listing}\n{fence}")
        cells.append(v4.new_markdown_cell("\n\n".join(parts)))
        if block.code:
            cell = v4.new_code_cell(block.code, execution_count=1 + sum(c.cell_type == "code" for c in cells))
            if block.picture:
                data = {"image/png": base64.b64encode(block.picture).decode(), "text/plain": block.text}
                cell.metadata["mystnb"] = {"image": {"alt": block.text}}
                cell.outputs = [
                    v4.new_output(
                        "execute_result",
                        data,
                        execution_count=cell.execution_count,
                        metadata={"image/png": {"alt": block.text}},
                    )
                ]
            else:
                cell.outputs = [v4.new_output("stream", name="stdout", text=block.text + "\n")]
            cells.append(cell)
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # random ones would differ from run to run
    book = v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.validate(book)
    return nbformat.writes(book)


def _literal(text: str) -> str:
    """Text whose signs mean nothing to markdown."""
    return "".join("\\" + sign if sign in "\\`*_{}[]<>()#|~$!" else sign for sign in text)


STYLE = """
:root { color-scheme: light dark; --ink: #222; --page: #fff; --line: #ccc; --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --page: #16181c; --line: #44484f; --soft: #23262c; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 54rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.answer { padding: .8rem 1.1rem; border-left: .35rem solid #0072b2; background: var(--soft); font-size: 1.08rem; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } th { font-weight: 500; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .4rem; }
pre { padding: .7rem 1rem; background: var(--soft); white-space: pre-wrap; }
"""


def _page(blocks: Sequence[_Block]) -> str:
    """The report as one page; the browser is told to request nothing, from anywhere."""
    body = []
    for number, block in enumerate(blocks):
        level = 1 if number == 0 else 2
        body.append(f"<section>\n<h{level}>{html.escape(block.title)}</h{level}>")
        body += [f"<p>{html.escape(text)}</p>" for text in block.paragraphs]
        if block.points:
            body.append(
                "<ul>" + "".join(f"<li>{html.escape(point)}</li>" for point in block.points) + "</ul>"
            )
        if block.table:
            rows = "".join(
                f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
                for name, value in block.table
            )
            body.append(f"<table>{rows}</table>")
        if block.picture:
            source = base64.b64encode(block.picture).decode()
            body.append(f'<img src="data:image/png;base64,{source}" alt="{html.escape(block.text)}">')
        elif block.text:
            body.append(f'<p class="answer">{html.escape(block.text)}</p>')
        if block.listing:
            body.append(f"<pre><code>{html.escape(block.listing)}</code></pre>")
        body.append("</section>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(TITLE)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
