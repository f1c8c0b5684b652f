"""What several files share: made once, changed by nobody."""

import pytest

from tests.translation.tiny import make_model, make_unified, train_a_little, write_text_folder
from un.translation.data import TranslationDataModule


@pytest.fixture(scope="session")
def trained_model():
    """A model with UN that has learned to end sentences."""
    return train_a_little(make_model(make_unified, True))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Files `train`, `valid` and `test` of German and English, see `make_text`."""
    return write_text_folder(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def text_data(text_folder):
    """The module of `text_folder`, whose vocabulary is learned."""
    data = TranslationDataModule(str(text_folder), "de", "en", max_tokens=60, val_split="valid", bpe_merges=30)
    data.setup()
    return data
