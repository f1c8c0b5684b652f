"""Turns run folders into one HTML page, RESULTS.md, LaTeX and CSV.

    python scripts/report.py [runs ...] [--output report]

Every table of configs/table for which runs, or measurements by scripts/benchmark.py, exist is filled, the settings that
stand in none are compared with LayerNorm, and published figures of other norms are quoted. RESULTS.md begins with what
the tables say, in words computed from their intervals. `--update README.md [--tables <name> ...] [--norms <name> ...]`
writes nothing but the results block of that file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.analysis.curves import draw_svg
from un.command.cli import CommandParser, end_on_mistake
from un.reports.comparison import Comparison, compare_settings
from un.reports.measurements import find_measurements
from un.reports.page import render_page
from un.reports.rendering import render_csv, render_latex, render_markdown, replace_block
from un.reports.runs import find_runs
from un.reports.story import tell
from un.sweeps.tables import compare_known, quote_published

TITLE = "Unified Normalization: results"


def main() -> None:
    """Parses the command line, reads the runs and writes the reports."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="searched for results and measurements"
    )
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the page and the other files")
    parser.add_argument("--update", type=Path, help="Markdown file whose results block is replaced")
    parser.add_argument("--tables", nargs="+", metavar="NAME", help="write these alone, in this order; default: all")
    parser.add_argument("--norms", nargs="+", metavar="NAME", help="write only the rows of these; default: all")
    with end_on_mistake():
        options = parser.parse_args()
        measurements, problems = find_measurements(options.folders)
        runs, unreadable = find_runs(options.folders)
        problems += unreadable
        if not (runs or measurements or problems):
            raise ValueError(f"no result.json below {', '.join(map(str, options.folders))}")
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        tables = compare_known(runs, measurements)
        shown = choose_tables([*tables, *compare_settings(runs, tables)], options.tables)
        shown = [keep_norms(comparison, options.norms) for comparison in shown] if options.norms else shown
        if options.update:
            last = len(shown) - 1
            texts = [render_markdown(one, level=3, explain=place == last) for place, one in enumerate(shown)]
            replace_block(options.update, "\n".join(texts))
        else:
            quoted = quote_published() if options.tables is None else []
            shown += quoted
            page = render_page([*tables, *quoted], runs, options.output, draw_svg, problems, TITLE)
            write_reports(shown, page, options.output)


def choose_tables(known: Sequence[Comparison], names: Sequence[str] | None) -> list[Comparison]:
    """Returns the tables of these names, all for None.

    Raises:
        ValueError: there is none of a name.
    """
    if names is None:
        return list(known)
    by_name = {comparison.name: comparison for comparison in known}
    for name in names:
        if name not in by_name:
            raise ValueError(f"--tables {name}: no runs for it; there are {', '.join(by_name) or 'none'}")
    return [by_name[name] for name in names]


def keep_norms(comparison: Comparison, norms: Sequence[str]) -> Comparison:
    """Returns the comparison with the rows of these norms; what else it lacks is for the whole table to say."""
    return replace(comparison, rows=tuple(row for row in comparison.rows if row.norm in norms), left_out=0)


def render_results(comparisons: Sequence[Comparison]) -> str:
    """Returns a page of tables that begins with what they say, and explains once how they say it."""
    story = tell(comparisons)
    tables = [render_markdown(comparison, explain=not story) for comparison in comparisons]
    return "\n".join(filter(None, [f"# {TITLE}\n", story, *tables]))


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
