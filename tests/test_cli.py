"""The command line: what it prints, what it writes, how it fails."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from hacore import __version__
from hacore.__main__ import main
from hacore.experiments import settings
from hacore.unlearning import METHODS


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HACORE_CACHE", str(tmp_path / "cache"))


def test_run_writes_records_and_prints_their_table(tmp_path, capsys):
    folder = tmp_path / "records"
    arguments = [
        "run",
        "single-class",
        "--method",
        "original,retrain",
        "--seeds",
        "2",
        "--results",
        str(folder),
    ]
    assert main(arguments) == 0
    assert len(list(folder.iterdir())) == 4
    out = capsys.readouterr().out
    for part in ("retain test %", "forget train %", "±", "retrain", "seeds 0, 1"):
        assert part in out
    stamps = [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]
    assert main(arguments) == 0, "the same command again reads what is there"
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == stamps
    assert capsys.readouterr().out == out
    assert main(["results", str(folder)]) == 0
    assert capsys.readouterr().out == out


def test_help_teaches():
    done = subprocess.run([sys.executable, "-m", "hacore", "run", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("single-class", "random-samples", "--space", "--profile", "HACORE_DATA", "examples:"):
        assert word in done.stdout


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"hacore {__version__}"


def test_a_failure_is_one_line_on_stderr_and_status_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hacore", "results", str(tmp_path / "missing")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"hacore: no records in .*missing; make some with .*\n", done.stderr)


def test_tune_searches_goes_on_and_adopts(tmp_path, capsys, monkeypatch):
    tuned, folder = tmp_path / "tuned", tmp_path / "searches"
    monkeypatch.setattr(settings, "TUNED", tuned)
    settings._tuned_values.cache_clear()
    quick = replace(METHODS["contrastive-unlearning"], epochs=1)
    monkeypatch.setitem(METHODS, "contrastive-unlearning", quick)
    monkeypatch.setattr(settings, "UNLEARNING", {})
    arguments = ["tune", "single-class", "--method", "contrastive-unlearning", "--searches", str(folder)]
    assert main([*arguments, "--trials", "1"]) == 0
    (record,) = folder.iterdir()
    assert (
        record.stem
        == "single-class-digits-quick-generalising-euclidean-clipped-contrastive-unlearning-forget5"
    )
    assert "trials: 1" in capsys.readouterr().out
    assert main([*arguments, "--trials", "2", "--adopt"]) == 0
    out = capsys.readouterr().out
    stored = json.loads(record.read_text())
    assert len(stored["trials"]) == 2
    assert stored["run"]["seed"] == 100
    (adopted,) = tuned.iterdir()
    assert str(adopted) in out
    assert json.loads(adopted.read_text()) == {
        "euclidean clipped contrastive-unlearning": stored["best"]["params"]
    }
    settings._tuned_values.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["single-class", "--trials", "0"], "--trials .* at least 1, not 0"),
        (["single-class", "--method", "magic"], "no method 'magic'; choose one of"),
        (["single-class", "--method", "retrain"], "retrain has nothing to search"),
        (["single-class", "--space", "flat"], "no geometry 'flat'"),
        (["single-class", "--lift", "up"], "no lift 'up'"),
        (["everything"], "no scenario 'everything'"),
        (["single-class", "--data", "mnist"], "no data set 'mnist'"),
    ],
)
def test_tune_says_what_is_wrong_in_one_sentence(arguments, message, tmp_path, capsys):
    assert main(["tune", *arguments, "--searches", str(tmp_path / "searches")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"hacore: .*{message}.*\n", captured.err)
    assert not (tmp_path / "searches").exists()


def test_tune_names_a_damaged_search(tmp_path, capsys):
    name = "single-class-digits-quick-generalising-euclidean-clipped-contrastive-unlearning-forget5.json"
    (tmp_path / name).write_text("{")
    arguments = ["tune", "single-class", "--method", "contrastive-unlearning", "--searches", str(tmp_path)]
    assert main(arguments) == 2
    assert re.fullmatch(rf"hacore: the search record .*{name} cannot be read .*\n", capsys.readouterr().err)


def test_help_needs_no_torch_and_names_the_audit():
    script = (
        "import sys\nfrom hacore.__main__ import main\n"
        "try:\n    main(['audit', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'matplotlib', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("BEFORE", "--images", "--control", "control_first", "report.html", "examples:"):
        assert word in done.stdout


def test_a_failed_audit_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "before.npz", "after.npz"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hacore: there is no file before.npz; check the path\n"
    assert not list(tmp_path.iterdir())
