import sys

sys.path.insert(0, f"{snakemake.scriptdir}/..")
from sparseswaps.workflow.run import run

run("drift", snakemake)
