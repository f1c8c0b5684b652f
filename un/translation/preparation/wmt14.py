"""WMT14 English-German from the published corpora, as fairseq's example or as PowerNorm's.

Other sources, already put together by others, have a module of their own.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path

from un.translation.preparation.archives import extract
from un.translation.preparation.lines import read_lines, write_lines
from un.translation.preparation.pipeline import Recipe, prepare_text
from un.translation.preparation.sentences import Limits, read_segments
from un.translation.preparation.steps import Counts, Steps, compute_checksum

SERVER = "https://www.statmt.org"
URLS = {
    "training-parallel-europarl-v7.tgz": f"{SERVER}/wmt13/training-parallel-europarl-v7.tgz",
    "training-parallel-commoncrawl.tgz": f"{SERVER}/wmt13/training-parallel-commoncrawl.tgz",
    "training-parallel-nc-v12.tgz": "https://data.statmt.org/wmt17/translation-task/training-parallel-nc-v12.tgz",
    "training-parallel-nc-v9.tgz": f"{SERVER}/wmt14/training-parallel-nc-v9.tgz",
    "dev.tgz": "https://data.statmt.org/wmt17/translation-task/dev.tgz",
    "test-full.tgz": f"{SERVER}/wmt14/test-full.tgz",
}
# The training text is their concatenation in this order; the last name gets its version.
CORPORA = ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-{}.de-en")
NEWS_COMMENTARY = ("v12", "v9")  # v9 is what was there in 2014
TEST_FILES = {"en": "newstest2014-deen-src.en.sgm", "de": "newstest2014-deen-ref.de.sgm"}
VALIDATION = "newstest2013"

FAIRSEQ = Recipe(
    name="fairseq",
    data="wmt14_en_de",
    languages=("en", "de"),
    merges=40000,
    every=100,
    subword_limits=Limits(shortest=1, longest=250, ratio=1.5),
    normalize=True,
    split_hyphens=True,
)
POWERNORM = replace(
    FAIRSEQ,
    name="powernorm",
    merges=32764,
    every=None,
    word_limits=Limits(shortest=1, longest=80),  # PowerNorm states lengths only; the ratio is Moses' default
    subword_limits=None,
)
RECIPES = {recipe.name: recipe for recipe in (FAIRSEQ, POWERNORM)}


def list_archives(recipe: Recipe, news_commentary: str) -> list[str]:
    """Returns the names of the archives that a recipe needs, those of training first."""
    other = next(version for version in NEWS_COMMENTARY if version != news_commentary)
    needless = {f"training-parallel-nc-{other}.tgz", *(["dev.tgz"] if recipe.every else [])}
    return [archive for archive in URLS if archive not in needless]


def prepare(
    archives: Path, output: Path, recipe: Recipe = FAIRSEQ, news_commentary: str = "v12", workers: int = 1
) -> Path:
    """Runs all steps from the published archives to a folder for `data=wmt14_en_de`.

    Args:
        archives: Folder with the archives under their published names.
        output: Folder to make; intermediate steps stay in `<output>.steps`.
        recipe: One of `RECIPES`, perhaps with other merges.
        news_commentary: Version of this corpus, one of `NEWS_COMMENTARY`.
        workers: Processes.

    Raises:
        ValueError: An archive is missing or not what it should be, or `output` is something else already.
    """
    paths = [archives / name for name in list_archives(recipe, news_commentary)]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"no archive {path}; get {URLS[path.name]} or use --download")
    corpora = [name.format(news_commentary) for name in CORPORA]
    names = [f"{corpus}.{language}" for corpus in corpora for language in recipe.languages]
    names += TEST_FILES.values()
    names += [] if recipe.every else [f"{VALIDATION}.{language}" for language in recipe.languages]

    def read_text(folder: Path) -> Counts:
        counts = {}
        for language in recipe.languages:
            split_lines = {
                "train": chain.from_iterable(read_lines(unpacked / f"{corpus}.{language}") for corpus in corpora),
                "valid": read_lines(unpacked / f"{VALIDATION}.{language}"),
                "test": read_segments(read_lines(unpacked / TEST_FILES[language])),
            }
            for split in recipe.given_splits:
                counts[f"{split}.{language}"] = write_lines(folder / f"{split}.{language}", split_lines[split])
        return counts

    steps = Steps(output, {path.name: compute_checksum(path) for path in paths})
    unpacked = steps.run("1-unpacked", {"files": names}, lambda folder: extract(paths, names, folder))
    text = steps.run("2-text", {}, read_text)
    return prepare_text(steps, text, recipe, {"news_commentary": news_commentary}, workers)
