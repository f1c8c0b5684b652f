"""Draws the figures of runs: `python scripts/analyse.py run=<folder or glob> [run=...] [output=<folder>] ...`.

Every run recorded with callbacks=activation_stats gets its own figures in <run folder>/figures: fluctuation, outliers,
moments, threshold, running and gradient statistics. The curves of all runs together, with bands over seeds, go to
output=, by default the folder figures in the deepest folder that holds all runs. A folder stands for all runs below it.

    figure=fluctuation   second moments from step to step by layer, a panel per setting, e.g. LayerNorm and UN
    figure=outliers      the largest activation over layers, a line per setting
    figure=discrepancy   how far running statistics are from the batch's (TID), over steps and layers
    figure=threshold     AM-GM gap and threshold of filtration by layer, of the first run with windows
    figure=window        AM-GM gap and threshold by norm.window
    figure=curves        training and validation metrics, mean over seeds and band
    figure=cost          test metric against inference time, measured now with the norms folded away
    figure=retrofit      outliers and fit of the maps, of a run whose norms scripts/retrofit.py took out

With one of these, that figure alone is drawn, of runs of one experiment: <output>/<experiment>_<figure>.<format>.

Options: run=<folder or glob>  figure=...  output=<folder>  format=png|pdf|svg  metrics=<name>,<name> (of metrics.csv)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.analysis.drawing import FORMATS, draw_comparison, draw_run
from un.analysis.runs import find_run_folders
from un.analysis.storage import StatisticsFiles
from un.command.cli import end_on_mistake
from un.finished import figures
from un.reports.runs import find_runs

OPTIONS = ("run", "figure", "output", "format", "metrics")
FIGURES = ("fluctuation", "outliers", "discrepancy", "threshold", "window", "curves", "cost", "retrofit")


def main() -> None:
    """Parses the command line, draws, and prints what was written."""
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    with end_on_mistake():
        options = parse_options(sys.argv[1:])
        for path in [draw_one(options)] if options["figure"] else draw_all(options):
            print(path)


def parse_options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Returns the values by option; `run` may be given several times.

    Raises:
        ValueError: an unknown option, a missing or an empty value.
    """
    options: dict[str, list[str]] = {name: [] for name in OPTIONS}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in OPTIONS or not value:
            raise ValueError(
                f"{argument!r} is not an option; allowed: {', '.join(f'{option}=...' for option in OPTIONS)}"
            )
        if options[name] and name != "run":
            raise ValueError(f"{name} is given twice: {options[name][0]} and {value}")
        options[name].append(os.path.expanduser(value))
    if not options["run"]:
        raise ValueError("run is missing: run=<run folder or glob>, e.g. run='runs/digits_vit/norm=un/seed=*'")
    if options["format"] and options["format"][0] not in FORMATS:
        raise ValueError(f"format={options['format'][0]} is unknown; allowed: {', '.join(FORMATS)}")
    if options["figure"] and options["figure"][0] not in FIGURES:
        raise ValueError(f"figure={options['figure'][0]} is unknown; allowed: {', '.join(FIGURES)}")
    return options


def draw_one(options: dict[str, list[str]]) -> Path:
    """Draws one figure that compares settings."""
    folders, name = find_run_folders(options["run"]), options["figure"][0]
    experiment, form = folders[0].absolute().parts[-3], (options["format"] or ["png"])[0]
    output = Path(options["output"][0]) if options["output"] else folders[0].parents[1] / "figures"
    path = output / f"{experiment}_{name}.{form}"
    if name == "retrofit":
        return figures.save(lambda: figures.draw_taken_out(folders), path)
    if name != "cost":
        metrics = options["metrics"][0].split(",") if options["metrics"] else []
        chosen = folders if name == "curves" else choose_recorded(folders)
        return figures.save(lambda: figures.draw_settings(name, chosen, metrics), path)
    from un.finished.run_times import time_runs  # brings models and data, which the other figures need not

    runs, problems = find_runs(folders)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    return figures.save(
        lambda: figures.draw_cost(runs, lambda chosen: [found.ratio for found in time_runs(chosen)]), path
    )


def choose_recorded(folders: Sequence[Path]) -> Sequence[Path]:
    """Returns those runs of one experiment that recorded statistics and says how many did not; all where none did."""
    figures.group_folders(folders)  # refuses several experiments
    recorded = [folder for folder in folders if StatisticsFiles(folder).exists()]
    if 0 < len(recorded) < len(folders):
        print(f"{len(folders) - len(recorded)} runs without activation_stats are left out", file=sys.stderr)
    return recorded or folders


def draw_all(options: dict[str, list[str]]) -> list[Path]:
    """Draws each run, and the curves of all."""
    folders = find_run_folders(options["run"])
    form = (options["format"] or ["png"])[0]
    metrics = options["metrics"][0].split(",") if options["metrics"] else []
    recorded = [folder for folder in folders if StatisticsFiles(folder).exists()]
    written = [path for folder in recorded for path in draw_run(folder, form=form)]
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    output = Path(options["output"][0]) if options["output"] else common / "figures"
    curves = draw_comparison(folders, output, form, metrics)
    if not recorded:
        print("no run was recorded with callbacks=activation_stats: curves only", file=sys.stderr)
    return list(dict.fromkeys([*written, curves]))


if __name__ == "__main__":
    main()
