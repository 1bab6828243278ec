"""One weight matrix: patterns, masks, Gram matrices, warm starts, swaps, reconstruction. Tensors in, tensors out.

May import: base.
"""
