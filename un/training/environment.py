"""Where a run took place: commit, package versions, hardware, memory."""

import contextlib
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "torchmetrics",
    "datasets",
    "numpy",
    "hydra-core",
    "omegaconf",
    "fairseq-fixed",
)
REPOSITORY = Path(__file__).parents[2]


def describe_git() -> dict[str, Any]:
    """Returns {"commit": hash, "dirty": bool}, with None where there is no git or no repository."""
    commit, status = _run_git("rev-parse", "HEAD"), _run_git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def list_packages() -> dict[str, str]:
    """Returns the versions of Python and of those packages that decide about numbers and are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def describe_hardware() -> dict[str, Any]:
    """Returns {"cpu": name, "threads": used by torch, "gpu": names}."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _name_cpu(), "threads": torch.get_num_threads(), "gpu": gpus}


def measure_peak_memory() -> int:
    """Returns the peak bytes of the GPU if there is one in use, otherwise of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _run_git(*arguments: str) -> str | None:
    command = ["git", "-C", os.fspath(REPOSITORY), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _name_cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
