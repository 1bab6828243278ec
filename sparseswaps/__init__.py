"""Pruning masks of large language models, refined by exact 1-swaps (arXiv 2512.10922)."""
