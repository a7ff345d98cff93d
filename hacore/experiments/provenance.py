"""What numbers depend on besides settings: the code, its versions, the machine."""

import datetime
import hashlib
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from hacore import train

PACKAGE = Path(__file__).parent.parent
# The layers that training goes through; what lies above them does not change an original model.
TRAINING_CODE = ("files.py", "geometry", "data", "encoders", "losses", "models", "train")


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the settings: versions, hardware, commit, time."""
    device = train.device()
    if device.type == "cuda":
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    else:
        threads = torch.get_num_threads()
        hardware = f"{threads} {'thread' if threads == 1 else 'threads'} of {_cpu()}"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "hardware": hardware,
        "commit": COMMIT,
        "code": CODE,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    """The processor's name, as Linux gives it, or else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit of the package's checkout, marked ``-dirty`` when its code differs; else the version."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", PACKAGE, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--", ".")
    except (FileNotFoundError, subprocess.CalledProcessError):
        # No git, or installed outside a checkout: the version is all that is known.
        from hacore import __version__

        return f"v{__version__}"
    return commit + ("-dirty" if changed else "")


def _code_digest(parts: tuple[str, ...] | None = None) -> str:
    """A digest of the package's code, or of some of its modules; reports and pictures are left out."""
    outside = {"__main__.py", "results.py", "plots", "search.py", "audit"}
    chosen = [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if (top := path.relative_to(PACKAGE).parts[0]) not in outside and (parts is None or top in parts)
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in chosen)).hexdigest()[:12]


# Read when the package is loaded: by the time a record is written, a checkout may have moved on.
COMMIT, CODE, TRAINING = _commit(), _code_digest(), _code_digest(TRAINING_CODE)
