"""The commands of README and docs, as they stand there."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
    "results/README.md",
    "results/efficiency.md",
)
PROGRAM = r"((?:train|eval|(?:scripts|examples)/\w+)\.py\b(?![^\n]*\.\.\. )"
IN_BLOCK = re.compile(rf"^ {{0,4}}(?=[A-Z_]+=|python |\.venv|srun |torchrun ).*?{PROGRAM}[^\n]*)", re.MULTILINE)
IN_TEXT = re.compile(rf"`python {PROGRAM}[^`\n]*)`")
# What needs a GPU, Slurm, a plugin, the hub, several processes, minutes, or data or runs that only a reader has.
NEEDS_MORE = re.compile(
    r"trainer=|submitit|hparams_search|--download|--google|data\.path=|init_weights=|compile=|table=efficiency"
    r"|=<runs?>|ablation=retrofit|figure=|sentence_encoder"
    r"|benchmark\.py|recipes\.py|--update|--keep|average_checkpoints|Ein Hund|sentences\.de|reproduce\.py"
)


@dataclass(frozen=True)
class Command:
    """A program of this repository and its arguments; `<...>` in these stands for something of the reader's."""

    page: str
    script: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page} {shlex.join([self.script, *self.arguments])}"

    @property
    def needs_more(self) -> bool:
        return NEEDS_MORE.search(str(self)) is not None


def read_commands() -> list[Command]:
    """Every command of every page, each once per page, without comments and without `[runs ...]`, what may be added."""
    found: dict[Command, None] = {}
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", (ROOT / page).read_text(encoding="utf-8"))
        for line in [*IN_BLOCK.findall(text), *IN_TEXT.findall(text)]:
            script, *arguments = shlex.split(re.sub(r" \[\w+ \.\.\.\]", "", line), comments=True)
            found[Command(page, script, tuple(arguments))] = None
    return list(found)
