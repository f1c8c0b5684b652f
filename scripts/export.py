"""Exports the folded model of a finished run: `python scripts/export.py run=<run folder> format=onnx|torch_export`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import run_command


def export(config: DictConfig) -> None:
    """Exports the run named by `run`."""
    from un.finished.export import export_run  # imports torch

    export_run(config)


if __name__ == "__main__":
    run_command("export", export)
