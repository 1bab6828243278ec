"""Methods to compare with, each a mask and, where the method has one, a weight update: SparseGPT, ADMM, DSnoT.

May import: base, and the other modules of layer.
"""
