"""Fold BatchNormalization into the weights around it, and prove that nothing else changed."""

from .fold import FoldPass, fold

__version__ = "0.1.0"
__all__ = ["FoldPass", "fold"]
