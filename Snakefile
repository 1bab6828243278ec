"""SparseSwaps: warm-start pruning masks, refined by exact 1-swaps, assembled, evaluated and reported.

model -> samples -> capture -> warmstart -> refine (-> reconstruct) -> masks -> assemble -> evaluate -> tables -> report
"""

import sys

from snakemake.utils import min_version

min_version("9.27")

sys.path.insert(0, str(workflow.current_basedir))  # the package need not be installed

from sparseswaps.base.errors import InputError
from sparseswaps.workflow.server import start_server
from sparseswaps.workflow.study import load_study
from sparseswaps.workflow.terminal import show_time_left

if not workflow.overwrite_configfiles:  # --configfile replaces the embedded default, it is not merged into it

    configfile: "config.yaml"


try:
    STUDY = load_study(config)
except InputError as error:
    raise WorkflowError(str(error)) from None


pathvars:
    study=f"reports/{STUDY.name}",
    report="<results>/<study>",
    draw="{model}/{calibration}/seed{seed}",
    start="<draw>/{pattern}/{warmstart}",
    refined="<start>/{refinement}",
    rebuilt="<start>/{refinement}+{reconstruction}",
    cell="<start>/{method}",


resource_scopes:
    gpu="local",
    gpu_mb="local",


include: "rules/common.smk"
include: "rules/model.smk"
include: "rules/samples.smk"
include: "rules/capture.smk"
include: "rules/allocation.smk"
include: "rules/warmstart.smk"
include: "rules/refine.smk"
include: "rules/reconstruct.smk"
include: "rules/chain.smk"
include: "rules/masks.smk"
include: "rules/assemble.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/plan.smk"


# `wildcard_constraints` must come after the `include` lines. Snakemake otherwise ignores them for wildcards inside a
# pathvar.
wildcard_constraints:
    model="|".join(map(re.escape, STUDY.models)),
    calibration=r"[^/]+",
    seed=r"\d+",
    pattern="|".join(map(re.escape, GRID.patterns)),
    warmstart=r"[^/]+",
    refinement=r"[^/+]+",
    reconstruction=r"[^/+]+",
    method=r"[^/]+",
    block=r"block\d+",
    variant=r"dense|[^/]+/seed\d+/[^/]+/[^/]+/[^/]+",
    text=r"[^/]+",


onstart:
    start_server(workflow)
    show_time_left(workflow, threads=STUDY.threads, gpu=STUDY.gpu)


onsuccess:
    report = Path(f"results/reports/{STUDY.name}").resolve()
    # `--touch` succeeds without making the report.
    if any(job.name == "report" for job in workflow.dag.jobs) and (report / "report.html").is_file():
        first_table = (report / "tables/summary.md").read_text().split("\n### ")[0]
        print(f"{first_table}\nThe report is {report / 'report.html'}")


onerror:
    for path in sorted(path for job in workflow.scheduler.failed for path in job.log):
        print(f"A job failed. Its log: {path}")
    print("Run the same command again to resume; finished jobs are kept.")


rule all:
    default_target: True
    input:
        "<report>/report.html",
