"""Exports the folded model of a finished run: `python scripts/export.py run=<run folder> format=onnx|torch_export`."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import report_errors, run_main


@hydra.main(version_base="1.3", config_path="../configs", config_name="export")
def main(config: DictConfig) -> None:
    """Exports the run named by `run`."""
    with report_errors():
        from un.finished.export import export_run

        export_run(config)


if __name__ == "__main__":
    run_main(main)
