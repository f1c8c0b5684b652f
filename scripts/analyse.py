"""Draws the figures of runs: `python scripts/analyse.py run=<folder or glob> [run=...] [output=<folder>] ...`.

Every run recorded with callbacks=activation_stats gets its own figures in <run folder>/figures: fluctuation, outliers,
moments, threshold, running and gradient statistics. The curves of all runs together, with bands over seeds, go to
output=, by default the folder figures in the deepest folder that holds all runs. A folder stands for all runs below it.

Options: run=<folder or glob>  output=<folder>  format=png|pdf|svg  metrics=<name>,<name> (columns of metrics.csv)
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

OPTIONS = ("run", "output", "format", "metrics")


def main() -> None:
    """Parses the command line, draws, and prints what was written."""
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    with end_on_mistake():
        for path in draw_all(parse_options(sys.argv[1:])):
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
    return options


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
