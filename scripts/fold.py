"""Folds the norms of a finished run: `python scripts/fold.py run=<run folder> [output=<file>]`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import report_errors, run_main


@hydra.main(version_base="1.3", config_path="../configs", config_name="fold")
def main(config: DictConfig) -> None:
    """Folds the run named by `run`."""
    with report_errors():
        from un.finished.fold_run import write_folded

        write_folded(config)


if __name__ == "__main__":
    run_main(main)
