"""What all benchmarks share: memory that stays, configs and vocabularies, and rows that are printed."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from un.command.errors import CONFIG_FOLDER

# glibc's mallopt parameters (malloc.h) and a value that no benchmark reaches.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, 1 << 30

Row = dict[str, Any]


def keep_freed_memory() -> None:
    """Stops glibc from returning freed memory to the system, as a training process in its stride hardly does.

    Otherwise page faults of the next allocation, up to three times the work itself at 13 MB, hit one arm or the other
    by chance. Does nothing on other C libraries.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
        libc.mallopt(M_MMAP_THRESHOLD, NEVER)


def compose_experiment(experiment: str, *overrides: str) -> DictConfig:
    """Composes the config that train.py would train with."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", overrides=[f"experiment={experiment}", *overrides])


def make_dictionary(num_words: int) -> Any:
    """Returns a fairseq dictionary of that many entries, the special ones among them."""
    from un.translation.fairseq_library import Dictionary

    words = Dictionary()
    for number in range(num_words - len(words)):
        words.add_symbol(f"word{number}")
    return words


def print_rows(rows: Sequence[Row]) -> None:
    """A line per row, aligned."""
    for row in rows:
        parts = [f"{v:9.3f}" if isinstance(v, float) else f"{v!s:>18}" for k, v in row.items() if "quart" not in k]
        print("  ".join(parts))
