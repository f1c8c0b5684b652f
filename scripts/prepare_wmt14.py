"""Prepares WMT14 English-German from archives, the hub, or the set that Google preprocessed.

`python scripts/prepare_wmt14.py --archives FOLDER | --download | --hub ID | --google FILE [options]`
The folder it makes is what `data=wmt14_en_de data.path=<folder>` reads. Run the same command to resume.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import CommandParser, end_on_mistake, read_count
from un.command.errors import UserError


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archives", type=Path, metavar="FOLDER", help="holds the archives of statmt.org")
    source.add_argument("--download", action="store_true", help="download them to <output>.archives")
    source.add_argument("--hub", metavar="ID", help="data set of rows, such as wmt/wmt14, or a local folder of one")
    source.add_argument("--google", type=Path, metavar="FILE", help="wmt16_en_de.tar.gz, preprocessed by Google")
    parser.add_argument("--output", type=Path, default=Path("data/wmt14_en_de"), help="default: %(default)s")
    parser.add_argument("--recipe", choices=("fairseq", "powernorm"), help="default: fairseq")
    parser.add_argument("--news-commentary", choices=("v12", "v9"), help="default: v12; v9 is the set of 2014")
    parser.add_argument("--merges", type=read_count, help="byte-pair merges (default: the recipe's, 40000 or 32764)")
    parser.add_argument("--workers", type=read_count, default=1, help="processes (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Finds the source and runs the steps."""
    with end_on_mistake():
        options = parse_options()
        from un.translation.preparation import archives, wmt14

        fixed: tuple[str, ...] = ("recipe", "news_commentary", "merges") if options.google else ()
        fixed = ("news_commentary",) if options.hub else fixed
        for name in fixed:
            if getattr(options, name) is not None:
                source = "--google" if options.google else "--hub"
                raise UserError(f"--{name.replace('_', '-')} has no effect with {source}, whose text is made already")
        recipe, version = wmt14.RECIPES[options.recipe or "fairseq"], options.news_commentary or "v12"
        recipe = replace(recipe, merges=options.merges or recipe.merges)
        if options.google:
            wmt14.prepare_google(options.google, options.output, workers=options.workers)
        elif options.hub:
            wmt14.prepare_hub(options.hub, options.output, recipe, options.workers)
        else:
            folder = options.archives or options.output.with_name(f"{options.output.name}.archives")
            if options.download:
                for name in wmt14.list_archives(recipe, version):
                    archives.download(wmt14.URLS[name], folder / name)
            wmt14.prepare(folder, options.output, recipe, version, options.workers)


if __name__ == "__main__":
    main()
