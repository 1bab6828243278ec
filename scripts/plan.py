"""Rule plan: what the study needs, on standard output."""

from job import run

from sparseswaps.workflow.plan.plan import Planner, table


def main(snakemake, settings):
    print(table(Planner(settings["config"])), flush=True)
    return "printed"


run(snakemake, main)
