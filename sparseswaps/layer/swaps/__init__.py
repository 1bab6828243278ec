"""The swap engine: SparseSwaps (arXiv 2512.10922) on one weight matrix, with a backend for each kind of device.

May import: base, and layer.pattern and layer.gram.
"""
