"""Takes the norms out of a finished run without training: `python scripts/retrofit.py run=<folder> [method=...]`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import run_command


def retrofit(config: DictConfig) -> None:
    """Retrofits the run named by `run`."""
    from un.finished.retrofit_run import retrofit_run  # imports torch

    retrofit_run(config)


if __name__ == "__main__":
    run_command("retrofit", retrofit)
