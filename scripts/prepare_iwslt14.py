"""Prepares IWSLT14 German-English: `python scripts/prepare_iwslt14.py --archive de-en.tgz | --download | --hub ID`.

The folder it makes is what `data=iwslt14_de_en data.path=<folder>` reads. Run the same command to resume.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from un.command.cli import CommandParser, end_on_mistake, read_count


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, help="de-en.tgz of the IWSLT 2014 evaluation")
    source.add_argument("--download", action="store_true", help="download fairseq's copy of it")
    source.add_argument("--hub", metavar="ID", help="download it from a data set repository of the Hugging Face hub")
    parser.add_argument("--hub-file", default="data/de-en.zip", help="the archive's name there (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("data/iwslt14_de_en"), help="default: %(default)s")
    parser.add_argument(
        "--apostrophes",
        choices=("map", "keep"),
        default="map",
        help="map (default) or keep ’ in the test text; the official code keeps it",
    )
    parser.add_argument(
        "--dictionary", choices=("joined", "separate"), default="joined", help="of both sides (default: %(default)s)"
    )
    parser.add_argument("--merges", type=read_count, default=10000, help="byte-pair merges (default: %(default)s)")
    parser.add_argument("--workers", type=read_count, default=1, help="processes (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Finds the archive and runs the steps."""
    with end_on_mistake():
        options = parse_options()
        from un.translation.preparation import archives, iwslt14

        archive = options.archive
        if options.download:
            archive = archives.download(iwslt14.URL, options.output.with_name("de-en.tgz"))
        elif options.hub:
            archive = archives.fetch_from_hub(options.hub, options.hub_file)
        recipe = replace(iwslt14.RECIPE, merges=options.merges, joined=options.dictionary == "joined")
        maps = options.apostrophes == "map"
        iwslt14.prepare(archive, options.output, recipe, map_apostrophes=maps, workers=options.workers)


if __name__ == "__main__":
    main()
