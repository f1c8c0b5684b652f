"""Trains one run, or a sweep with `-m`; `python train.py --help` lists the config groups and common commands."""

import hydra
from omegaconf import DictConfig

from un.command.cli import report_errors, run_main
from un.sweeps.launch import run_sweep
from un.training.start import start_run


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float | None:
    """Runs one composed config."""
    with report_errors():
        return start_run(config)
    return None


if __name__ == "__main__":
    run_main(main, run_sweep)
