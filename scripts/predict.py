"""Translates or classifies with a finished run: `python scripts/predict.py run=<run folder> input=<what>`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import run_command


def predict(config: DictConfig) -> None:
    """Predicts with the run named by `run`."""
    from un.finished.predict import write_predictions  # imports torch

    write_predictions(config)


if __name__ == "__main__":
    run_command("predict", predict)
