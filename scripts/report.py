"""Turns run folders into one HTML page, RESULTS.md, LaTeX and CSV.

    python scripts/report.py [runs ...] [--output report]        every table for which there are runs or measurements
    python scripts/report.py [runs ...] --update README.md ...   nothing but the results blocks of these pages
    python scripts/report.py [runs ...] --keep results/runs      the runs' results, without the rest of their folders

Every table of configs/table for which runs, or measurements by scripts/benchmark.py, exist is filled, the settings that
stand in none are compared with LayerNorm, and published figures of other norms are quoted. RESULTS.md begins with what
the tables say, in words computed from their intervals. The options can be combined; the files of the output are written
unless one of the others is given alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.analysis.curves import draw_svg
from un.command.cli import CommandParser, end_on_mistake
from un.reports.blocks import update_page
from un.reports.comparison import Comparison, compare_settings
from un.reports.measurements import find_measurements
from un.reports.page import render_page
from un.reports.records import keep_records
from un.reports.rendering import render_csv, render_latex, render_markdown
from un.reports.runs import find_runs
from un.reports.story import tell
from un.sweeps.table_plans import list_tables
from un.sweeps.tables import compare_known, quote_published

TITLE = "Unified Normalization: results"
OUTPUT = Path("report")
SECONDS_PER_HOUR = 3600


def main() -> None:
    """Parses the command line, reads the runs and writes the reports."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="searched for results and measurements"
    )
    parser.add_argument("--output", type=Path, help=f"folder of the page and the other files; default: {OUTPUT}")
    parser.add_argument("--update", type=Path, nargs="+", metavar="PAGE", help="Markdown files with results blocks")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy the results of the runs there")
    with end_on_mistake():
        options = parser.parse_intermixed_args()
        measurements, problems = find_measurements(options.folders)
        runs, unreadable = find_runs(options.folders)
        problems += unreadable
        if not (runs or measurements or problems):
            raise ValueError(f"no result.json below {', '.join(map(str, options.folders))}")
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        if options.keep:
            print(f"{options.keep}: {len(keep_records(runs, options.keep))} results")
        tables = compare_known(runs, measurements)
        quoted = quote_published()
        shown = [*tables, *compare_settings(runs, tables)]
        for path in options.update or []:
            update_page(path, [*shown, *quoted], list_tables())
        output = options.output or (None if options.update or options.keep else OUTPUT)
        if output is not None:
            page = render_page([*tables, *quoted], runs, output, draw_svg, problems, TITLE)
            write_reports([*shown, *quoted], page, output)


def render_results(comparisons: Sequence[Comparison]) -> str:
    """Returns a page of tables that begins with what they say, and explains once how they say it."""
    story = tell(comparisons)
    tables = [render_markdown(comparison, explain=not story) for comparison in comparisons]
    return "\n".join(filter(None, [f"# {TITLE}\n", describe_effort(comparisons), story, *tables]))


def describe_effort(comparisons: Sequence[Comparison]) -> str:
    """Returns how many runs the tables show and how long they took; nothing without runs."""
    cells = [cell for comparison in comparisons for cell in comparison.cells]
    runs = {run.folder: run for cell in cells for run in (*cell.runs, *cell.reference)}
    hours = sum(run.result.wall_time_seconds for run in runs.values()) / SECONDS_PER_HOUR
    return f"{len(runs)} runs, which took {hours:.1f} hours one after the other, pauses included.\n" if runs else ""


def write_reports(comparisons: Sequence[Comparison], page: str, output: Path) -> None:
    """Writes index.html, RESULTS.md, tables.tex and results.csv."""
    output.mkdir(parents=True, exist_ok=True)
    contents = {
        "index.html": page,
        "RESULTS.md": render_results(comparisons),
        "tables.tex": "\n".join(map(render_latex, comparisons)),
        "results.csv": render_csv(comparisons),
    }
    for name, content in contents.items():
        (output / name).write_text(content)
        print(output / name)


if __name__ == "__main__":
    main()
