"""Folds the norms of a trained model into its linear layers and convolutions, so that inference has none left."""

from un.folding.fold import fold_norms
from un.folding.report import FoldReport, FoldRow
from un.folding.scale_shift import ScaleShift

__all__ = ["FoldReport", "FoldRow", "ScaleShift", "fold_norms"]
