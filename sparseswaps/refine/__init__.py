"""1-swap refinement of pruning masks (SparseSwaps, arXiv 2512.10922): the public functions and their result."""

from sparseswaps.refine.certificate import CertificateError
from sparseswaps.refine.engine import Refinement, Stop, eliminate, refine, walk

__all__ = ["CertificateError", "Refinement", "Stop", "eliminate", "refine", "walk"]
