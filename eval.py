"""Evaluates a finished run again: `python eval.py run=<run folder>`."""

import hydra
from omegaconf import DictConfig

from un.command.cli import report_errors, run_main


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(config: DictConfig) -> None:
    """Evaluates the run named by `run`, rebuilt from its own config."""
    with report_errors():
        from un.finished.evaluate import evaluate

        evaluate(config)


if __name__ == "__main__":
    run_main(main)
