"""Prepares WMT14 English-German from archives, the hub, or the set that Google preprocessed.

`python scripts/prepare_wmt14.py --archives FOLDER | --download | --hub ID | --google FILE [options]`
The folder it makes is what `data=wmt14_en_de data.path=<folder>` reads. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    from un.translation.preparation import wmt14, wmt14_sources
    from un.translation.preparation.archives import download
except ImportError as error:
    sys.exit(f"error: {error}; install what translation needs with `make translation`")


def build_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archives", type=Path, metavar="FOLDER", help="holds the archives of statmt.org")
    source.add_argument("--download", action="store_true", help="fetch them to <output>.archives")
    source.add_argument("--hub", metavar="ID", help="data set of rows, as wmt/wmt14, or a local folder of one")
    source.add_argument("--google", type=Path, metavar="FILE", help="wmt16_en_de.tar.gz, preprocessed by Google")
    parser.add_argument("--output", type=Path, default=Path("data/wmt14_en_de"), help="default: %(default)s")
    parser.add_argument("--recipe", help="fairseq (default) or powernorm")
    parser.add_argument("--news-commentary", help="v12 (default), or v9 for the data of 2014; archives only")
    parser.add_argument("--merges", type=int, help="byte-pair merges (default: the recipe's, 40000 or 32764)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    return parser


def prepare(arguments: argparse.Namespace) -> None:
    """Runs what the command line asks for.

    Raises:
        ValueError: an option is out of range or has no effect on this source.
    """
    if arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}")
    chosen = {name: getattr(arguments, name) for name in ("recipe", "news_commentary", "merges")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    fixed = chosen if arguments.google else {"news_commentary"} & set(chosen) if arguments.hub else ()
    for name in fixed:
        source = "--google" if arguments.google else "--hub"
        raise ValueError(f"--{name.replace('_', '-')} has no effect with {source}, whose data are made already")
    options = wmt14.Options(**chosen)
    if arguments.google:
        wmt14_sources.prepare_google(arguments.google, arguments.output, arguments.workers)
    elif arguments.hub:
        wmt14_sources.prepare_hub(arguments.hub, arguments.output, options, arguments.workers)
    else:
        archives = arguments.archives or arguments.output.with_name(f"{arguments.output.name}.archives")
        if arguments.download:
            for name in options.list_archives():
                download(wmt14.URLS[name], archives / name)
        wmt14.prepare(archives, arguments.output, options, arguments.workers)


def main() -> None:
    """Parses the command line and runs the steps."""
    arguments = build_parser().parse_args()
    try:
        prepare(arguments)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
