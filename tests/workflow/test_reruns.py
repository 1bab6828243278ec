"""What runs again after a change: dry runs of the real workflow, each against the exact list of its jobs."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
from helpers import DRAW, REPOSITORY, Workflow, planned_jobs

from sparseswaps.workflow.code import ROOT, reachable
from sparseswaps.workflow.provenance import ALWAYS
from sparseswaps.workflow.stages import STAGES

# The study `finished`: 2 decoder blocks, 2 patterns, 1 warm start, 2 refinements; 4 cells and the dense model.
PAGES = {"figures": 1, "report": 1}
REPORT = {"tables": 1} | PAGES
MASKS = {"masks": 4, "assemble": 4}
CELLS_EVALUATED = {"perplexity": 4, "harness": 4, "drift": 4}
EVALUATED = {"perplexity": 5, "harness": 5, "drift": 4}
REFINED = {"refine": 8} | MASKS | CELLS_EVALUATED | REPORT
MASKED = {"warmstart": 4} | REFINED
CAPTURED = {"capture": 1} | MASKED
SAMPLED = {"samples": 1} | CAPTURED
EVERYTHING = {"model": 1} | SAMPLED | EVALUATED


def nested(config: dict, path: str, value) -> dict:
    """A configuration with one value changed, named by its keys with dots between them."""
    name, _, rest = path.partition(".")
    changed = deepcopy(config)
    key = int(name) if isinstance(config, list) else name
    changed[key] = nested({} if name not in config and key == name else changed[key], rest, value) if rest else value
    return changed


OF_TWO_CELLS = {"refine": 4, "masks": 2, "assemble": 2, "perplexity": 2, "harness": 2, "drift": 2} | REPORT
SETTINGS = {
    "models.tiny.trust_remote_code": (True, EVERYTHING),
    "calibrations.stdlib.samples": (9, SAMPLED),
    "activations": ("disk", CAPTURED | EVALUATED),
    "dtype": ("checkpoint", CAPTURED | EVALUATED),
    "batch_size": (2, CAPTURED | {"perplexity": 5}),
    "evaluation.drift": (3, {"drift": 4} | REPORT),
    "threads": (2, CAPTURED | EVALUATED),
    "gpu": (True, CAPTURED | EVALUATED),
    "refinements.swaps.max_swaps": (3, OF_TWO_CELLS),
    "evaluation.lm_eval.batch_size": (2, {"harness": 5} | REPORT),
    "evaluation.perplexity.held_out.windows": (9, {"perplexity": 5} | REPORT),
    "evaluation.lm_eval.limit": (5, {"harness": 5} | REPORT),
    "published": (None, REPORT),
    "figures.width": (5.5, PAGES),
    "figures.dpi": (300, PAGES),
    # New cells alone: of a pattern and a warm start 1 x 2 blocks are masked, 2 x 2 refined, 2 cells evaluated.
    "patterns": (["60%", "2:4", "50%"], {"warmstart": 2} | OF_TWO_CELLS),
    "warmstarts": (["wanda", "ria"], MASKED),
    "refinements.dsnot.method": ("dsnot", OF_TWO_CELLS),
    "evaluation.perplexity.more": ({"text": "embedded", "seqlen": 16, "windows": 2}, {"perplexity": 5} | REPORT),
    "name": ("another", REPORT),
    # A new model runs its own cells alone; the embedded one has 4 blocks.
    "models.other.source": ("embedded", EVERYTHING | EVALUATED | {"warmstart": 8, "refine": 16}),
}


# What the dry run says: at the changed stage the setting, and below it the artifacts of the stage above.
REASONS = {
    "refinements.swaps.max_swaps": {"refine": "now: 'max_swaps=3'", "masks": "wanda/swaps/masks/block0"},
    "calibrations.stdlib.samples": {"samples": "now: 'samples=9'", "capture": "seed0/samples.safetensors"},
    "evaluation.lm_eval.limit": {"harness": "now: 'limit=5'", "tables": "swaps/lm_eval.json"},
    "figures.width": {"figures": "now: 'width=5.5'", "report": "reports/tiny/figures"},
}


def reasons(said: str) -> dict[str, str]:
    """Return the reason that a dry run prints for one job of each rule."""
    return dict(re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?(    reason: .*)", said, re.MULTILINE))


@pytest.mark.parametrize("path", SETTINGS)
def test_a_changed_setting(finished, path):
    workflow, config = finished
    value, expected = SETTINGS[path]
    said = workflow.run(nested(config, path, value), "-n").stdout
    assert planned_jobs(said) == expected
    for rule, text in REASONS.get(path, {}).items():
        assert text in reasons(said)[rule], said
        assert "code=" not in reasons(said)[rule]


# The study `further`: 2 patterns, of which one is in a chain of pruned blocks; one of 2 refinements gets new weights.
RECONSTRUCTED = {"reconstruct": 2, "assemble": 1}
CHAINED = {"chain": 2, "masks": 1, "assemble": 1}
FURTHER_REFINED = {"refine": 2, "masks": 1} | RECONSTRUCTED
FURTHER_MASKED = {"warmstart": 2} | FURTHER_REFINED | {"refine": 4, "masks": 2}
SWAPPED = {"stop": "held_out", "freeze": 0.05, "shrinkage": 0.1, "between_rows": True}
FURTHER_SETTINGS = {
    "patterns.0.owl.threshold": (3, {"allocation": 1} | FURTHER_MASKED),
    "patterns.1.layers.mlp": ("50%", {"allocation": 1} | CHAINED),
    "reconstructions.ls.damping": (0.02, RECONSTRUCTED | CHAINED | {"assemble": 2}),
    "refinements.dsnot.max_swaps": (9, {"refine": 2, "masks": 1}),
    "calibrations.chained.samples": (7, {"samples": 1} | CHAINED),
    # Two settings swap their values, and Snakemake compares a job's parameters as a set of values.
    "refinements.every": (SWAPPED, FURTHER_REFINED | CHAINED | {"masks": 2, "assemble": 2}),
}


@pytest.mark.parametrize("path", FURTHER_SETTINGS)
def test_a_changed_setting_of_further_stages(further, path):
    workflow, config, targets = further
    value, expected = FURTHER_SETTINGS[path]
    assert workflow.planned(nested(config, path, value), *targets) == expected


def test_a_changed_text_is_seen(further, tmp_path):
    workflow, config, targets = further[0].copy(tmp_path / "copy"), *further[1:]
    file = workflow.folder / "calibration.txt"
    os.utime(file)
    assert workflow.planned(config, *targets) == {}
    file.write_text(file.read_text().replace("7", "seven"))
    assert workflow.planned(config, *targets) == {"samples": 1} | CHAINED


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project, whose code a test may change."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy2(REPOSITORY / "Snakefile", folder)
    for name in ("rules", "scripts", "sparseswaps", "schemas", "envs", "profiles"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@contextmanager
def changed(file: Path, old: str = "", new: str = "") -> Iterator[None]:
    """Replace text of a file for a while, or add a line of code; the age, which must not count, stays what it was."""
    before, times = file.read_text(), file.stat()
    assert old in before
    try:
        file.write_text(before.replace(old, new) if old else f"{before}\n_LINE = 1\n")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        yield
    finally:
        file.write_text(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


JOBS = "sparseswaps/workflow/jobs"
CODE = {
    f"{JOBS}/model.py": EVERYTHING,
    "sparseswaps/calibration/sampling.py": SAMPLED | {"perplexity": 5},
    f"{JOBS}/samples.py": SAMPLED,
    f"{JOBS}/capture.py": CAPTURED,
    f"{JOBS}/warmstart.py": MASKED,
    f"{JOBS}/masks.py": MASKS | CELLS_EVALUATED | REPORT,
    f"{JOBS}/assemble.py": {"assemble": 4} | CELLS_EVALUATED | REPORT,
    "sparseswaps/evaluation/perplexity.py": {"perplexity": 5} | REPORT,
    "sparseswaps/evaluation/drift.py": {"drift": 4} | REPORT,
    "sparseswaps/evaluation/harness.py": {"harness": 5} | REPORT,
    f"{JOBS}/tables.py": REPORT,
    "sparseswaps/embedded/text/evaluation.jsonl": {"perplexity": 5} | REPORT,
    "sparseswaps/embedded/tasks/embedded_choice.jsonl": {"harness": 5} | REPORT,
    "sparseswaps/report/figures.py": PAGES,
    "sparseswaps/report/report.html.j2": {"report": 1},
}
FURTHER_CODE = {
    f"{JOBS}/allocation.py": {"allocation": 2} | FURTHER_MASKED | CHAINED | {"masks": 3, "assemble": 2},
    f"{JOBS}/reconstruct.py": RECONSTRUCTED,
    f"{JOBS}/chain.py": CHAINED,
}


@pytest.mark.parametrize("name", CODE)
def test_a_changed_line_of_code(finished, project, name):
    with changed(project / name):
        assert Workflow(finished[0].folder, project).planned(finished[1]) == CODE[name]


@pytest.mark.parametrize("name", FURTHER_CODE)
def test_a_changed_line_of_code_of_further_stages(further, project, name):
    workflow, config, targets = further
    with changed(project / name):
        assert Workflow(workflow.folder, project).planned(config, *targets) == FURTHER_CODE[name]


OF_BLOCKS = {"warmstart", "refine", "reconstruct", "chain"}
WITH_SWAPS = {"allocation", "warmstart", "refine", "chain"}  # greedy's elimination has the same engine
# The stages that compute with a file. CODE and FURTHER_CODE have the jobs that run after a change of each stage.
STAGES_OF = {
    "model/hub.py": {"model"},
    "calibration/capture.py": {"capture", "chain"},
    "workflow/jobs/block.py": OF_BLOCKS,
    "pruning/block.py": OF_BLOCKS,
    "layer/criteria.py": {"allocation", "warmstart", "chain"},
    "layer/baselines/sparsegpt.py": {"allocation", "warmstart", "reconstruct", "chain"},
    "layer/refinement.py": {"refine", "chain"},
    "layer/swaps/bounds.py": WITH_SWAPS,
    "layer/swaps/between_rows.py": WITH_SWAPS,
    "layer/reconstruction.py": {"reconstruct", "chain"},
    "evaluation/scores.py": {"perplexity", "harness"},
    "evaluation/lm.py": {"harness"},
    "report/page.py": {"report"},
    "pruning/model.py": set(),  # for those who run no workflow
    "workflow/plan/needs.py": set(),
    "base/progress.py": set(),
}


@pytest.mark.parametrize("name", STAGES_OF)
def test_the_stages_that_compute_with_a_file(name):
    code = {stage: reachable(f"workflow.jobs.{stage}", (*STAGES[stage].code, *ALWAYS)) for stage in STAGES}
    assert {stage for stage in STAGES if ROOT / name in code[stage]} == STAGES_OF[name]


def test_touched_modules_and_words_that_compute_nothing_rerun_nothing(finished, project):
    """tests/unit/workflow/test_provenance.py has every kind of words."""
    for file in project.rglob("sparseswaps/**/*.py"):
        os.utime(file)
    with changed(project / "sparseswaps/layer/gram.py", "is not symmetric", "is asymmetric"):
        assert Workflow(finished[0].folder, project).planned(finished[1]) == {}


def test_touch_without_a_report_prints_no_summary(finished, tmp_path):
    workflow, config = finished
    said = workflow.copy(tmp_path / "copy").run(config | {"name": "unmade"}, "--cores", "1", "--touch").stdout
    assert "The report is" not in said
    assert "Error" not in said


def test_a_touched_script_runs_again(finished, project):
    """Snakemake's own rule, which README states."""
    file = project / "scripts" / "tables.py"
    times = file.stat()
    os.utime(file)
    assert Workflow(finished[0].folder, project).planned(finished[1]) == REPORT
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_deleted_intermediates_come_back_when_asked_for_and_to_the_bit(finished, tmp_path):
    workflow, config = finished[0].copy(tmp_path / "copy"), finished[1]
    samples, gram, start = DRAW / "samples.safetensors", DRAW / "gram", DRAW / "60pct" / "wanda"
    masks = start / "swaps" / "masks" / "block00.safetensors"
    for path in (samples, gram, start / "masks", masks.parent):
        place = workflow.folder / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert workflow.planned(config) == {}
    assert workflow.planned(config, masks) == {"samples": 1, "capture": 1, "warmstart": 1, "refine": 1}
    workflow.run(config, "--cores", "2", "--", masks)
    again = [path.relative_to(workflow.folder) for path in workflow.folder.rglob("results/tiny/**/*.safetensors")]
    assert {masks, samples, gram / "block00.safetensors"} <= set(again)
    assert all((workflow.folder / path).read_bytes() == (finished[0].folder / path).read_bytes() for path in again)


def test_a_dry_run_names_changed_code(finished, project):
    with changed(project / JOBS / "refine.py"):
        said = Workflow(finished[0].folder, project).run(finished[1], "-n").stdout
    assert planned_jobs(said) == REFINED
    assert re.search("before: 'code=[0-9a-f]{8}' now: 'code=[0-9a-f]{8}'", reasons(said)["refine"])
    assert re.search("wanda/(swaps|none)/checkpoint", reasons(said)["perplexity"])


def test_no_rule_hides_a_change():
    """Snakemake sees no change past `ancient`, and what it restores for `update` passes for what a failed job made."""
    rules = "".join(file.read_text() for file in REPOSITORY.glob("rules/*.smk"))
    assert not re.search(r"\b(ancient|update)\(\"", rules)
