"""Folds the norms of a trained model into its linear layers and convolutions, so that inference has none left."""

from un.folding.apply import ScaleShift
from un.folding.checkpoint import load_folded, save_folded
from un.folding.fold import fold_norms
from un.folding.report import FoldReport, FoldRow

__all__ = ["FoldReport", "FoldRow", "ScaleShift", "fold_norms", "load_folded", "save_folded"]
