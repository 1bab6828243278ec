"""From text to Gram matrices and hidden states: documents, sampled sequences, block-by-block capture.

May import: base, embedded, layer, model.
"""
