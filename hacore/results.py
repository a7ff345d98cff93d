"""Records: one small JSON file per run, and the tables made from them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from hacore.errors import HacoreError
from hacore.files import write_text

SCHEMA = 1
SECTIONS = ("run", "metrics", "cost", "environment")
# What two runs share that answer the same request in the same geometry with the same seed: all but the method.
REQUEST = ("scenario", "data", "profile", "recipe", "forget", "space", "lift", "curv", "seed")
# The two models that frame every answer come first in a table.
FRAME = ("original", "retrain")
GAPS = ("retain_test_accuracy", "forget_train_accuracy", "forget_test_accuracy", "attack_logits_auc")


def write(record: dict[str, Any], folder: str | Path) -> Path:
    """Write a record to ``folder/NAME.json``, all of it or nothing, and return the path.

    Raises:
        HacoreError: if a number in it is not finite (such a run has no result), or the folder
            cannot be written to.
    """
    try:
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise HacoreError(
            f"the record {record['name']} holds a number that is not finite; it was not written"
        ) from error
    path = Path(folder) / f"{record['name']}.json"
    write_text(path, text + "\n")
    return path


def read(path: str | Path) -> dict[str, Any]:
    """Read and check one record.

    Raises:
        HacoreError: if the file is no record of this schema.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HacoreError(f"cannot read the record {path}: {error.strerror}") from error
    except ValueError as error:
        raise HacoreError(
            f"{path} is not valid JSON ({error}); delete it and run the experiment again"
        ) from error
    if (
        not isinstance(record, dict)
        or record.get("schema") != SCHEMA
        or any(s not in record for s in SECTIONS)
    ):
        raise HacoreError(
            f"{path} is not a hacore record of schema {SCHEMA}; delete it and run the experiment again"
        )
    return record


def load(folder: str | Path = "results", **where: Any) -> pd.DataFrame:
    """All records of a folder (and the folders in it) as a table, one row a record.

    Columns are the fields of the run, the metrics, the cost and the environment (prefixed
    ``env_``), and ``record``, the file's path. Rows are in the order of scenario, data, profile, recipe,
    forget, space, lift, curv, method (Original and Retrain first, the others by name) and seed, whatever
    the files are called. Keyword arguments keep the rows whose column
    equals the value, or is among the values of a list: ``load(data="digits", space=["lorentz"])``.

    Raises:
        HacoreError: if the folder is missing or holds no record, a record is damaged, a column
            is unknown, or no record matches.
    """
    rows = []
    for path, record in _records(folder):
        environment = {f"env_{key}": value for key, value in record["environment"].items()}
        rows.append(record["run"] | record["metrics"] | record["cost"] | environment | {"record": path})
    return _selected(rows, where, folder)


def curves(folder: str | Path = "results", **where: Any) -> pd.DataFrame:
    """What methods did on their way, of all records that were looked at while they ran: one row a look.

    Columns are the fields of the run, ``step``, the measures of the look, and ``record``. Rows are in the order
    of :func:`load`, and of one run in that of its steps; keyword arguments select as there.

    Raises:
        HacoreError: as :func:`load`, or if no record has a curve.
    """
    rows = [
        record["run"] | look | {"record": path}
        for path, record in _records(folder)
        for look in record.get("curve", ())
    ]
    if not rows:
        raise HacoreError(f"no record in {folder} has a curve; those of scenario 'concepts' do")
    return _selected(rows, where, folder)


def _records(folder: str | Path) -> list[tuple[str, dict[str, Any]]]:
    paths = sorted(Path(folder).rglob("*.json"))
    if not paths:
        raise HacoreError(f"no records in {folder}; make some with `hacore run --results {folder} ...`")
    return [(str(path), read(path)) for path in paths]


def _selected(rows: list[dict[str, Any]], where: Mapping[str, Any], folder: str | Path) -> pd.DataFrame:
    """Rows as a table, in order, those that have the values asked for."""
    frame = _ordered(pd.DataFrame(rows))
    for column, value in where.items():
        if column not in frame:
            raise HacoreError(f"records have no column {column!r}; they have {', '.join(frame.columns)}")
        frame = frame[frame[column].isin(value if isinstance(value, list | tuple | set) else [value])]
    if frame.empty:
        raise HacoreError(
            f"no record in {folder} has {where}; make it with `hacore run --results {folder} ...`"
        )
    return frame.reset_index(drop=True)


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by what they are, first by scenario, last by seed; records of an older kind lack some columns."""

    def rank(column: pd.Series) -> pd.Series:
        if column.name == "method":
            return column.map(lambda name: (FRAME.index(name) if name in FRAME else len(FRAME), name))
        return column

    columns = [*REQUEST[:-1], "method", "seed"]
    return frame.sort_values(
        [column for column in columns if column in frame], kind="stable", key=rank, ignore_index=True
    )


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    r"""The table with every row's distance to Retrain, which answered the same request with the same seed.

    New columns, missing where the row or its Retrain lacks a value they need:

    - ``METRIC_gap``, :math:`|m - m_{Retrain}|` in percentage points, for ``retain_test_accuracy``,
      ``forget_train_accuracy``, ``forget_test_accuracy`` and ``attack_logits_auc``;
    - ``average_gap``, the mean of those: of all four where whole classes are forgotten, of three where random
      samples are, which have no forgotten test images. The average gap of :cite:t:`fan2024salun` has the
      accuracy on retain training images too, and an attack's rate for its AUC;
    - ``tow``, the tug of war of :cite:t:`zhao2024`, a share where 1 is Retrain's answer:

      .. math:: \prod_{S} \left(1 - \frac{|a_S - a_{S, Retrain}|}{100}\right)

      over the accuracies on forget training, retain training and test images, the last of retained kind;
    - ``relative_seconds``, ``relative_flops``, ``relative_steps``: in percent of Retrain's.

    Args:
        frame: a table from :func:`load` with Retrain's records among its rows.

    Raises:
        HacoreError: if no row is Retrain's, or two of them answer one request with the same seed.
    """
    keys = [column for column in REQUEST if column in frame]
    retrain = frame[frame["method"] == "retrain"]
    if retrain.empty:
        raise HacoreError("the table has no record of retrain to compare with; load it too")
    if retrain.duplicated(keys).any():
        raise HacoreError(
            "the table has two records of retrain for one request and seed; keep those of one set of settings"
        )
    theirs = frame[keys].merge(retrain, on=keys, how="left").set_index(frame.index)

    def gap(metric: str) -> pd.Series:
        if metric not in frame:
            return pd.Series(math.nan, index=frame.index)
        return (frame[metric] - theirs[metric]).abs()

    out = frame.copy()
    for metric in GAPS:
        out[f"{metric}_gap"] = gap(metric)
    named = out[[f"{metric}_gap" for metric in GAPS]]
    needed = named.drop(columns="forget_test_accuracy_gap").notna().all(axis=1)
    by_class = frame["forget_test_accuracy"].notna() if "forget_test_accuracy" in frame else needed & False
    needed &= named["forget_test_accuracy_gap"].notna() | ~by_class
    out["average_gap"] = named.mean(axis=1).where(needed)
    closeness = [
        1 - gap(f"{part}_accuracy") / 100 for part in ("forget_train", "retain_train", "retain_test")
    ]
    out["tow"] = closeness[0] * closeness[1] * closeness[2]
    for cost in ("seconds", "flops", "steps"):
        if cost in frame:
            out[f"relative_{cost}"] = 100 * frame[cost] / theirs[cost]
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    r"""p-values corrected for several comparisons (:cite:t:`holm1979`), in the order given.

    With m of them, :math:`p_{(1)} \le \dots \le p_{(m)}`,

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\{1, (m - j + 1)\, p_{(j)}\}

    Rejecting where :math:`\tilde p \le \alpha` makes the chance of any false rejection at most
    :math:`\alpha`, however the tests depend on each other. NaN stays NaN and is not counted.

    Raises:
        HacoreError: if a p-value is not in [0, 1].
    """
    p = pd.Series(list(p_values), dtype=float)
    if not p.dropna().between(0, 1).all():
        raise HacoreError("a p-value lies outside [0, 1]; give the p of a test")
    ordered = p.dropna().sort_values(kind="stable")
    factors = range(len(ordered), 0, -1)
    corrected = (ordered * list(factors)).clip(upper=1.0).cummax()
    return corrected.reindex(p.index).tolist()


def _one_per_seed(frame: pd.DataFrame, by: Sequence[str]) -> None:
    """Refuse groups in which a seed counts twice: records that differ in more than ``by`` are not repeats."""
    if "seed" in frame and frame.duplicated([*by, "seed"]).any():
        differing = [
            c for c in (*REQUEST[:-1], "method") if c not in by and c in frame and frame[c].nunique() > 1
        ]
        raise HacoreError(
            f"a group by {', '.join(by)} has several records of one seed; "
            f"group by more columns{' (' + ', '.join(differing) + ' differ)' if differing else ''} or load fewer"
        )


def interval(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    r"""Mean, sample standard deviation, n and Student-t confidence interval of a few runs.

    .. math:: \bar x \pm t_{n-1,\,(1+\text{level})/2}\; s / \sqrt n

    Missing values are left out. With fewer than two values there is no spread: ``std``,
    ``low`` and ``high`` are NaN.
    """
    kept = pd.Series(values, dtype=float).dropna()
    n, mean, std = len(kept), kept.mean(), kept.std(ddof=1)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan
    return {"mean": mean, "std": std, "n": n, "low": mean - half, "high": mean + half}


def summary(frame: pd.DataFrame, metric: str, by: Sequence[str] = ("space", "method")) -> pd.DataFrame:
    """Mean, std, n and 95 % interval of ``metric`` over seeds, one row per group in ``by``.

    Raises:
        HacoreError: if a group has several records of one seed, such as of two lifts.
    """
    _one_per_seed(frame, by)
    groups = frame.groupby(list(by), sort=False, observed=True)
    rows = [interval(group[metric].tolist()) for _, group in groups]
    return pd.DataFrame(rows, index=groups.size().index)


def paired(frame: pd.DataFrame, metric: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """The difference a - b of ``metric`` over the seeds that both have, with a paired t-test.

    Args:
        frame: a table from :func:`load`.
        metric: the column to compare.
        a, b: column values that select each side, such as ``{"method": "retrain"}``.

    Returns:
        mean, std, n, low, high of the differences and the two-sided ``p`` (NaN when the
        differences do not vary or there are fewer than two).

    Raises:
        HacoreError: if the sides share no seed, or one has several records of a seed.
    """
    sides = []
    for which in (a, b):
        rows = frame[(frame[list(which)] == pd.Series(which)).all(axis=1)].set_index("seed")[metric]
        if rows.index.has_duplicates:
            raise HacoreError(f"{which} selects several records of one seed; name more columns")
        sides.append(rows)
    difference = (sides[0] - sides[1]).dropna()
    if difference.empty:
        raise HacoreError(f"{a} and {b} share no seed; run both with the same seeds")
    out = interval(difference.tolist())
    varies = out["n"] > 1 and out["std"] > 0
    return out | {"p": float(stats.ttest_1samp(difference, 0.0).pvalue) if varies else math.nan}


def compare(
    frame: pd.DataFrame, metric: str, pairs: Mapping[Any, tuple[dict[str, Any], dict[str, Any]]]
) -> pd.DataFrame:
    """Several paired differences of one metric, corrected together for their number, with a verdict each.

    Args:
        frame: a table from :func:`load`.
        metric: the column to compare.
        pairs: name of a row -> the two sides (a, b) of :func:`paired`.

    Returns:
        A row for each pair: ``mean``, ``low``, ``high`` and ``p`` of a - b, ``p Holm`` (:func:`holm`), ``n``, and
        ``verdict``: "lower" or "higher" where ``p Holm`` is below 0.05, else "no difference shown". Where the
        differences do not vary, no test can be made: p is 1.

    Raises:
        HacoreError: if a pair shares no seed, or a side has several records of one seed.
    """
    columns = ["mean", "low", "high", "p", "n"]
    rows = {name: paired(frame, metric, *sides) for name, sides in pairs.items()}
    # Joined column by column, so that names which are tuples make a table of several levels.
    out = pd.DataFrame({c: pd.Series({name: row[c] for name, row in rows.items()}) for c in columns})
    out["p"] = out["p"].fillna(1.0)
    out.insert(4, "p Holm", holm(out["p"].tolist()))
    sure = out["p Holm"] < 0.05
    out["verdict"] = "no difference shown"
    out.loc[sure & (out["mean"] < 0), "verdict"] = "lower"
    out.loc[sure & (out["mean"] > 0), "verdict"] = "higher"
    return out.astype({"n": int}).round(3)


def against(
    frame: pd.DataFrame, metric: str, other: str, methods: Iterable[str] | None = None
) -> pd.DataFrame:
    """:func:`compare` of methods with one other method: theirs minus its own, over paired seeds.

    Args:
        frame: a table from :func:`load` of one request and geometry.
        metric: the column to compare.
        other: the method to compare with.
        methods: which, in this order; None takes all others, Original and Retrain too.
    """
    if methods is None:
        methods = [name for name in dict.fromkeys(frame["method"]) if name != other]
    return compare(frame, metric, {name: ({"method": name}, {"method": other}) for name in methods})


def table(
    frame: pd.DataFrame, metrics: dict[str, str], by: Sequence[str] = ("space", "method")
) -> pd.DataFrame:
    """A table to print: one row per group, one column per metric, ``mean ± half-width`` and n.

    Args:
        frame: a table from :func:`load`.
        metrics: column of the frame -> heading.
        by: the columns that make a group; what remains varies by seed.

    Raises:
        HacoreError: if a group has several records of one seed, such as of two lifts.
    """
    _one_per_seed(frame, by)
    columns = {}
    for metric, heading in metrics.items():
        stat = summary(frame, metric, by)
        half = stat["high"] - stat["mean"]
        columns[heading] = [
            "–" if math.isnan(mean) else f"{mean:.1f}" if math.isnan(h) else f"{mean:.1f} ± {h:.1f}"
            for mean, h in zip(stat["mean"], half, strict=True)
        ]
    counts = frame.groupby(list(by), sort=False, observed=True).size()
    return pd.DataFrame(columns | {"n": counts.tolist()}, index=counts.index)


def provenance(frame: pd.DataFrame) -> str:
    """One line that says where the numbers come from: seeds, hardware, commit, seconds."""

    def several(column: str) -> str:
        return ", ".join(sorted({str(value) for value in frame[column]}))

    seeds = sorted({int(seed) for seed in frame["seed"]})
    return (
        f"{len(frame)} runs, seeds {', '.join(map(str, seeds))}; {several('env_hardware')}; "
        f"torch {several('env_torch')}; commit {several('env_commit')}; {frame['seconds'].sum():.0f} s in all"
    )


def sources(frames: Mapping[str, pd.DataFrame]) -> str:
    """Markdown that says where the numbers of a chapter come from: :func:`provenance` and a link to each record.

    Args:
        frames: what they are -> a table from :func:`load`, read from the chapter's own folder.
    """
    parts = []
    for title, frame in frames.items():
        links = ", ".join(f"[{Path(path).stem}]({path})" for path in frame["record"])
        parts.append(f"**{title}**: {provenance(frame)}. The records: {links}")
    return "\n\n".join(parts)
