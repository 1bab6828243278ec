"""SparseSwaps: warm-start pruning masks, refined by exact 1-swaps, assembled, evaluated and reported.

model -> samples -> capture -> warmstart -> refine (-> reconstruct) -> masks -> assemble -> evaluate -> tables -> report
"""

import sys

sys.path.insert(0, workflow.basedir)  # so that the workflow runs from a checkout that is not installed, too

from sparseswaps.workflow import config as study
from sparseswaps.base.errors import InputError

if not workflow.overwrite_configfiles:  # --configfile replaces the embedded default, it is not merged into it

    configfile: "config.yaml"


try:
    config = study.check(config)
except InputError as error:
    sys.exit(f"error: {error}")


pathvars:
    study=f"reports/{config['name']}",
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
include: "rules/keys.smk"
include: "rules/workdir.smk"
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
include: "rules/embedded.smk"
include: "rules/plan.smk"


# After the rules: Snakemake gives constraints to the wildcards within a pathvar only once it stands in a rule.
wildcard_constraints:
    model="|".join(map(re.escape, config["models"])),
    calibration=r"[^/]+",
    seed=r"\d+",
    pattern="|".join(map(re.escape, PATTERNS)),
    warmstart=r"[^/]+",
    refinement=r"[^/+]+",
    reconstruction=r"[^/+]+",
    method=r"[^/]+",
    block=r"block\d+",
    variant=r"dense|[^/]+/seed\d+/[^/]+/[^/]+/[^/]+",
    text=r"[^/]+",


rule all:
    default_target: True
    input:
        "<report>/report.html",
