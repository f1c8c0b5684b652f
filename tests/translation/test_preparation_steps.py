import json

import pytest

from un.translation.preparation.steps import RECORD, Steps


class Chain:
    """Three steps that note when they run; each appends its setting to what the one before wrote."""

    def __init__(self, root):
        self.root, self.runs, self.lines = root, [], []

    def run(self, settings="abc", inputs="archive", fail_at=None):
        self.runs, self.lines = [], []
        steps = Steps(self.root / "product", {"input": inputs}, self.lines.append)
        before = None
        for number, setting in enumerate(settings, 1):

            def act(folder, number=number, setting=setting, before=before):
                self.runs.append(number)
                (folder / "text").write_text((before / "text").read_text() + setting if before else setting)
                if number == fail_at:
                    raise KeyboardInterrupt
                return {"characters": number}

            step = steps.finish if number == len(settings) else lambda *rest, name=str(number): steps.run(name, *rest)
            before = step({"setting": setting}, act)
        return before


@pytest.fixture
def chain(tmp_path):
    chain = Chain(tmp_path)
    chain.run()
    return chain


def test_a_finished_preparation_runs_no_step_again(chain):
    files = [line for line in chain.lines if line.startswith("  ")]
    assert chain.run() == chain.root / "product"
    assert chain.runs == []
    assert [line for line in chain.lines if line.startswith("  ")] == files


def test_an_interrupted_step_is_done_again_and_those_before_are_not(tmp_path):
    chain = Chain(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        chain.run(fail_at=2)
    assert not (tmp_path / "product.steps/2").exists()
    assert (tmp_path / "product.steps/2.partial/text").read_text() == "ab"
    product = chain.run()
    assert chain.runs == [2, 3]
    assert (product / "text").read_text() == "abc"
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("change", "again"),
    [({"settings": "axc"}, [2, 3]), ({"settings": "abx"}, [3]), ({"inputs": "x"}, [1, 2, 3])],
)
def test_a_changed_setting_redoes_its_step_and_all_that_follow(chain, change, again):
    chain.run(**change)
    assert chain.runs == again


def test_a_step_whose_file_was_lost_or_cut_is_done_again(chain):
    (chain.root / "product.steps/2/text").write_text("a")
    chain.run()
    assert chain.runs == [2]


def test_the_record_holds_settings_counts_and_checksums(chain):
    record = json.loads((chain.root / "product" / RECORD).read_text())
    assert record["setting"] == "c"
    assert record["counts"] == {"characters": 3}
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180
    assert record["files"] == {"text": {"bytes": 3, "sha256": digest}}
    assert record["inputs"] == {"input": "archive"}
    assert f"  {digest}  text (3 bytes)" in chain.lines


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "product").mkdir()
    (tmp_path / "product/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"product exists and holds no preparation\.json"):
        Chain(tmp_path).run()
    assert (tmp_path / "product/thesis.txt").read_text() == "years of work"
