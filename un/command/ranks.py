"""Which of the processes of a run this is, as their launchers tell it in the environment."""

import os

# Of torchrun, Slurm and Lightning's own launcher; the last is set by the user on every node but the first.
RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")


def is_first_process() -> bool:
    """Tells whether this is the only or the first of several processes of a run."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)
