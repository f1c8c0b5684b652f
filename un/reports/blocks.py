"""Results blocks of Markdown files: what stands between two comments is computed, and the first comment says from what.

    <!-- results tables=multi30k,padding norms=layernorm,un show=all -->
    <!-- end of results -->

`tables` are shown in this order (default: all with numbers of ours), `norms` are the rows shown (default: all), and
`show` is `tables` (default), `sentences`, what the tables say in words, `all`, or `figures` for these alone.
`figures=<path>,<path>`, relative to the page, come last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from un.reports.comparison import Comparison
from un.reports.rendering import render_markdown
from un.reports.story import list_sentences

BLOCK = re.compile(r"(<!-- results((?: \w+=\S+)*) -->\n).*?(<!-- end of results -->)", re.DOTALL)
SHOWN = ("tables", "sentences", "all", "figures")
LEVEL = 3  # of the headings of tables


@dataclass(frozen=True)
class Block:
    """What a block shows; empty `tables` and `norms` are all.

    Attributes:
        tables: names.
        norms: choices of the config group.
        show: one of SHOWN.
        figures: paths relative to the page.
    """

    tables: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    show: str = SHOWN[0]
    figures: tuple[str, ...] = ()


def replace_blocks(path: Path, write: Callable[[Block], str]) -> None:
    """Replaces what is between the two comments of every results block of a Markdown file.

    Raises:
        ValueError: it has no such block, or one asks for what there is not.
    """
    text = path.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise ValueError(f"{path} has no results block (<!-- results --> ... <!-- end of results -->)")
    try:
        written = BLOCK.sub(lambda found: f"{found[1]}\n{write(_parse(found[2]))}\n{found[3]}", text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    path.write_text(written, encoding="utf-8")


def update_page(path: Path, comparisons: Sequence[Comparison], planned: Iterable[str]) -> None:
    """Fills the results blocks of a Markdown file; it is explained once what differences and verdicts are.

    Args:
        path: of the file.
        comparisons: those that have something to show.
        planned: names of tables that may still have no runs, of which the page says so.

    Raises:
        ValueError: there is no results block, or one names a table that is neither there nor planned.
    """
    there, names = {one.name: one for one in comparisons}, list(planned)
    ours = [one.name for one in comparisons if any(cell.ours.n or cell.runs for cell in one.cells)]
    explained: list[Block] = []

    def write(block: Block) -> str:
        for name in block.tables:
            if name not in there and name not in names:
                raise ValueError(f"there is no table {name}; there are {', '.join(sorted({*there, *names}))}")
        chosen = [there[name] for name in block.tables or ours if name in there]
        shown = [keep_norms(one, block.norms) for one in chosen] if block.norms else chosen
        missing = [f"`python scripts/reproduce.py table={name}`" for name in block.tables if name not in there]
        parts = ["\n".join([*list_sentences(shown), ""])] if block.show in ("sentences", "all") else []
        if block.show in ("tables", "all"):
            last = -1 if explained else len(shown) - 1
            parts += [render_markdown(one, LEVEL, explain=place == last) for place, one in enumerate(shown)]
            explained.extend([block] * bool(shown))
        parts += [f"Not run yet: {', '.join(missing)}.\n"] if missing else []
        return "\n".join(part for part in [*parts, *_list_figures(block, path)] if part.strip())

    replace_blocks(path, write)


def _list_figures(block: Block, page: Path) -> list[str]:
    """Returns the figures of a block, and a line for those that are not drawn."""
    drawn = [one for one in block.figures if (page.parent / one).is_file()]
    absent = [f"`{one}`" for one in block.figures if one not in drawn]
    lines = [f"![{Path(one).stem.replace('_', ' ')}]({one})\n" for one in drawn]
    return [*lines, *([f"Not drawn yet: {', '.join(absent)}.\n"] if absent else [])]


def keep_norms(comparison: Comparison, norms: Sequence[str]) -> Comparison:
    """Returns the comparison with the rows of these norms; what else it lacks is for the whole table to say."""
    return replace(comparison, rows=tuple(row for row in comparison.rows if row.norm in norms), left_out=0)


def _parse(options: str) -> Block:
    """Returns what the options of a comment, ` key=value` each, ask for."""
    values = dict(option.split("=", 1) for option in options.split())
    unknown = [name for name in values if name not in Block.__dataclass_fields__]
    if unknown:
        raise ValueError(f"a results block has no {unknown[0]}=; allowed: {', '.join(Block.__dataclass_fields__)}")
    lists = {name: tuple(filter(None, values.pop(name, "").split(","))) for name in ("tables", "norms", "figures")}
    block = Block(**lists, show=values.get("show", SHOWN[0]))
    if block.show not in SHOWN:
        raise ValueError(f"a results block has show={block.show}; allowed: {', '.join(SHOWN)}")
    return block
