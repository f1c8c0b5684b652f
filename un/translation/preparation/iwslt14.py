"""IWSLT14 German-English, as the official UN code prepares it (and fairseq's example, up to two options)."""

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from un.translation.preparation.archives import extract
from un.translation.preparation.corpora import (
    CODES,
    Languages,
    apply_codes,
    divide_training,
    learn_codes,
    map_splits,
    name_pair,
)
from un.translation.preparation.lines import read_lines, write_lines
from un.translation.preparation.sentences import Limits, map_apostrophe, read_segments, strip_tags, tokenize
from un.translation.preparation.steps import Counts, Steps, compute_checksum

# The second host has moved its archives elsewhere since.
URLS = (
    "https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz",
    "https://wit3.fbk.eu/archive/2014-01/texts/de/en/de-en.tgz",
)
LANGUAGES: Languages = ("de", "en")
# The test set is their concatenation in this order.
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
VALIDATION_EVERY = 23
LIMITS = Limits(shortest=1, longest=175, ratio=1.5)  # in words


@dataclass(frozen=True)
class Options:
    """What may differ between recipes.

    Args:
        apostrophes: "map" writes ’ as ' in the test text, as fairseq's example; "keep" leaves it, as the official UN
            script does in effect, whose pattern is damaged and matches nothing.
        dictionary: "joined" for both sides, as UN; "separate" as fairseq's example.
        merges: byte-pair merges.

    Raises:
        ValueError: a value outside these.
    """

    apostrophes: str = "map"
    dictionary: str = "joined"
    merges: int = 10000

    def __post_init__(self) -> None:
        if self.apostrophes not in ("map", "keep"):
            raise ValueError(f"apostrophes must be map or keep, got {self.apostrophes!r}")
        if self.dictionary not in ("joined", "separate"):
            raise ValueError(f"dictionary must be joined or separate, got {self.dictionary!r}")
        if self.merges < 1:
            raise ValueError(f"merges must be at least 1, got {self.merges}")


def prepare(archive: Path, output: Path, options: Options, workers: int = 1) -> Path:
    """Runs all steps from the archive of the IWSLT 2014 evaluation to a folder for `data=iwslt14_de_en`.

    Intermediate steps stay in `<output>.steps`, from which an interrupted preparation goes on.

    Args:
        archive: de-en.tgz.
        output: folder to make.
        options: the recipe.
        workers: processes for tokenising and binarising.

    Raises:
        ValueError: the archive is not what it should be, or `output` is something else already.
    """
    if not archive.is_file():
        raise ValueError(f"no archive {archive}; fetch {URLS[0]} or use --download")
    steps = Steps(output.with_name(f"{output.name}.steps"), {archive.name: compute_checksum(archive)})
    unpacked = steps.run("1-unpacked", {}, functools.partial(unpack, archive))
    text = steps.run(
        "2-text", {"apostrophes": options.apostrophes}, lambda folder: read_text(unpacked, folder, options.apostrophes)
    )
    tokens = steps.run("3-tokens", {}, lambda folder: tokenize_text(text, folder, workers))
    divided = steps.run(
        "4-divided", {"every": VALIDATION_EVERY, **asdict(LIMITS)}, lambda folder: divide_text(tokens, text, folder)
    )
    learned = steps.run(
        "5-merges",
        {"merges": options.merges},
        lambda folder: learn_codes([*name_pair(divided, "train", LANGUAGES)], folder, options.merges),
    )
    splits = dict.fromkeys(("train", "valid", "test"), divided)
    subwords = steps.run(
        "6-subwords", {}, lambda folder: apply_codes(splits, learned / CODES, folder, LANGUAGES, workers)
    )
    raw = {"valid": divided / "raw", "test": text}
    return steps.finish(
        output,
        describe(options),
        lambda folder: binarize_text(subwords, raw, learned / CODES, folder, options.dictionary == "joined", workers),
    )


def describe(options: Options) -> dict[str, Any]:
    """Returns what a reader of the prepared folder has to know."""
    return {
        "data": "iwslt14_de_en",
        "source_lang": LANGUAGES[0],
        "target_lang": LANGUAGES[1],
        "lowercase": True,
        "split_hyphens": False,
        **asdict(options),
    }


def unpack(archive: Path, folder: Path) -> Counts:
    """Step 1: takes the training text and the five evaluation sets out of the archive."""
    names = [f"train.tags.de-en.{language}" for language in LANGUAGES]
    names += [f"IWSLT14.{name}.de-en.{language}.xml" for name in TEST_SETS for language in LANGUAGES]
    extract([archive], names, folder)
    return {"files": len(names)}


def read_text(unpacked: Path, folder: Path, apostrophes: str) -> Counts:
    """Step 2: removes markup and joins the evaluation sets to one test set."""
    counts = {}
    for language in LANGUAGES:
        train = strip_tags(read_lines(unpacked / f"train.tags.de-en.{language}"))
        counts[f"train.{language}"] = write_lines(folder / f"train.{language}", train)
        paths = [unpacked / f"IWSLT14.{name}.de-en.{language}.xml" for name in TEST_SETS]
        test: Iterable[str] = chain.from_iterable(read_segments(read_lines(path)) for path in paths)
        test = map(map_apostrophe, test) if apostrophes == "map" else test
        counts[f"test.{language}"] = write_lines(folder / f"test.{language}", test)
    return counts


def tokenize_text(text: Path, folder: Path, workers: int) -> Counts:
    """Step 3: Moses tokens, case kept."""
    return map_splits(
        dict.fromkeys(("train", "test"), text),
        folder,
        LANGUAGES,
        lambda split, language: functools.partial(tokenize, language=language),
        workers,
    )


def divide_text(tokens: Path, text: Path, folder: Path) -> Counts:
    """Step 4: drops bad pairs, lower-cases, holds every 23rd pair out; the test set is only lower-cased."""
    counts = divide_training(tokens, text, folder, LANGUAGES, VALIDATION_EVERY, LIMITS.accept, lowercase=True)
    return counts | map_splits({"test": tokens}, folder, LANGUAGES, lambda split, language: str.lower, workers=1)


def binarize_text(
    subwords: Path, raw: dict[str, Path], codes: Path, folder: Path, joined: bool, workers: int
) -> Counts:
    """Step 7: the product."""
    from un.translation.preparation.binarization import SPLITS, binarize, copy_codes, copy_raw  # imports fairseq

    text = dict.fromkeys(SPLITS, subwords)
    counts = binarize(text, folder, LANGUAGES, joined=joined, workers=workers)
    copy_raw(raw, text, folder, LANGUAGES)
    copy_codes(codes, folder)
    return counts
