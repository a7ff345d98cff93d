"""The command line: ``hacore run``, ``hacore shadows``, ``hacore tune``, ``hacore results``, ``hacore audit``,
``hacore unlearn``."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hacore import __version__
from hacore.errors import HacoreError

if TYPE_CHECKING:
    from hacore.experiments import Run

EXAMPLES = """examples:
  hacore run single-class
      forget digit 5 in a minute: original, retrain and contrastive unlearning, Euclidean space
  hacore run single-class --space all --seeds 5 --results results
      the same in three geometries, five paired seeds
  HACORE_DATA=~/data hacore run single-class --data cifar10 --profile standard --space poincare --seeds 3
      CIFAR-10 from parquet files in ~/data/cifar10; without HACORE_DATA they come from the hub
  hacore run concepts --space lorentz --forget triangle,square --method retrain,ac,hac --seeds 3
      forget two shapes of the concept world in MERU; without --space in CLIP
  hacore tune single-class --method contrastive-unlearning --space all --trials 20
      search the method's settings on validation images, in three geometries, with one budget
  hacore results results
      the table of all records in a folder
  hacore audit before.npz after.npz
      did a service forget my images? from embeddings, or checkpoints and --images, alone
  hacore unlearn meru_vit_s.pth --data redcaps --forget dog --out without_dog.pth
      a checkpoint of your own, and tars of image-text pairs, to an unlearned one and its report

A run or trial whose record is there already is not done again, so an interrupted command can be repeated.
HACORE_DEVICE (auto, cpu, cuda, mps), HACORE_DATA and HACORE_CACHE choose device and folders."""


AUDIT_EXAMPLES = """BEFORE and AFTER are the service before and after it was asked to forget. Each is either
  a file of embeddings, .npz or .safetensors: arrays first and second (n, d), two different augmented views of
  the same n images in the same order; control_first and control_second of images that nobody asked to forget;
  the name of a space (euclidean, lorentz, poincare) and its curv, Euclidean unless told otherwise; or
  a checkpoint that hacore.train.save_model wrote; views of the images in --images are then made here.
The report is a page, report.html, a notebook, report.ipynb, and the data of both.

examples:
  hacore audit before.npz after.npz --images photos
      from embeddings; the photos, sorted by name as the rows are, are shown beside the drops
  hacore audit original.safetensors unlearned.safetensors --images mine --control others --out report
      from checkpoints; without control images, forgetting cannot be told from any other change"""

UNLEARN_EXAMPLES = """CHECKPOINT is a released MERU, CLIP, HyCoCLIP or OpenCLIP file. The new one has the same names,
shapes and types, so that it drops into the code that reads the old one. Pairs whose captions mention a concept
are to be forgotten, all others retained; a tenth of both is held out for the report.

examples:
  hacore unlearn meru_vit_s.pth --data "redcaps/{00..07}.tar" --forget dog+puppy,cat --out unlearned.pth
      pairs that mention a dog, a puppy or a cat; CLIP's merges are looked for beside the checkpoint
  hacore unlearn clip.pth --merges bpe_simple_vocab_16e6.txt.gz --data photos --forget dog --keep cat,horse,bird \\
      --method ac --out unlearned.pth
      in flat space; zero-shot accuracies are then over dog, cat, horse, bird and other"""


def to_forget(text: str) -> int | float | str:
    """A whole number, one with a point, or names."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# What is forgotten differs in kind between scenarios, and so do the usual data, training, lift and request.
USUAL = {"data": "digits", "recipe": "generalising", "lift": "clipped", "forget": 5}
USUAL_CONCEPTS = {"data": "world", "recipe": "image-text", "lift": "free", "forget": "triangle"}


def add_request(command: argparse.ArgumentParser) -> None:
    """What ``run``, ``shadows`` and ``tune`` share: which request to forget, answered by what, in which geometry."""
    command.add_argument(
        "scenario", help="what is forgotten: single-class, random-samples, concepts or concepts-in-turn"
    )
    command.add_argument(
        "--data", help="digits, cifar10, cifar100, svhn, or world (default: digits; of concepts: world)"
    )
    command.add_argument(
        "--profile",
        default=os.environ.get("HACORE_PROFILE", "quick"),
        help="size of the experiment: quick, standard or paper (default: HACORE_PROFILE, or quick)",
    )
    command.add_argument(
        "--space", default="euclidean", help="euclidean, lorentz, poincare, or all (default: euclidean)"
    )
    command.add_argument(
        "--lift",
        help="how features become points: free, clipped, fixed, or all (default: clipped; of concepts: free)",
    )
    command.add_argument(
        "--recipe",
        help="training: generalising or memorising; simclr or moco without labels; image-text (CLIP in euclidean "
        "space, MERU in others) or hierarchy for concepts (default: generalising; of concepts: image-text)",
    )
    command.add_argument(
        "--method", default="all", help="a method, several with commas, or all (default: all)"
    )
    command.add_argument("--curv", type=float, default=1.0, help="c > 0; the curvature is -c (default: 1)")
    command.add_argument(
        "--forget",
        type=to_forget,
        help="the class, or how many random samples, or which share (0.1), or names of concepts with commas between "
        "them (default: 5; of concepts: triangle)",
    )


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; choices are checked by the library, whose messages list the names."""
    top = argparse.ArgumentParser(
        prog="hacore",
        description="Machine unlearning in Euclidean and hyperbolic space.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"hacore {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser(
        "run",
        help="train, forget, evaluate; write one record a run",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_request(run)
    seeds = run.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0 on (default: 1)")
    seeds.add_argument("--seed", type=int, help="this seed only")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a setting, or a field of the method, other than the profile's; may be given several times",
    )
    run.add_argument(
        "--results", type=Path, default=Path("results"), help="folder for records (default: results)"
    )
    run.add_argument("--redo", action="store_true", help="do runs again whose record is there")

    shadows = commands.add_parser(
        "shadows",
        help="attack each example with shadow models (U-LiRA, KLoM); write one record a method",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_request(shadows)
    shadows.add_argument("--models", type=int, default=32, help="shadow models (default: 32)")
    shadows.add_argument("--seed", type=int, default=0, help="seed of the first shadow model (default: 0)")
    shadows.add_argument(
        "--shadows", type=Path, default=Path("shadows"), help="folder for records (default: shadows)"
    )

    tune = commands.add_parser(
        "tune",
        help="search the settings of methods on validation images; write one record a search",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_request(tune)
    tune.add_argument("--trials", type=int, default=20, help="settings each search tries (default: 20)")
    tune.add_argument(
        "--searches", type=Path, default=Path("searches"), help="folder for records (default: searches)"
    )
    tune.add_argument(
        "--adopt", action="store_true", help="write the best values in the folder to hacore/tuned"
    )

    show = commands.add_parser("results", help="show the table of the records in a folder")
    show.add_argument(
        "folder", type=Path, nargs="?", default=Path("results"), help="folder (default: results)"
    )

    audit = commands.add_parser(
        "audit",
        help="did a service forget the owner's images? write a report",
        description="Did a service forget the owner's images? What its embeddings before and after show.",
        epilog=AUDIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    audit.add_argument("before", type=Path, help="embeddings or checkpoint before the request to forget")
    audit.add_argument("after", type=Path, help="embeddings or checkpoint after it")
    audit.add_argument("--images", type=Path, help="folder of the owner's images (needed with checkpoints)")
    audit.add_argument("--control", type=Path, help="folder of images never asked to be forgotten")
    audit.add_argument(
        "--out", type=Path, default=Path("audit"), help="folder for the report (default: audit)"
    )
    audit.add_argument("--seed", type=int, default=0, help="of views, permutations, bootstrap (default: 0)")
    audit.add_argument(
        "--views",
        help="with checkpoints, the augmentation that makes views: shift, crop-flip, simclr or simclr-grey "
        "(default: that of SimCLR for images of so many colours)",
    )
    audit.add_argument(
        "--layer",
        default="embed",
        help="with checkpoints, what is compared: embed, the points of the loss, or features, what a user is "
        "served (default: embed)",
    )
    add_unlearn(commands)
    return top


def add_unlearn(commands: Any) -> None:
    """The parser of ``unlearn``."""
    command = commands.add_parser(
        "unlearn",
        help="from a checkpoint and image-text pairs to an unlearned checkpoint and a report",
        description="Unlearn concepts in a checkpoint of your own.",
        epilog=UNLEARN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("checkpoint", type=Path, help="a released MERU, CLIP, HyCoCLIP or OpenCLIP file")
    command.add_argument(
        "--data",
        required=True,
        action="append",
        help="tars, or a folder of images and texts; may be repeated",
    )
    command.add_argument("--forget", required=True, help="concepts: dog, or dog+puppy,cat")
    command.add_argument("--keep", default="", help="concepts to tell apart in the report, written as those")
    command.add_argument("--out", required=True, type=Path, help="the new checkpoint")
    command.add_argument("--method", default="hac", help="hac, ac (for CLIP), finetune, ... (default: hac)")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="the most steps")
    length.add_argument(
        "--epochs", type=int, help="over the pairs the method walks over (default: the method's)"
    )
    command.add_argument("--lr", type=float, help="of AdamW (default: 2.5e-5)")
    command.add_argument("--batch-size", type=int, help="pairs a step, of each kind (default: 64)")
    command.add_argument("--limit", type=int, default=20_000, help="the most pairs to read (default: 20000)")
    command.add_argument(
        "--merges",
        type=Path,
        help="CLIP's merges, or a .json of Tokenizer.config (default: beside the checkpoint)",
    )
    command.add_argument("--kind", help="openai for OpenCLIP's layout with QuickGELU; else told by the names")
    command.add_argument(
        "--heads", help="of the image and the text encoder, as 12,8; else told by the widths"
    )
    command.add_argument(
        "--report", type=Path, help="folder (default: the new checkpoint's name and -report)"
    )
    command.add_argument(
        "--seed", type=int, default=0, help="of order, draws and what is held out (default: 0)"
    )
    command.add_argument(
        "--force", action="store_true", help="replace the new checkpoint and report if there"
    )


def run(arguments: argparse.Namespace) -> None:
    """Do the runs the arguments ask for and print their table."""
    # torch and the rest of the package take seconds to import: not for `hacore --help`.
    from hacore import experiments
    from hacore.files import cache_folder

    if arguments.seeds < 1:
        raise HacoreError(f"--seeds is how many seeds to run, at least 1, not {arguments.seeds}")
    fitting = fitting_methods(arguments)
    seeds = range(arguments.seeds) if arguments.seed is None else [arguments.seed]
    changes = dict(change.partition("=")[::2] for change in arguments.set)
    runs = [experiments.varied(one, changes) for one in chosen_runs(arguments, fitting, seeds)]
    cache = cache_folder() / "trainings"
    for _ in experiments.run_grid(runs, arguments.results, cache, arguments.redo):
        pass
    names = {one.name for one in runs}
    print_table(arguments.results, names)


def fitting_methods(arguments: argparse.Namespace) -> list[str]:
    """The methods that answer the scenario for the kind of model that the recipe trains."""
    from hacore.experiments import model_kind
    from hacore.unlearning import METHODS

    kind = model_kind(arguments.recipe)
    return [name for name, method in METHODS.items() if method.fits(arguments.scenario, kind)]


def chosen_runs(arguments: argparse.Namespace, methods: list[str], seeds: Iterable[int]) -> "list[Run]":
    """The runs the arguments ask for; ``methods`` are meant by ``--method all``."""
    from hacore import experiments
    from hacore.geometry import SPACES
    from hacore.models import MODES
    from hacore.unlearning import METHODS

    runs = experiments.grid(
        methods if arguments.method == "all" else arguments.method.split(","),
        list(SPACES) if arguments.space == "all" else arguments.space.split(","),
        list(MODES) if arguments.lift == "all" else arguments.lift.split(","),
        seeds,
        scenario=arguments.scenario,
        recipe=arguments.recipe,
        data=arguments.data,
        profile=arguments.profile,
        curv=arguments.curv,
        forget=arguments.forget,
    )
    if arguments.method == "all":  # those that need cones are meant in curved spaces only
        runs = [one for one in runs if METHODS[one.method].fits(one.scenario, one.kind, one.space)]
    return runs


def shadows(arguments: argparse.Namespace) -> None:
    """Do the shadow-model attacks the arguments ask for and print what they found."""
    from hacore import experiments
    from hacore.files import cache_folder

    fitting = fitting_methods(arguments)
    cache = cache_folder() / "trainings"
    # Methods that share a geometry share their shadow models.
    shared: dict[str, list[experiments.Run]] = {}
    for run in chosen_runs(arguments, fitting, [arguments.seed]):
        shared.setdefault(f"{run.space} {run.lift}", []).append(run)
    for runs in shared.values():
        methods = [run.method for run in runs]
        for record in experiments.shadows(runs[0], methods, arguments.shadows, arguments.models, cache):
            found = ", ".join(f"{name} {value:.2f}" for name, value in record["metrics"].items())
            print(f"{record['name']}: {found}")


def tune(arguments: argparse.Namespace) -> None:
    """Do the searches the arguments ask for, print the best of each, adopt them if asked to."""
    from hacore import search
    from hacore.experiments import model_kind
    from hacore.files import cache_folder

    if arguments.trials < 1:
        raise HacoreError(f"--trials is how many settings to try, at least 1, not {arguments.trials}")
    runs = chosen_runs(
        arguments, search.searched(arguments.scenario, model_kind(arguments.recipe)), [search.SEED]
    )
    cache = cache_folder() / "trainings"
    for record in search.search_all(runs, arguments.trials, arguments.searches, cache):
        print(search.summary(record))
    if arguments.adopt:
        for path in search.adopt(arguments.searches):
            print(f"adopted in {path}")


def print_table(folder: Path, names: set[str] | None = None) -> None:
    """Print mean and 95 % interval of each metric over seeds, of all records or of those named."""
    from hacore import results

    frame = results.load(folder)
    if names is not None:
        frame = frame[[Path(path).stem in names for path in frame["record"]]]
    by = ["scenario", "data", "profile", "recipe", "forget", "space", "lift", "curv", "method"]
    headings = {
        "retain_test_accuracy": "retain test %",
        "forget_train_accuracy": "forget train %",
        "forget_test_accuracy": "forget test %",
        "zero_shot_retain_accuracy_among_retain": "retain zero-shot %",
        "zero_shot_forget_accuracy": "forget zero-shot %",
        "prompt_auc": "prompt AUC %",
        "seconds": "seconds",
    }
    known = {column: heading for column, heading in headings.items() if column in frame}
    print(results.table(frame, known, by).to_string())
    print(results.provenance(frame))


def audit(arguments: argparse.Namespace, command: str) -> None:
    """Audit a service, write the report and print what was found."""
    from hacore.audit import PAGE, gather, write_report

    # Before minutes are spent on embeddings.
    if arguments.out.exists() and not arguments.out.is_dir():
        raise HacoreError(f"{arguments.out} is a file; choose another folder for the report with --out")
    evidence = gather(
        arguments.before,
        arguments.after,
        arguments.images,
        arguments.control,
        arguments.seed,
        arguments.views,
        arguments.layer,
    )
    found = write_report(evidence, arguments.out, arguments.seed, command)
    print(found.sentence())
    print(f"The report: {arguments.out / PAGE}")


def unlearn(arguments: argparse.Namespace) -> None:
    """Unlearn a checkpoint, write it and its report, and print what was found."""
    from hacore.experiments.own import PAGE, read_tokenizer, unlearn_checkpoint

    try:
        heads = tuple(map(int, arguments.heads.split(","))) if arguments.heads else None
        if heads is not None and len(heads) != 2:
            raise ValueError
    except ValueError:
        raise HacoreError(f"--heads is two numbers, as 12,8, not {arguments.heads!r}") from None
    folder = arguments.report or arguments.out.with_name(f"{arguments.out.stem}-report")
    found = unlearn_checkpoint(
        arguments.checkpoint, arguments.data, concepts(arguments.forget), arguments.out, arguments.method,
        keep=concepts(arguments.keep), tokenizer=read_tokenizer(arguments.merges) if arguments.merges else None,
        lr=arguments.lr, epochs=arguments.epochs, steps=arguments.steps, batch_size=arguments.batch_size,
        limit=arguments.limit, seed=arguments.seed, report=folder, force=arguments.force,
        kind=arguments.kind, heads=heads,
    )  # fmt: skip
    print(found)
    print(f"The checkpoint: {arguments.out}\nThe report: {folder / PAGE}")


def concepts(text: str) -> dict[str, list[str]]:
    """Concepts and the further words for them, from ``dog+puppy,cat``."""
    named = [[word.strip() for word in part.split("+")] for part in text.split(",") if part.strip()]
    return {words[0]: words[1:] for words in named}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 after one sentence on stderr when the input is unusable."""
    arguments = parser().parse_args(argv)
    if "scenario" in arguments:
        usual = USUAL_CONCEPTS if arguments.scenario.startswith("concepts") else USUAL
        for name, value in usual.items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
    try:
        if arguments.command == "run":
            run(arguments)
        elif arguments.command == "shadows":
            shadows(arguments)
        elif arguments.command == "tune":
            tune(arguments)
        elif arguments.command == "audit":
            audit(arguments, shlex.join(["hacore", *(sys.argv[1:] if argv is None else argv)]))
        elif arguments.command == "unlearn":
            unlearn(arguments)
        else:
            print_table(arguments.folder)
    except HacoreError as error:
        print(f"hacore: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
