"""The page: opens offline, every number leads to its runs, every link leads somewhere."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.reports.runs import make_run, write_curve
from un.analysis.curves import draw_svg
from un.reports.comparison import Cell, Comparison, Line
from un.reports.page import MAX_PICTURES, render_page

PIXEL = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000049454e44ae426082")


class Reader(HTMLParser):
    """Collects tags, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.texts.append(data.strip())

    def list_values(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    runs = [make_run(folder / "runs dir", "norm=un,norm.window=4,16", seed, 50.0 + seed) for seed in (0, 1)]
    runs += [make_run(folder / "runs dir", "norm=layernorm", seed, 49.0) for seed in (0, 1)]
    runs += [make_run(folder / "runs dir", "norm=<script>alert(1)<", value=None)]
    bleu = {"experiment": "phrases", "task": "un.translation.module.Translation", "metrics": {"test/bleu": 33.0}}
    runs += [make_run(folder / "runs dir", "norm=un", **bleu)]
    for run in runs[:4]:
        write_curve(run, [10.0, 20.0, 30.0 + run.result.seed])
    (runs[0].folder / "figures").mkdir()
    (runs[0].folder / "figures/outliers.png").write_bytes(PIXEL)
    cells = (Cell(runs[:2], runs[2:4]), Cell(runs[-1:]))
    table = Comparison("window", "Windows", ("images", "text"), (Line("M = 4, 16", "un", cells),))
    return Reader(render_page([table], runs, folder / "report", draw_svg, ["x/result.json: Invalid JSON"]))


def test_nothing_comes_from_outside(page: Reader) -> None:
    assert all(not source or source.startswith("data:") for source in page.list_values("src"))
    addresses = [value for tag, attributes in page.tags if tag in ("a", "link", "use") for value in attributes.values()]
    assert not [address for address in addresses if address.startswith(("http", "//"))]
    assert not [tag for tag, attributes in page.tags if tag in ("script", "link") and attributes]


def test_links_lead_somewhere(page: Reader, folder: Path) -> None:
    (folder / "report").mkdir()
    identifiers = page.list_values("id")
    assert len(identifiers) == len(set(identifiers))
    links = page.list_values("href")
    inner = {link[1:] for link in links if link.startswith("#")}
    assert inner <= set(identifiers)
    files = [link for link in links if not link.startswith("#")]
    assert len(files) == 6 * 2 + 4  # folder and result.json of every run, and four metrics.csv
    assert all((folder / "report" / unquote(link)).exists() for link in files)


def test_numbers_and_problems_are_shown(page: Reader) -> None:
    for text in ("50.50 ± 0.71 †", "33.00 †", "diverged at step 7", "norm=<script>alert(1)<", "01234567"):
        assert text in page.texts
    assert "x/result.json: Invalid JSON" in page.texts
    assert "+1.50 [−4.85, +7.85]" in page.texts
    assert {"M = 4, 16", "LayerNorm"} <= set(page.texts)  # of the legends of curves
    assert "UN; window: 4,16" not in page.texts  # it stands in the table
    assert {task for value in page.list_values("data-task") for task in value.split()} == {"vision", "translation"}
    assert {"un", "layernorm"} <= set(page.list_values("data-norm"))


def test_pictures_are_embedded_up_to_a_limit(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.folder / "figures").mkdir()
    for index in range(MAX_PICTURES + 2):
        (run.folder / f"figures/{index:03}.png").write_bytes(PIXEL)
    page = Reader(render_page([], [run], tmp_path, draw_svg))
    assert sum(source.startswith("data:image/png;base64,iVBORw0KGgo") for source in page.list_values("src")) == 40
    assert "2 more are in the run folders." in page.texts


def test_curves_have_a_line_per_setting_and_the_ink_of_the_page(tmp_path: Path) -> None:
    runs = {
        name: [make_run(tmp_path, f"norm={name}", seed) for seed in (0, 1)] for name in ("un", "mabn", "dyt", "rms")
    }
    for run in (*runs["un"], runs["mabn"][0]):
        write_curve(run, [10.0, 20.0 + run.result.seed])
    (runs["rms"][0].folder / "metrics.csv").write_bytes(b"\xff\xfe,val/acc1")
    (runs["rms"][1].folder / "metrics.csv").write_text("step,val/acc1\n1,x\n")
    folders = {name: [run.folder for run in group] for name, group in runs.items()}
    svg = draw_svg(folders, "val/acc1", "c1")
    assert svg is not None
    assert svg == draw_svg(folders, "val/acc1", "c1")
    for text in ("currentColor", ">2 of 4 settings<", ">un<", ">mabn<", ">top-1 accuracy (%)<"):
        assert text in svg
    assert ">dyt<" not in svg
    assert draw_svg(folders, "val/bleu", "c2") is None
