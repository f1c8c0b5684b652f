"""What is done with a finished run: evaluate, predict, fold, export."""

from un.finished.predict import LoadedRun, load_run

__all__ = ["LoadedRun", "load_run"]
