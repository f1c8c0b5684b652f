"""The Python of the shorter pages works as it stands there; the longer pages have tests of their own."""

import re
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
TESTED_ELSEWHERE = {"add_a_norm", "library", "runs"}
SNIPPETS = {
    page.stem: snippets
    for page in sorted((ROOT / "docs").glob("*.md"))
    if (snippets := re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    and page.stem not in TESTED_ELSEWHERE
}


@pytest.mark.parametrize("page", SNIPPETS)
def test_a_snippet_works(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    images = torch.randn(48, 3, 32, 32)  # whose 240 tokens are more than the channels
    names = {"model": model, "example_inputs": images[:2], "batches": [images]}
    for snippet in SNIPPETS[page]:
        exec(snippet, names)
    assert capsys.readouterr().out
