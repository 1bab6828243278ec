"""Hugging Face folders and models: description, checkpoints, weights block by block, mask files.

May import: base, embedded, layer.
"""
