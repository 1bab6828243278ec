"""Whole blocks and whole models: warm start, refinement and reconstruction of all their layers.

May import: base, layer, model, calibration.
"""
