"""Perplexity and lm-eval tasks of a model, computed block after block.

May import: base, layer, model, calibration.
"""
