"""Run a stage's job: for a rule's script, or by hand for one artifact.

By hand, without Snakemake, in a debugger for example:

    python -m sparseswaps.workflow.run refine results/embedded/stdlib/seed0/60pct/wanda/swaps/masks/block00.safetensors

makes the artifact again from the record that its last job left beside its log (`logs/.../refine.block00.json`).
"""

import sys
from pathlib import Path
from typing import Any

from sparseswaps.base.files import read_json
from sparseswaps.workflow.job import Job, run_job
from sparseswaps.workflow.server import run_forked


def run(stage: str, snakemake: Any) -> None:
    """Run the job of a rule's script, with Snakemake's object of that name."""
    paths = [
        {name: path if isinstance(path, str) else list(path) for name, path in files.items()}
        for files in (snakemake.input, snakemake.output)
    ]
    params = [str(value) for value in snakemake.params]
    gpu, estimate = bool(snakemake.resources.get("gpu")), snakemake.resources.get("estimate_ms", 0) / 1000
    job = Job(stage, *paths, params, dict(snakemake.wildcards.items()), snakemake.log[0], gpu, estimate)
    status = run_forked(job)
    if status is None:
        run_job(job)
    else:
        sys.exit(status)


def main(arguments: list[str]) -> None:
    """Make an artifact again, from the record of the job that made it last."""
    if len(arguments) != 2:
        sys.exit("usage: python -m sparseswaps.workflow.run STAGE OUTPUT")
    stage, output = arguments
    for path in sorted(Path("logs").rglob(f"{stage}*.json")):
        record = read_json(path)
        outputs = [p for paths in record["outputs"].values() for p in ([paths] if isinstance(paths, str) else paths)]
        if any(Path(output).is_relative_to(made) or Path(made).is_relative_to(output) for made in outputs):
            return run_job(Job(**{name: record[name] for name in Job.__dataclass_fields__ if name in record}))
    sys.exit(f"error: no job of stage {stage} in logs/ made {output}; run snakemake for it once")


if __name__ == "__main__":
    main(sys.argv[1:])
