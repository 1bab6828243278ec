"""Errors, atomic files, progress, and batches that fit into memory: what every folder uses.

May import: nothing of this project.
"""
