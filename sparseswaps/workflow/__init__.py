"""Studies and Snakemake: configuration, grid of cells, stages, jobs, artifacts, plan. No other folder knows of them.

May import: every folder.
"""
