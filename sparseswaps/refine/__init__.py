"""1-swap refinement of pruning masks (SparseSwaps, arXiv 2512.10922): the public function and its result."""

from sparseswaps.refine.engine import Refinement, Stop, refine

__all__ = ["Refinement", "Stop", "refine"]
