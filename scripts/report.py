"""Turns run folders into one HTML page, RESULTS.md, LaTeX and CSV.

    python scripts/report.py [runs ...] [--output report]

Every table of configs/table for which runs exist is filled, and every setting of every experiment is compared with
LayerNorm. `--update README.md` writes nothing but the results block of that file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.reports.comparison import Comparison, compare_settings
from un.reports.page import render_page
from un.reports.rendering import render_csv, render_latex, render_markdown
from un.reports.runs import Run, find_runs
from un.runtime.cli import CommandParser, end_on_mistake
from un.runtime.tables import compare_known

BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)


def main() -> None:
    """Parses the command line, reads the runs and writes the reports."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], help="searched for result.json")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder of the page and the other files")
    parser.add_argument("--title", default="Unified Normalization: results", help="of the page")
    parser.add_argument("--update", type=Path, help="Markdown file whose results block is replaced")
    with end_on_mistake():
        options = parser.parse_args()
        runs, problems = find_runs(options.folders)
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        if options.update:
            update_block(options.update, compare_settings(runs))
        else:
            write_reports(runs, problems, options.output, options.title)


def write_reports(runs: Sequence[Run], problems: Sequence[str], output: Path, title: str) -> None:
    """Writes index.html, RESULTS.md, tables.tex and results.csv."""
    tables, overview = compare_known(runs), compare_settings(runs)
    comparisons = [*tables, *overview]
    output.mkdir(parents=True, exist_ok=True)
    contents = {
        "index.html": render_page(tables, runs, output, problems, title),
        "RESULTS.md": "\n".join([f"# {title}\n", *map(render_markdown, comparisons)]),
        "tables.tex": "\n".join(map(render_latex, comparisons)),
        "results.csv": render_csv(comparisons),
    }
    for name, content in contents.items():
        (output / name).write_text(content)
        print(output / name)


def update_block(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Replaces what stands between the two comments of a Markdown file.

    Raises:
        ValueError: it has no such block.
    """
    text = path.read_text()
    if not BLOCK.search(text):
        raise ValueError(f"{path} has no results block (<!-- results --> ... <!-- end of results -->)")
    tables = "\n".join(render_markdown(comparison, level=3) for comparison in comparisons)
    path.write_text(BLOCK.sub(lambda found: f"{found[1]}\n{tables}\n{found[2]}", text))


if __name__ == "__main__":
    main()
