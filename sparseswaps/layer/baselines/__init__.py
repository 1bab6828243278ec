"""Methods to compare with: SparseGPT and ADMM, each a mask and a weight update, and DSnoT, a refinement.

All functions take `weight` [d_out, d_in] of any floating dtype and `gram` [d_in, d_in], float32 or float64, on one
device. Masks are boolean [d_out, d_in], True where kept. New weights are float32, exactly zero outside the mask.
`damping` is added to the diagonal of the Gram matrix, as a share of its mean. `progress` receives the number of rows
that are done. All raise InputError as `gram.validate_layer`, and for a pattern that does not divide d_in.

May import: base, and the other modules of layer.
"""
