"""Injects faults into real runs: `python scripts/inject_faults.py kill|kill-sweep|kill-parallel|signal|write|disk`.

The first four hit runs, sweeps and parallel sweeps at random moments of their whole life; write kills a run at chosen
moments of writing each of its files; disk fills the disk (and mounts some, as root). What is left must equal what an
uninterrupted run leaves: metrics.csv, the result's metrics, weights, optimizer and norm state. Prints a table; --output
writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.killing import KINDS, inject
from faults.writing import fill_disks, kill_while_writing


def main() -> None:
    """Parses the command line, injects, prints and writes; the exit code is 1 where a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=[*KINDS, "write", "disk"])
    parser.add_argument("--trials", type=int, default=50, help="of the first four")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--folder", type=Path, help="of the runs, which then are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.fault in KINDS:
            table = inject(options.fault, options.trials, options.seed, folder)
        else:
            table = {"write": kill_while_writing, "disk": fill_disks}[options.fault](folder)
    rows = table.list_rows()
    print(pd.DataFrame(rows).to_string(index=False))
    if options.output:
        options.output.write_text(json.dumps({"rows": rows, "problems": table.problems}, indent=1))
    sys.exit(1 if table.problems else 0)


if __name__ == "__main__":
    main()
