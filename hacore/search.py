"""Hyper-parameter search: every method gets the same number of trials, on validation images only.

A search is a JSON record and nothing else: what is tried next follows from the trials in it, so a search
that was killed goes on where it stopped, and the record alone shows how the values in ``hacore/tuned``
were found.
"""

import functools
import json
import math
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from hacore import train
from hacore.data import Augment
from hacore.errors import HacoreError
from hacore.evaluate import logits
from hacore.evaluate.accuracy import correct
from hacore.evaluate.alignment import view_agreement, views
from hacore.evaluate.attacks import auc
from hacore.evaluate.concepts import strength
from hacore.evaluate.probing import probe
from hacore.experiments import Run, environment, prepare, settings
from hacore.files import write_text
from hacore.models import ContrastiveEncoder, ImageText
from hacore.unlearning import METHODS, Method, Range, Request

SCHEMA = 1
SEED = 100  # of data, weights and sampler; reported runs count their seeds from 0 and stay below
TRIALS = 20
STARTUP = 8  # trials before the sampler builds on what it has seen
VIEWS = 10  # of each image, whose agreement gives members away
PRICE = 5.0  # percentage points of retained accuracy that forgetting a concept may cost ...
FINE = 10  # ... and how much each further one counts
DIGITS = 3  # significant ones of a value that is tried
OBJECTIVE = {
    "single-class": (
        "minimise max(0, the original's accuracy on retained validation images - the model's) + (accuracy on "
        "validation images of the forgotten class + accuracy on forget images) / 2, in percentage points"
    ),
    "random-samples": (
        "minimise max(0, the original's accuracy on validation images - the model's) + |accuracy on forget "
        "images - accuracy on validation images|, in percentage points"
    ),
    "without labels": (
        "minimise max(0, the original's linear-probe accuracy on validation images - the model's) + |AUC of "
        "forget against validation images by the agreement of their views - 50|, in percentage points"
    ),
    "concepts": (
        "minimise 100 (1 - unnamed * unfound) + 10 max(0, lost - 5): unnamed 1 - zero-shot accuracy on the forgotten "
        "concepts' validation images; unfound 1 - |AUC of the concepts' prompts - 50| / 50; lost the points of the "
        "original's zero-shot accuracy on retained validation images, among retained labels, that the model has not"
    ),
}
# What a record must hold to be resumed or adopted, with its type.
PARTS: dict[str, type] = {
    "schema": int, "name": str, "run": dict, "settings": dict, "ranges": dict, "budget": int,
    "objective": str, "original": dict, "trials": list, "environment": dict,
}  # fmt: skip


def name(run: Run) -> str:
    """The name of a run's search: all of the run but its seed, curvature and settings."""
    return (
        f"{run.scenario}-{run.data}-{run.profile}-{run.recipe}-{run.space}-{run.lift}-{run.method}"
        f"-forget{run.forget}"
    )


def searched(scenario: str, kind: str = "classifier", space: str | None = None) -> list[str]:
    """The methods that answer a scenario for such models and have something to search."""
    return [key for key, value in METHODS.items() if value.search and value.fits(scenario, kind, space)]


def _goal(run: Run) -> str:
    """Which objective a run has."""
    return {"classifier": run.scenario, ImageText.kind: "concepts"}.get(run.kind, "without labels")


def measure(model: nn.Module, request: Request) -> dict[str, float]:
    """Accuracy in percent on validation, forget and (of forgotten classes) validation_forget images.

    Scored against the labels that training saw, noise included; no test image is read. Of an encoder that
    learnt without labels, accuracy is that of a linear probe of the retain images, and ``membership`` is the
    AUC, in percent, of forget against validation images by the agreement of their views. Of a model of images and
    texts, accuracies are zero-shot, on validation images alone and of retained ones among retained labels, and
    ``prompt`` is the AUC, in percent, of the prompts of the forgotten concepts.

    Raises:
        HacoreError: if a logit is not finite.
    """
    data, split, training = request.dataset, request.split, request.training
    if isinstance(model, ImageText):
        found = strength(data, split, training.loop.precision, validation=True)(model)  # type: ignore[arg-type]
        return {
            "validation": found["zero_shot_retain_accuracy_among_retain"],
            "forget": found["zero_shot_forget_accuracy"],
            "prompt": found["prompt_auc"],
        }
    membership = {}
    if isinstance(model, ContrastiveEncoder):
        augment = Augment(training.augment, training.loop.seed)
        forget, unseen = (
            view_agreement(
                views(model, data.train_images, index, augment, VIEWS, training.loop.precision), model.space
            )
            for index in (split.forget, split.validation)
        )
        membership["membership"] = auc(forget, unseen)
        model = probe(
            model, data.train_images, split.labels, split.retain, len(data.classes), training.loop.precision
        )
    parts = {"validation": split.validation, "forget": split.forget}
    if split.forget_classes:
        parts["validation_forget"] = split.validation_forget
    found = {}
    for part, index in parts.items():
        out = logits(model, data.train_images, index)
        if not out.isfinite().all():
            raise HacoreError(f"the logits of the {part} images are not finite; choose smaller steps")
        found[part] = correct(out, split.labels[index])
    return found | membership


def objective(model: dict[str, float], original: dict[str, float]) -> float:
    r"""How far an answer is from the goal, in percentage points; 0 is perfect.

    Of concepts it is :func:`_of_concepts`. Else, with validation accuracy :math:`v` of the model and :math:`v_0` of
    the original, forget accuracy :math:`u` and accuracy :math:`u_v` on validation images of forgotten classes, of
    :func:`measure`:

    .. math:: \max(0, v_0 - v) + \begin{cases} (u + u_v) / 2 & \text{for classes}\\ |u - v| & \text{for samples}
        \\ |a - 50| & \text{without labels}
        \end{cases}

    A model that never saw random samples answers them as well as validation images, and an attacker cannot
    tell the two by the agreement of their views, of AUC :math:`a`. Retrain is not asked: someone who needs to
    unlearn does not have it.
    """
    if "prompt" in model:
        return _of_concepts(model, original)
    lost = max(0.0, original["validation"] - model["validation"])
    if "membership" in model:
        kept = abs(model["membership"] - 50)
    elif "validation_forget" in model:
        kept = (model["validation_forget"] + model["forget"]) / 2
    else:
        kept = abs(model["forget"] - model["validation"])
    # Equal counts of images must tie, whatever order they were added in.
    return round(lost + kept, 6)


def _of_concepts(model: dict[str, float], original: dict[str, float]) -> float:
    r"""What is left of a concept, in percent, and a fine on what its forgetting cost beyond :data:`PRICE` points.

    With retained zero-shot accuracy :math:`v`, zero-shot accuracy :math:`u` on the concept's images and the AUC
    :math:`a` of its prompts, as shares, :math:`1 - (1 - u) (1 - |2a - 1|) + 10 \max(0, v_0 - v - 0.05)`. A sum of
    equals could be won by doing nothing where forgetting is dear, and a product by ruin; here methods spend about
    the same, and who spends nothing has forgotten nothing.
    """
    lost = max(0.0, original["validation"] - model["validation"] - PRICE)
    forgotten = (1 - model["forget"] / 100) * (1 - abs(model["prompt"] - 50) / 50)
    return round(100 * (1 - forgotten) + FINE * lost, 6)


def propose(
    ranges: dict[str, Range], whole: Iterable[str], trials: list[dict[str, Any]], seed: int
) -> dict[str, int | float]:
    """The values to try next, a pure function of the trials so far; optuna's TPE sampler chooses them.

    Args:
        ranges: field -> where to look.
        whole: the fields whose values are whole numbers.
        trials: of a record; failed ones rank last, those outside the ranges are not learned from.
        seed: of the sampler, which is seeded anew for every trial.
    """
    # optuna takes a second to import, and only a search needs it.
    import optuna
    from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    whole = set(whole)
    space: dict[str, BaseDistribution] = {
        field: IntDistribution(int(one.low), int(one.high), log=one.log)
        if field in whole
        else FloatDistribution(one.low, one.high, log=one.log)
        for field, one in ranges.items()
    }
    (state,) = np.random.SeedSequence([seed, len(trials)]).generate_state(1)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int(state), n_startup_trials=STARTUP))
    for trial in trials:
        params, done = trial["params"], trial["state"] == "complete"
        if all(ranges[field].low <= value <= ranges[field].high for field, value in params.items()):
            # optuna leaves failed trials out; a pruned one tells the sampler to keep away.
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE if done else TrialState.PRUNED,
                    params=params,
                    distributions=space,
                    value=trial["objective"] if done else None,
                )
            )
    found = study.ask(space).params
    return {field: _rounded(found[field], one, field in whole) for field, one in ranges.items()}


def search(
    run: Run,
    trials: int,
    folder: Path,
    cache: Path | None = None,
    prepared: Callable[[], Request] | None = None,
) -> dict[str, Any]:
    """Search the settings of a run's method and return the record, which is also in ``folder``.

    The first trial is the run's own settings. Each trial is written as it is done, so a search that is
    killed goes on with the next one; with more ``trials`` than before, it goes on too. A trial that
    raises HacoreError, as one does whose training diverges, is recorded as failed with its message.

    Args:
        run: what to search; its seed is also the sampler's and should be :data:`SEED`.
        trials: how many, the first one included.
        folder: where ``NAME.json`` is kept, see :func:`name`.
        cache: see :func:`hacore.experiments.prepare`.
        prepared: gives the request, for searches that share one; None prepares it, if a trial is missing.

    Raises:
        HacoreError: if the method has nothing to search or does not fit the scenario, ``trials`` is below 1,
            or the record is damaged or of another search.
    """
    chosen, path = _checked(run, trials), Path(folder) / f"{name(run)}.json"
    fresh = _begin(run, chosen)
    record = read(path) if path.exists() else fresh
    for part in ("run", "ranges", "objective", "settings"):
        if _fixed(record, part) != _fixed(fresh, part):
            raise HacoreError(
                f"{path} is a search with another {part!r} than this one; move it away or search elsewhere"
            )
    done = record["trials"]
    if len(done) >= trials:
        return record
    request = prepared() if prepared else prepare(run, cache)
    # All trials are compared with the same numbers, also when another machine goes on.
    record["original"] = record["original"] or measure(request.model, request)
    record |= {"budget": trials, "environment": environment()}
    hints = typing.get_type_hints(type(chosen))
    ranges = chosen.ranges(run.kind)
    whole = [field for field in ranges if hints[field] is int]
    bar = tqdm(
        total=trials, initial=len(done), desc=f"{run.method} {run.space} {run.lift}", unit="trial",
        disable=train.quiet(),
    )  # fmt: skip
    with bar:
        while len(done) < trials:
            if done:
                params = propose(ranges, whole, done, run.seed)
            else:
                params = {field: getattr(chosen, field) for field in ranges}
            done.append(_trial(replace(chosen, **params), params, request, record))
            write_text(path, json.dumps(record | {"best": best(record)}, indent=1, allow_nan=False) + "\n")
            bar.update()
    return read(path)


def search_all(
    runs: Iterable[Run], trials: int, folder: Path, cache: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Search for each run, yield the records; runs after each other that differ in method share the original.

    Raises:
        HacoreError: as :func:`search`; before the first trial, if a run cannot be searched.
    """
    runs = list(runs)
    for run in runs:
        _checked(run, trials)
    shared: tuple[Run, Callable[[], Request]] | None = None
    for run in tqdm(runs, desc="searches", unit="search", disable=train.quiet()):
        twin = replace(
            run, method="original", settings=replace(run.resolved(), unlearning=METHODS["original"])
        )
        if shared is None or shared[0] != twin:
            shared = twin, functools.cache(functools.partial(prepare, twin, cache))
        yield search(run, trials, folder, cache, shared[1])


def best(record: dict[str, Any]) -> dict[str, Any] | None:
    """The trial with the smallest objective, of several the fastest; None if all failed."""
    complete = [trial for trial in record["trials"] if trial["state"] == "complete"]
    return min(complete, key=lambda trial: (trial["objective"], trial["seconds"]), default=None)


def summary(record: dict[str, Any]) -> str:
    """One line on a search: what, how many trials, the best values, their objective and the first trial's."""
    count, chosen, first = len(record["trials"]), best(record), record["trials"][0]
    if chosen is None:
        return f"{record['name']}: all {count} trials failed, the first with: {first['message']}"
    values = ", ".join(f"{field} {value:g}" for field, value in chosen["params"].items())
    before = f"{first['objective']:.2f}" if first["state"] == "complete" else "failed"
    return f"{record['name']}: {values}: {chosen['objective']:.2f} (first trial: {before}; trials: {count})"


def read(path: Path) -> dict[str, Any]:
    """A search record from its file.

    Raises:
        HacoreError: if it cannot be read or is not a complete record of this schema.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        fault = _fault(record)
    except (OSError, ValueError) as error:
        raise HacoreError(
            f"the search record {path} cannot be read ({error}); restore it or move it away"
        ) from error
    if fault:
        raise HacoreError(f"the search record {path} is damaged: {fault}; restore it or move it away")
    return record


def adopt(folder: Path) -> list[Path]:
    """Write the best values of all searches in ``folder`` to ``hacore/tuned``, and return the files written.

    One file for scenario, data set, profile and recipe holds ``{"SPACE LIFT METHOD": {field: value}}``. What
    was not searched there stays as it was, and a method whose trials all failed keeps its settings.

    Raises:
        HacoreError: if there is no search, one is damaged or not finished, two are for the same entry or
            had different budgets, or the method's other settings are not those it was searched with.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise HacoreError(f"there are no searches in {folder}; make some with hacore tune")
    entries: dict[str, dict[str, dict[str, Any]]] = {}
    budgets: dict[str, int] = {}
    seen: dict[tuple[str, str], Path] = {}
    for path in paths:
        record = read(path)
        run, count = Run(**record["run"]), len(record["trials"])
        target = f"{run.scenario}-{run.data}-{run.profile}-{run.recipe}.json"
        key = f"{run.space} {run.lift} {run.method}"
        if count < record["budget"]:
            raise HacoreError(f"{path} has {count} of {record['budget']} trials; finish the search first")
        if budgets.setdefault(target, count) != count:
            raise HacoreError(
                f"{path} has {count} trials, others {budgets[target]}; give every method the same number"
            )
        if (target, key) in seen:
            raise HacoreError(
                f"{path} and {seen[target, key]} are both for {key}; keep one of them in the folder"
            )
        seen[target, key] = path
        chosen = best(record)
        tried = record["settings"]["unlearning"]
        if chosen and _plain(replace(settings.tuned(run), **chosen["params"])) != tried | chosen["params"]:
            raise HacoreError(
                f"{path} was searched with other settings of {run.method} than it has now; search again"
            )
        if chosen:
            entries.setdefault(target, {})[key] = chosen["params"]
    written = []
    for target, found in entries.items():
        path = settings.TUNED / target
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        new = old | {key: old.get(key, {}) | values for key, values in found.items()}
        write_text(path, json.dumps(new, indent=1, sort_keys=True) + "\n")
        written.append(path)
    # What was read before is not what stands in the files now.
    settings._tuned_values.cache_clear()
    return written


def _checked(run: Run, trials: int) -> Method:
    """The method of a run, once it is sure that it can be searched."""
    chosen = run.resolved().unlearning
    if trials < 1:
        raise HacoreError(f"a search has at least 1 trial, not {trials}; the first one is the defaults")
    others = ", ".join(searched(run.scenario, run.kind, run.space))
    if not chosen.search:
        raise HacoreError(f"{run.method} has nothing to search; choose one of {others}")
    if not chosen.fits(run.scenario, run.kind, run.space):
        raise HacoreError(
            f"{run.method} does not answer {run.scenario} for models of kind {run.kind} in {run.space} space, so it "
            f"cannot be searched; choose one of {others}"
        )
    return chosen


def _begin(run: Run, chosen: Method) -> dict[str, Any]:
    """The record of a search without trials."""
    about = {field.name: getattr(run, field.name) for field in fields(run) if field.name != "settings"}
    record = {
        "schema": SCHEMA,
        "name": name(run),
        "run": about,
        "settings": asdict(run.resolved()),
        "ranges": {field: asdict(one) for field, one in chosen.ranges(run.kind).items()},
        "budget": 0,
        "objective": OBJECTIVE[_goal(run)],
        "original": {},
        "trials": [],
        "best": None,
        "environment": {},
    }
    return json.loads(json.dumps(record))


def _fixed(record: dict[str, Any], part: str) -> Any:
    """What must not change while a search goes on; a searched field may: adopting sets it."""
    if part != "settings":
        return record[part]
    unlearning = {k: v for k, v in record[part]["unlearning"].items() if k not in record["ranges"]}
    return record[part] | {"unlearning": unlearning}


def _trial(
    answer: Method, params: dict[str, Any], request: Request, record: dict[str, Any]
) -> dict[str, Any]:
    """Try one setting; a trial is short, so it leaves no checkpoint and is done again when killed."""
    trial = {
        "number": len(record["trials"]), "params": params, "commit": record["environment"]["commit"]
    }  # fmt: skip
    # Each trial starts alike, whether others ran before it in this process or not.
    train.seed_everything(record["run"]["seed"])
    try:
        outcome = answer(replace(request, checkpoint=None))
        found = measure(outcome.model, request)
    except HacoreError as error:
        return trial | {"state": "failed", "message": str(error)}
    return trial | {
        "state": "complete",
        "objective": objective(found, record["original"]),
        "accuracies": found,
        "seconds": outcome.fit.seconds,
    }


def _rounded(value: int | float, within: Range, whole: bool) -> int | float:
    """What is tried: few digits, so that a table can show all of them, and still in the range."""
    short = min(max(float(f"{value:.{DIGITS}g}"), within.low), within.high)
    return int(short) if whole else short


def _plain(chosen: Method) -> dict[str, Any]:
    """A method's settings as a record holds them."""
    return json.loads(json.dumps(asdict(chosen)))


def _fault(record: Any) -> str | None:
    """What is wrong with a record, or None."""
    if not isinstance(record, dict):
        return "it is not an object"
    for part, kind in PARTS.items():
        if not isinstance(record.get(part), kind):
            return f"{part!r} is missing or of the wrong kind"
    if record["schema"] != SCHEMA:
        return f"schema {record['schema']} is not {SCHEMA}"
    if not isinstance(record["settings"].get("unlearning"), dict):
        return "the method's settings are missing"
    if record["run"].keys() != {field.name for field in fields(Run)} - {"settings"}:
        return "the fields of its run are not those of a run"
    if record["trials"] and not {"validation", "forget"} <= record["original"].keys():
        return "the accuracies of the original model are missing"
    for number, trial in enumerate(record["trials"]):
        if not isinstance(trial, dict) or trial.get("number") != number:
            return f"trial {number} is missing"
        params = trial.get("params")
        if not isinstance(params, dict) or params.keys() != record["ranges"].keys():
            return f"trial {number} does not have the values that were searched"
        measured = [*params.values()]
        if trial.get("state") == "complete":
            measured += [trial.get("objective"), trial.get("seconds")]
        elif trial.get("state") != "failed":
            return f"trial {number} is neither complete nor failed"
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in measured):
            return f"trial {number} holds something that is not a number"
    return None
