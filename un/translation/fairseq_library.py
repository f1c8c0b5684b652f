"""The one place that imports fairseq.

Its import registers some thirty entries in Hydra's ConfigStore, among them `config`, `task` and `optimizer/adam`, which
Hydra would from then on merge into files of the same name, and configures the root logger. Both are restored here.
Every other module imports the names of fairseq from this one, which takes seconds.
"""

# ruff: noqa: F401  the names are for other modules

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator

from hydra.core.config_store import ConfigStore


@contextlib.contextmanager
def restore_global_state() -> Iterator[None]:
    """Restores Hydra's ConfigStore and logging at the end; meanwhile there are no warnings and no log."""
    store, root = ConfigStore.instance(), logging.getLogger()
    repo, handlers, level = copy.deepcopy(store.repo), root.handlers[:], root.level
    disabled = root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        store.repo = repo
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)


with restore_global_state():
    try:
        import fairseq  # its parts are complete only after the whole
    except ImportError as error:
        raise ImportError(f"translation needs fairseq, which cannot be imported ({error}): make translation") from error
    from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
    from fairseq.data import Dictionary, LanguagePairDataset, data_utils, indexed_dataset
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, register_model, register_model_architecture
    from fairseq.models.transformer import (
        TransformerConfig,
        TransformerDecoderBase,
        TransformerEncoderBase,
        TransformerModel,
    )
    from fairseq.modules import SinusoidalPositionalEmbedding
    from fairseq.sequence_generator import SequenceGenerator

# fairseq's attention masks padding by flags and the future by numbers, about which torch warns.
warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask", UserWarning)
