"""Prepares IWSLT14 German-English: `python scripts/prepare_iwslt14.py --archive de-en.tgz | --download | --hub ID`.

The folder it makes is what `data=iwslt14_de_en data.path=<folder>` reads. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    from un.translation.preparation import iwslt14
    from un.translation.preparation.archives import download, fetch_from_hub
except ImportError as error:
    sys.exit(f"error: {error}; install what translation needs with `make translation`")


def main() -> None:
    """Parses the command line and runs the steps."""
    defaults = iwslt14.Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, help="de-en.tgz of the IWSLT 2014 evaluation")
    source.add_argument("--download", action="store_true", help=f"fetch it from {iwslt14.URLS[0]}")
    source.add_argument("--hub", metavar="ID", help="fetch it from a data set repository of the Hugging Face hub")
    parser.add_argument("--hub-file", default="data/de-en.zip", help="the archive's name there (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("data/iwslt14_de_en"), help="default: %(default)s")
    parser.add_argument(
        "--apostrophes", default=defaults.apostrophes, help="map (default) or keep ’ in the test text; keep as UN does"
    )
    parser.add_argument("--dictionary", default=defaults.dictionary, help="joined (default) or separate")
    parser.add_argument("--merges", type=int, default=defaults.merges, help="byte-pair merges (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")
    try:
        options = iwslt14.Options(arguments.apostrophes, arguments.dictionary, arguments.merges)
        archive = arguments.archive
        if arguments.download:
            archive = download(iwslt14.URLS[0], arguments.output.with_name("de-en.tgz"))
        elif arguments.hub:
            archive = fetch_from_hub(arguments.hub, arguments.hub_file)
        iwslt14.prepare(archive, arguments.output, options, arguments.workers)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
