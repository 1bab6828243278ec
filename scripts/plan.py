import sys

sys.path.insert(0, f"{snakemake.scriptdir}/..")
from sparseswaps.workflow.plan.plan import print_plan

print_plan(snakemake.params.study)
