"""Prints the table of all runs below some folders: `python scripts/report.py [runs ...] [--update README.md]`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.reports.table import read_results, render_markdown, tabulate_results

BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)


def main() -> None:
    """Parses the command line, reads the runs and prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], help="searched for result.json")
    parser.add_argument("--update", type=Path, help="Markdown file whose results block is replaced")
    options = parser.parse_args()
    try:
        table = render_markdown(tabulate_results(read_results(options.folders)))
    except ValueError as error:
        sys.exit(f"error: {error}")
    if options.update is None:
        print(table)
        return
    text = options.update.read_text()
    if not BLOCK.search(text):
        sys.exit(f"error: {options.update} has no results block (<!-- results --> ... <!-- end of results -->)")
    options.update.write_text(BLOCK.sub(rf"\g<1>{table}\n\g<2>", text))


if __name__ == "__main__":
    main()
