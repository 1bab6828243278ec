"""Baselines: SparseGPT and ADMM, each a mask and a weight update, ALPS, a mask, and DSnoT, a refinement.

All functions take `weight` [d_out, d_in] of any floating dtype and a Gram matrix [d_in, d_in], float32 or float64, on
one device: `gram`, or for `dsnot` the `gram` of its `inputs`. Masks are boolean [d_out, d_in], True where kept. New
weights are float32, exactly zero outside the mask. `damping` is added to the diagonal of the Gram matrix, as a share of
its mean. `progress` receives the number of rows that are done. All raise InputError as `gram.validate_layer`, and for a
pattern that does not divide d_in.

May import: base, and the other modules of layer.
"""
