"""Perplexity and lm-eval tasks of a model in memory.

May import: base, layer, model, calibration.
"""
