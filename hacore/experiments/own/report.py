"""The report of unlearning a checkpoint: before and after, as numbers and as one page that needs nothing else."""

import html
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hacore import __version__
from hacore.experiments.own.measures import NAMES, PERCENT
from hacore.files import write_text

NUMBERS, PAGE = "report.json", "report.html"
FORMAT = 1  # raise it when what report.json holds changes its meaning
FEW = 30  # held-out pairs of a kind, below which a measure of them is rough


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a checkpoint: measures on held-out pairs before and after, and what it took.

    Attributes:
        checkpoint, out: the files, by name.
        method: its name.
        settings: those of the method, with ``steps`` where it was stopped, and the seed.
        forget, keep: the concepts that were to be forgotten, and others that are told apart.
        pairs: how many were used: ``forget`` and ``retain`` (trained on), ``forget_held_out``, ``retain_held_out``, and
            ``aside``, validation images that nothing reads.
        before, after: see :func:`measures`; "after" is measured on the file that was written.
        changed: the weights that changed, and all there are.
        cost: of the method alone: seconds, steps, FLOPs, peak memory.
        skipped: what could not be used of the data, in words.
        environment: versions, hardware, commit, time.
    """

    checkpoint: str
    out: str
    method: str
    settings: dict[str, Any]
    forget: tuple[str, ...]
    keep: tuple[str, ...]
    pairs: dict[str, int]
    before: dict[str, float]
    after: dict[str, float]
    changed: tuple[int, int]
    cost: dict[str, float]
    skipped: str
    environment: dict[str, Any]

    def frame(self) -> pd.DataFrame:
        """The named measures as a table: before, after and the change."""
        names = [name for name in NAMES if name in self.before]
        table = pd.DataFrame(
            {"before": [self.before[n] for n in names], "after": [self.after[n] for n in names]},
            index=pd.Index([NAMES[n] for n in names], name="held-out pairs"),
        )
        return table.assign(change=table["after"] - table["before"])

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, in words, and what makes it doubtful."""
        auc, past = self.after["prompt_auc"], self.before["prompt_auc"]
        what = ", ".join(self.forget)
        found = [
            f"The prompt of {what} finds its images with an AUC of {auc:.1f} %, before {past:.1f} %; 50 % is chance.",
            "Of retained images, "
            f"{self.after['retain_image_to_text_recall_5']:.1f} % find their text among the first five, before "
            f"{self.before['retain_image_to_text_recall_5']:.1f} %.",
        ]
        if auc < 50 - max(10.0, 2 * self.auc_error):
            found.append(
                "The AUC is far below chance: the images are where the prompt points away from, and who turns its "
                "sign finds them. That is over-forgetting; take a lower rate or fewer steps."
            )
        few = [kind for kind in ("forget", "retain") if self.pairs[f"{kind}_held_out"] < FEW]
        if few:
            found.append(
                f"Fewer than {FEW} {' and '.join(few)} pairs are held out: read all numbers about them as rough."
            )
        return tuple(found)

    @property
    def auc_error(self) -> float:
        """Standard error, in percent, of an AUC at chance with so many held-out images."""
        f, r = self.pairs["forget_held_out"], self.pairs["retain_held_out"]
        return 100 * math.sqrt((f + r + 1) / (12 * f * r))

    def __str__(self) -> str:
        """The table and the sentences."""
        table = self.frame().to_string(float_format=lambda value: f"{value:.2f}")
        seconds = f"{self.method}: {self.cost['steps']:.0f} steps in {self.cost['seconds']:.1f} s"
        return "\n".join([table, *self.sentences, seconds])

    @property
    def page(self) -> str:
        """One page of HTML that needs no other file and no network."""
        return _page(self)

    def write(self, folder: str | Path) -> None:
        """Write ``report.json``, all numbers, and ``report.html``, the page.

        Raises:
            HacoreError: if the folder cannot be written to.
        """
        content = {"format": FORMAT, "sentences": self.sentences, "hacore": __version__, **asdict(self)}
        write_text(Path(folder) / NUMBERS, json.dumps(content, indent=1, ensure_ascii=False))
        write_text(Path(folder) / PAGE, self.page)


STYLE = """
:root { color-scheme: light dark; --ink: #222; --page: #fff; --line: #ccc; --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --page: #16181c; --line: #44484f; --soft: #23262c; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 54rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.answer { padding: .8rem 1.1rem; border-left: .35rem solid #0072b2; background: var(--soft); }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem .3rem 0; text-align: left;
  border-bottom: 1px solid var(--line); } th { font-weight: 500; } td { text-align: right; }
.facts td { text-align: left; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
"""
LIMITS = (
    "It compares the checkpoint with what became of it, on pairs that no step has seen. What a model trained without "
    "the concept would answer is not known here: the numbers say how much changed, not how near that is to never "
    "having learnt it.",
    "An image counts as one of the concept if a caption mentions it. Images that show it unmentioned are among the "
    "retained ones, in training and in the report.",
    "Near chance on prompts is not gone: a probe of the features, or a few steps of training, may bring the concept "
    "back. Far below chance is worse than chance.",
    "What is not in the pairs was not watched. Other concepts may have suffered, and zero-shot accuracies on the data "
    "sets that matter to you should be measured with the code that will use the checkpoint.",
    "The licence of the weights goes with them: released MERU weights are CC-BY-NC, before and after.",
)


def _page(report: Report) -> str:
    """The report as one page; the browser is told to request nothing, from anywhere."""
    text = html.escape
    rows = "".join(
        f'<tr><th scope="row">{text(str(name))}</th>{"".join(f"<td>{value:.2f}</td>" for value in row)}</tr>'
        for name, row in zip(report.frame().index, report.frame().to_numpy().tolist(), strict=True)
    )
    facts = {
        "from, to": f"{report.checkpoint}, {report.out}",
        "method": f"{report.method}, {', '.join(f'{name} {value}' for name, value in report.settings.items())}",
        "pairs": ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in report.pairs.items()),
        "kept apart": ", ".join(report.keep) or "nothing but other images",
        "data": report.skipped,
        "weights changed": f"{report.changed[0]} of {report.changed[1]}",
        "standard error of an AUC": f"{report.auc_error:.1f} %",
        "cost": f"{report.cost['steps']:.0f} steps, {report.cost['seconds']:.1f} s, {report.cost['flops']:.2g} FLOPs, "
        f"{report.cost['peak_memory_bytes'] / 1e9:.2g} GB at most",
        "made by": f"hacore {__version__}, {report.environment['hardware']}, {report.environment['created']}",
    }
    told = "".join(f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>' for k, v in facts.items())
    title = f"Unlearning {', '.join(report.forget)}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{text(title)}</h1>\n"
        f'<p class="answer">{"<br>".join(map(text, report.sentences))}</p>\n'
        f"<h2>Before and after</h2>\n{_bars(report)}\n"
        "<table><tr><th>held-out pairs</th><th>before</th><th>after</th><th>change</th></tr>"
        f"{rows}</table>\n<h2>How it was made</h2>\n<table class='facts'>{told}</table>\n"
        "<h2>What this report can say, and what it cannot</h2>\n"
        f"<ul>{''.join(f'<li>{text(point)}</li>' for point in LIMITS)}</ul>\n</body>\n</html>\n"
    )


def _bars(report: Report) -> str:
    """What is in percent, as a picture: a ring before, a dot after, and a line between."""
    names = [name for name in PERCENT if name in report.before]
    left, width, step = 285, 380, 24
    lines = []
    for number, name in enumerate(names):
        y = 30 + number * step
        old, new = (left + width * side[name] / 100 for side in (report.before, report.after))
        lines.append(
            f'<text x="{left - 14}" y="{y + 4}" text-anchor="end">{html.escape(NAMES[name])}</text>'
            f'<line x1="{old:.1f}" x2="{new:.1f}" y1="{y}" y2="{y}" stroke="#0072b2" stroke-width="2"/>'
            f'<circle cx="{old:.1f}" cy="{y}" r="5" fill="none" stroke="#0072b2" stroke-width="2"/>'
            f'<circle cx="{new:.1f}" cy="{y}" r="5" fill="#0072b2"/>'
        )
    bottom = 30 + len(names) * step
    ticks = "".join(
        f'<line x1="{x}" x2="{x}" y1="14" y2="{bottom - 8}" stroke="#888" stroke-width=".5"/>'
        f'<text x="{x}" y="{bottom + 8}" text-anchor="middle">{tick}</text>'
        for tick in (0, 25, 50, 75, 100)
        for x in [left + width * tick / 100]
    )
    said = "; ".join(
        f"{NAMES[name]}: {report.before[name]:.1f} before, {report.after[name]:.1f} after" for name in names
    )
    return (
        f'<svg viewBox="0 0 700 {bottom + 16}" width="700" role="img" aria-label="{html.escape(said)}">'
        f"{ticks}{''.join(lines)}</svg>\n<p>Percent, on held-out pairs: rings before, dots after.</p>"
    )
