"""IWSLT14 German-English, as the official UN code prepares it (and fairseq's example, up to two options)."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from un.translation.preparation.archives import extract
from un.translation.preparation.lines import read_lines, write_lines
from un.translation.preparation.pipeline import Recipe, prepare_text
from un.translation.preparation.sentences import Limits, read_segments, strip_tags
from un.translation.preparation.steps import Counts, Steps, compute_checksum

URL = "https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz"
# The test set is their concatenation in this order.
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
TRAINING_FILE, TEST_FILE = "train.tags.de-en.{}", "IWSLT14.{}.de-en.{}.xml"

RECIPE = Recipe(
    name="un",
    data="iwslt14_de_en",
    languages=("de", "en"),
    merges=10000,
    every=23,
    word_limits=Limits(shortest=1, longest=175, ratio=1.5),
    lowercase=True,
)


def prepare(
    archive: Path, output: Path, recipe: Recipe = RECIPE, *, map_apostrophes: bool = True, workers: int = 1
) -> Path:
    """Runs all steps from the archive of the IWSLT 2014 evaluation to a folder for `data=iwslt14_de_en`.

    Args:
        archive: de-en.tgz.
        output: Folder to make; intermediate steps stay in `<output>.steps`, from which an interrupted preparation
            resumes.
        recipe: `RECIPE`, perhaps with other merges or separate dictionaries, as in fairseq's example.
        map_apostrophes: Whether ’ in the test text becomes ', as in fairseq's example. The official UN script keeps it
            in effect: its pattern is damaged and matches nothing.
        workers: Processes for tokenising and binarising.

    Raises:
        ValueError: The archive is not what it should be, or `output` is something else already.
    """
    if not archive.is_file():
        raise ValueError(f"no archive {archive}; get {URL} or use --download")
    names = [TRAINING_FILE.format(language) for language in recipe.languages]
    names += [TEST_FILE.format(name, language) for name in TEST_SETS for language in recipe.languages]
    choices = {"map_apostrophes": map_apostrophes}

    def read_text(folder: Path) -> Counts:
        counts = {}
        for language in recipe.languages:
            train = strip_tags(read_lines(unpacked / TRAINING_FILE.format(language)))
            counts[f"train.{language}"] = write_lines(folder / f"train.{language}", train)
            files = (read_lines(unpacked / TEST_FILE.format(name, language)) for name in TEST_SETS)
            test: Iterable[str] = chain.from_iterable(map(read_segments, files))
            test = (line.replace("’", "'") for line in test) if map_apostrophes else test
            counts[f"test.{language}"] = write_lines(folder / f"test.{language}", test)
        return counts

    steps = Steps(output, {archive.name: compute_checksum(archive)})
    unpacked = steps.run("1-unpacked", {}, lambda folder: extract([archive], names, folder))
    text = steps.run("2-text", choices, read_text)
    return prepare_text(steps, text, recipe, choices, workers)
