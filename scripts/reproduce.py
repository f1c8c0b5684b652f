"""From nothing to the rendered table: starts the runs that a table lacks and compares them with the published figures.

    python scripts/reproduce.py table=iwslt14 [overrides]             a table of configs/table
    python scripts/reproduce.py table=un_window experiment=<name>     the same question asked of another experiment
    python scripts/reproduce.py ablation=<name> [overrides]           an ablation without a table file
    python scripts/reproduce.py table=<name> --dry-run                list the runs and what they need, start none
    python scripts/reproduce.py table=<name> --commands               and a command for each missing run, to paste
    python scripts/reproduce.py table=efficiency                      measured by scripts/benchmark.py, not by runs
    python scripts/reproduce.py results [data.<choice>.path=<folder>] all that configs/results.yaml lists, into results/

Overrides are those of train.py, e.g. seed=0,1 data.path=<folder> trainer=ddp hydra/launcher=joblib, and of shifts, e.g.
shift.tatoeba.data.path=<folder>. Finished runs are left alone, and evaluated where a column shows what they lack. The
table is printed and written to <output>/<name>.md, .tex and .csv. `results` leaves runs alone that have a record in
<output>/runs, too: with --output <empty folder> everything is made anew.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import EXIT_CODE, CommandParser, end_on_mistake
from un.command.errors import CONFIG_FOLDER
from un.command.overrides import quote_override
from un.reports.comparison import Comparison
from un.reports.efficiency import compare_measurements
from un.reports.measurements import FOLDERS, find_measurements, plan_settings
from un.reports.records import keep_records
from un.reports.rendering import render_csv, render_latex, render_markdown
from un.reports.specification import Table
from un.sweeps.dry_run import describe_runs
from un.sweeps.evaluations import Evaluation, list_evaluations
from un.sweeps.launch import expand, launch
from un.sweeps.results import plan_results, read_contents
from un.sweeps.run_names import PlannedRun, read_choices
from un.sweeps.table_plans import Plan, describe_ablation, list_tables, plan_table, read_table
from un.sweeps.tables import fill_table, find_on_disk
from un.training.run_folder import RunFolder, read_overrides

EVAL = Path(__file__).parents[1] / "eval.py"
BENCHMARK = Path(__file__).parent / "benchmark.py"
DRY_RUN = ("dry_run=true", "dry_run=false")  # the option as an override
OUTPUT, RESULTS, WHOLE = Path("report"), Path("results"), "results"
PAGES = ("--update", "README.md", "results/README.md", "results/efficiency.md", "docs/retrofit.md")
PATHS = OmegaConf.load(CONFIG_FOLDER / "paths/default.yaml")


def main() -> None:
    """Parses the command line, runs what is missing, prints and writes the table."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "arguments", nargs="*", metavar="key=value", help="table=<name>, ablation=<name> or results; overrides"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs, start none; also dry_run=true")
    parser.add_argument("--commands", action="store_true", help="list a command for each missing run, too; start none")
    parser.add_argument("--output", type=Path, help=f"folder of what is rendered; default: {OUTPUT}, or {RESULTS}")
    with end_on_mistake():
        options = parser.parse_intermixed_args()
        arguments = [argument for argument in options.arguments if argument not in DRY_RUN]
        is_dry = options.dry_run or options.commands or DRY_RUN[0] in options.arguments
        if WHOLE in arguments:
            arguments.remove(WHOLE)
            failed = reproduce_results(arguments, options.output or RESULTS, is_dry, options.commands)
        else:
            failed = reproduce(arguments, options.output or OUTPUT, is_dry, options.commands)
    sys.exit(EXIT_CODE if failed else 0)


def reproduce(arguments: Sequence[str], output: Path, dry_run: bool, commands: bool = False) -> int:
    """Lists, starts and renders; returns how many runs or measurements are missing in the end, 0 in a dry run."""
    arguments, shifts = split_shifts(arguments)
    table, overrides = choose_table(arguments)
    if table.models:
        return reproduce_measurements(table, overrides, output, dry_run)
    plan = plan_table(table, overrides)
    first = plan.starts
    runs = list({run.folder: run for run in (*first, *plan.runs)}.values())
    check_ablations(runs)
    check_data(runs)
    if dry_run:
        print(describe_runs(runs, commands))
        for evaluation in list_evaluations(plan, find_on_disk):
            print(f"to evaluate  {shlex.join(write_evaluation(evaluation, shifts))}")
        return 0
    os.environ["WANDB_TAGS"] = table.name  # for logger=wandb, in the processes of any launcher
    failed = start_missing(first)
    if failed:
        print(f"error: {failed} runs that others start from have no result", file=sys.stderr)
    else:
        failed = start_missing(plan.runs) + evaluate_missing(plan, shifts)
    write_table(fill_table(plan, find_on_disk), output)
    return failed


def reproduce_results(arguments: Sequence[str], output: Path, dry_run: bool, commands: bool) -> int:
    """Lists, starts, keeps, draws and renders all of results/; returns how many runs and figures are missing."""
    overrides, shifts = split_shifts(arguments)
    plan = plan_results(read_contents(), overrides, output / "runs")
    figures = [name for name in plan.figures if not plan.find_figure(name, output / "figures").is_file()]
    missing = plan.list_missing(figures)
    check_data(plan.runs)
    print(describe_runs(plan.runs, commands, missing), *plan.count_missing(missing), sep="\n")
    for name in plan.figures:
        print(f"{'missing' if name in figures else 'drawn':<12} {plan.find_figure(name, output / 'figures')}")
    if dry_run:
        return 0
    failed = start_missing(missing) + sum(evaluate_missing(table, shifts) for table in plan.tables)
    runs = [run for planned in plan.runs if (run := find_on_disk(planned)) is not None]
    keep_records(runs, plan.records)
    for name in figures:
        failed += start_script("analyse.py", *plan.describe_figure(name), f"output={output / 'figures'}")
    pages = PAGES if output == RESULTS else ()
    return failed + start_script("report.py", str(output), "--output", str(output), *pages)


def start_script(name: str, *arguments: str) -> int:
    """Runs another program of this folder and says so; returns 1 where it fails, otherwise 0."""
    print(shlex.join(["python", f"scripts/{name}", *arguments]), flush=True)
    return int(subprocess.run([sys.executable, str(Path(__file__).parent / name), *arguments]).returncode != 0)


def reproduce_measurements(table: Table, overrides: Sequence[str], output: Path, dry_run: bool) -> int:
    """Does the same for a table that scripts/benchmark.py fills, on the GPU if there is one.

    Raises:
        ValueError: There is an override other than paths.runs, which says where the measurements are.
    """
    choices = read_choices([f"paths.runs={PATHS.runs}", *overrides])
    if choices.keys() != {"paths.runs"}:
        raise ValueError(
            f"table={table.name} is measured, not run: it takes paths.runs only, got {', '.join(overrides)}"
        )
    import torch  # takes a second, which tables of runs need not spend here

    folder = Path(choices["paths.runs"]) / FOLDERS[table.benchmark]
    settings = plan_settings(table.models, "cuda" if torch.cuda.is_available() else "cpu", table.benchmark)
    missing = [setting for setting in settings if not (folder / setting.file).is_file()]
    for setting in settings:
        command = shlex.join(["python", "scripts/benchmark.py", *setting.list_arguments(folder)])
        print(f"missing   {command}" if setting in missing else f"measured  {folder / setting.file}", flush=True)
        if setting in missing and not dry_run:
            subprocess.run([sys.executable, str(BENCHMARK), *setting.list_arguments(folder)], stdout=sys.stderr)
    print(f"{len(settings)} measurements, {len(settings) - len(missing)} done before")
    if dry_run:
        return 0
    measurements, problems = find_measurements([folder])
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    write_table(compare_measurements(table, measurements), output)
    return len({setting.file for setting in settings} - {measurement.file for measurement in measurements})


def choose_table(arguments: Sequence[str]) -> tuple[Table, list[str]]:
    """Reads the table that the arguments name; returns it and the other arguments.

    Raises:
        ValueError: They name neither a table nor an ablation, or more than one of them.
    """
    named = [argument for argument in arguments if argument.startswith(("table=", "ablation="))]
    if len(named) != 1:
        raise ValueError(f"name one table=<name> or ablation=<name>, or results; tables: {', '.join(list_tables())}")
    kind, _, name = named[0].partition("=")
    overrides = [quote_override(argument, is_sweep=True) for argument in arguments if argument != named[0]]
    return read_table(name) if kind == "table" else describe_ablation(name), overrides


def split_shifts(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments of train.py, and those of shifts, which are for eval.py."""
    shifts = [quote_override(argument) for argument in arguments if argument.startswith("shift.")]
    return [argument for argument in arguments if not argument.startswith("shift.")], shifts


def check_ablations(runs: Sequence[PlannedRun]) -> None:
    """Composes one run of each experiment and ablation, to refuse what makes no sense before anything starts."""
    checked = set()
    for run in runs:
        choices = read_choices(run.arguments)
        pair = (choices.get("experiment"), choices.get("ablation"))
        if pair not in checked:
            expand(run.arguments)
            checked.add(pair)


def check_data(runs: Sequence[PlannedRun]) -> None:
    """Checks that existing runs were trained on the data that the arguments name.

    Raises:
        ValueError: One was not.
    """
    for run in runs:
        path = read_overrides(run.arguments).get("data.path")
        if path is not None:
            RunFolder(run.folder).check_data(path)


def start_missing(runs: Sequence[PlannedRun]) -> int:
    """Starts the runs that have no result; returns how many have none in the end."""
    missing = [run for run in runs if run.find_result() is None]
    return launch([planned for run in missing for planned in expand(run.arguments)])


def evaluate_missing(plan: Plan, shifts: Sequence[str]) -> int:
    """Runs eval.py for what finished runs lack; returns how many evaluations failed."""
    commands = [write_evaluation(evaluation, shifts) for evaluation in list_evaluations(plan, find_on_disk)]
    ended = [subprocess.run([sys.executable, str(EVAL), *command[2:]], stdout=sys.stderr) for command in commands]
    return sum(process.returncode != 0 for process in ended)


def write_evaluation(evaluation: Evaluation, shifts: Sequence[str]) -> list[str]:
    """Returns the command of an evaluation; of the options of shifts, it gets those of its own."""
    run, arguments = evaluation
    given = read_overrides(run.arguments)
    places = [f"{key}={given[key]}" for key in ("data.path", "trainer.accelerator") if given.get(key) is not None]
    options = [shift for shift in shifts if re.search(rf"\b{shift.split('.')[1]}\b", arguments[0])]
    return ["python", "eval.py", f"run={run.folder}", *places, *arguments, *options]


def write_table(comparison: Comparison, output: Path) -> None:
    """Prints the table, and writes it as Markdown, LaTeX and CSV."""
    output.mkdir(parents=True, exist_ok=True)
    texts = {"md": render_markdown(comparison), "tex": render_latex(comparison), "csv": render_csv([comparison])}
    for ending, text in texts.items():
        (output / f"{comparison.name}.{ending}").write_text(text)
    print(texts["md"])


if __name__ == "__main__":
    main()
