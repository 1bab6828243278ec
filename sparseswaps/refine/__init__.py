"""1-swap refinement of pruning masks (SparseSwaps, arXiv 2512.10922): the public functions and their result."""

from sparseswaps.refine.engine import CertificateError, Refinement, Stop, eliminate, refine, walk

__all__ = ["CertificateError", "Refinement", "Stop", "eliminate", "refine", "walk"]
