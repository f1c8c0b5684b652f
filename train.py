"""Trains one run, or a sweep with `-m`; `python train.py --help` lists the config groups and common commands."""

from un.command.cli import run_command
from un.sweeps.launch import run_sweep
from un.training.start import start_run

if __name__ == "__main__":
    run_command("train", start_run, run_sweep)
