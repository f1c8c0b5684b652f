"""Evaluates a finished run again: `python eval.py run=<run folder>`."""

from omegaconf import DictConfig

from un.command.cli import run_command


def evaluate_run(config: DictConfig) -> None:
    """Evaluates the run named by `run`, rebuilt from its own config, on its own test data or under shift."""
    if config.get("shift") is None:
        from un.finished.evaluate import evaluate  # imports torch

        evaluate(config)
    else:
        from un.finished.shift import evaluate_shifts

        evaluate_shifts(config)


if __name__ == "__main__":
    run_command("eval", evaluate_run)
