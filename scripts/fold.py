"""Folds the norms of a finished run: `python scripts/fold.py run=<run folder> [output=<file>]`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import run_command


def fold(config: DictConfig) -> None:
    """Folds the run named by `run`."""
    from un.finished.fold_run import write_folded  # imports torch

    write_folded(config)


if __name__ == "__main__":
    run_command("fold", fold)
