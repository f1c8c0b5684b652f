"""Keeps what libraries say apart from what a user needs to read."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# Advice that does not apply here.
IGNORED_WARNINGS = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*treespec, LeafSpec.*",
    ".*exists and is not empty.*",
    ".*sync_dist=True.*",  # torchmetrics has reduced them already
    ".*Grad strides do not match bucket view strides.*",  # of DDP and a weight with an axis of size 1
    ".*mismatched key_padding_mask and attn_mask.*",  # inside fairseq
)
LIBRARY_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")


def log_to_files(text: str) -> None:
    """Writes to the run's log but not to the console."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord(__name__, logging.INFO, __file__, 0, text, None, None))


def quiet_libraries() -> None:
    """Leaves only warnings of the libraries, each once and in the log, too."""
    for name in LIBRARY_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report that trainer.profiler asks for
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    logging.captureWarnings(True)


@contextlib.contextmanager
def hide_output() -> Iterator[None]:
    """Hides whatever is printed, logged or warned of, as by exporters that report on every step and failure."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
