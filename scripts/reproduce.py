"""From nothing to the rendered table: starts the runs that a table lacks and compares them with the published figures.

    python scripts/reproduce.py table=iwslt14 [overrides]             a table of configs/table
    python scripts/reproduce.py table=un_window experiment=<name>     the same question asked of another experiment
    python scripts/reproduce.py ablation=<name> [overrides]           an ablation without a table file
    python scripts/reproduce.py table=<name> --dry-run                list the runs and what is done, start none

Overrides are those of train.py, e.g. seed=0,1 data.path=<folder> trainer=ddp hydra/launcher=joblib. Finished runs are
not started again. The table is printed and written to <output>/<name>.md, .tex and .csv.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.reports.comparison import Comparison
from un.reports.rendering import render_csv, render_latex, render_markdown
from un.runtime.cli import EXIT_CODE, CommandParser, end_on_mistake
from un.runtime.listing import TableRun, read_choices
from un.runtime.sweeps import expand, launch
from un.runtime.tables import Plan, describe_ablation, fill_table, find_on_disk, list_tables, plan_table, read_table


def main() -> None:
    """Parses the command line, runs what is missing, prints and writes the table."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="key=value", help="table=<name> or ablation=<name>, overrides")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, start none")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the rendered tables")
    with end_on_mistake():
        options = parser.parse_intermixed_args()
        failed = reproduce(options.arguments, options.output, options.dry_run)
    sys.exit(EXIT_CODE if failed else 0)


def reproduce(arguments: Sequence[str], output: Path, dry_run: bool) -> int:
    """Lists, starts and renders; returns how many runs have no result in the end (none started: 0)."""
    plan = plan_arguments(arguments)
    overrides = [argument for argument in arguments if not argument.startswith("table=")]
    first = [run for name in plan.table.needs for run in plan_table(read_table(name), overrides).runs]
    runs = list({run.folder: run for run in (*first, *plan.runs)}.values())
    check_ablations(runs)
    if dry_run:
        print_runs(runs)
        return 0
    os.environ["WANDB_TAGS"] = plan.table.name  # for logger=wandb, in the processes of any launcher
    failed = start_missing(first)
    if failed:
        print(f"error: {failed} runs that others start from have no result", file=sys.stderr)
    else:
        failed = start_missing(plan.runs)
    comparison = fill_table(plan, find_on_disk)
    write_table(comparison, output)
    print(render_markdown(comparison))
    return failed


def plan_arguments(arguments: Sequence[str]) -> Plan:
    """Reads the table that the arguments name and plans it with the others.

    Raises:
        ValueError: they name neither a table nor an ablation, or more than one of them.
    """
    named = [argument for argument in arguments if argument.startswith(("table=", "ablation="))]
    if len(named) != 1:
        raise ValueError(f"name one table=<name> or ablation=<name>; tables: {', '.join(list_tables())}")
    kind, _, name = named[0].partition("=")
    overrides = [argument for argument in arguments if argument != named[0]]
    return plan_table(read_table(name) if kind == "table" else describe_ablation(name), overrides)


def check_ablations(runs: Sequence[TableRun]) -> None:
    """Composes one run of each experiment and ablation, so that what makes no sense is said before anything starts."""
    checked = set()
    for run in runs:
        choices = read_choices(run.arguments)
        pair = (choices.get("experiment"), choices.get("ablation"))
        if pair not in checked:
            expand(run.arguments)
            checked.add(pair)


def start_missing(runs: Sequence[TableRun]) -> int:
    """Starts the runs that have no result; returns how many have none in the end."""
    missing = [run for run in runs if find_on_disk(run) is None]
    return launch([planned for run in missing for planned in expand(run.arguments)])


def print_runs(runs: Sequence[TableRun]) -> None:
    """Prints each run with its state, and how long the others may take by what was measured of their experiment."""
    seconds: dict[str, list[float]] = {}
    missing: dict[str, int] = {}
    for run in runs:
        experiment, found = run.key[0], find_on_disk(run)
        if found is None:
            missing[experiment] = missing.get(experiment, 0) + 1
            state = "interrupted" if (run.folder / "config.yaml").is_file() else "missing"
        else:
            seconds.setdefault(experiment, []).append(found.result.wall_time_seconds)
            state = found.result.status
        print(f"{state:<12} {run.folder}")
    print(f"{len(runs)} runs, {len(runs) - sum(missing.values())} done")
    for experiment, count in missing.items():
        known = seconds.get(experiment)
        hours = (
            f"about {count * sum(known) / len(known) / 3600:.1f} hours one after the other" if known else "not known"
        )
        print(f"{experiment}: {count} to run, time by earlier runs: {hours}")


def write_table(comparison: Comparison, output: Path) -> None:
    """Writes the table as Markdown, LaTeX and CSV."""
    output.mkdir(parents=True, exist_ok=True)
    texts = {"md": render_markdown(comparison), "tex": render_latex(comparison), "csv": render_csv([comparison])}
    for ending, text in texts.items():
        (output / f"{comparison.name}.{ending}").write_text(text)


if __name__ == "__main__":
    main()
