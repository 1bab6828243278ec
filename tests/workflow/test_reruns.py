"""What runs again after a change: dry runs of the real workflow, each against the exact list of its jobs."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
from helpers import REPOSITORY, Workflow, write_tiny_model

# The study `finished`: 2 decoder blocks, 2 patterns, 1 warm start, 2 refinements; 4 cells and the dense model.
PAGES = {"figures": 1, "report": 1}
REPORT = {"tables": 1} | PAGES
MASKS = {"masks": 4, "assemble": 4}
CELLS_EVALUATED = {"perplexity": 4, "harness": 4}
EVALUATED = {"perplexity": 5, "harness": 5}
REFINED = {"refine": 8} | MASKS | CELLS_EVALUATED | REPORT
MASKED = {"warmstart": 4} | REFINED
CAPTURED = {"capture_tiny": 1} | MASKED
SAMPLED = {"samples": 1} | CAPTURED
EVERYTHING = {"model": 1} | SAMPLED | EVALUATED


def nested(config: dict, path: str, value) -> dict:
    """A configuration with one value changed, named by its keys with dots between them."""
    name, _, rest = path.partition(".")
    changed = deepcopy(config)
    key = int(name) if isinstance(config, list) else name
    changed[key] = nested({} if name not in config and key == name else changed[key], rest, value) if rest else value
    return changed


OF_TWO_CELLS = {"refine": 4, "masks": 2, "assemble": 2, "perplexity": 2, "harness": 2} | REPORT
SETTINGS = {
    "models.tiny.trust_remote_code": (True, EVERYTHING),
    "calibrations.stdlib.samples": (9, SAMPLED),
    "activations": ("disk", CAPTURED),
    "batch_size": (2, CAPTURED | {"perplexity": 5}),
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
}


@pytest.mark.parametrize("path", SETTINGS)
def test_a_changed_setting(finished, path):
    workflow, config = finished
    value, expected = SETTINGS[path]
    assert workflow.planned(nested(config, path, value)) == expected


def test_a_new_model_runs_its_own_cells_alone(finished, tmp_path):
    workflow, config = finished
    other = write_tiny_model(tmp_path / "other", seed=1)
    of_other = {name.replace("tiny", "other"): jobs for name, jobs in (EVERYTHING | EVALUATED).items()}
    assert workflow.planned(nested(config, "models.other.source", str(other))) == of_other


# The study `further`: 2 patterns, of which one is in a chain of pruned blocks; one of 2 refinements gets new weights.
RECONSTRUCTED = {"reconstruct": 2, "assemble": 1}
CHAINED = {"chain_rebuilt_tiny": 1, "masks": 1, "assemble": 1}
FURTHER_REFINED = {"refine": 2, "masks": 1} | RECONSTRUCTED
FURTHER_MASKED = {"warmstart": 2} | FURTHER_REFINED | {"refine": 4, "masks": 2}
FURTHER_SETTINGS = {
    "patterns.0.owl.threshold": (3, {"allocation": 1} | FURTHER_MASKED),
    "patterns.1.layers.mlp": ("50%", {"allocation": 1} | CHAINED),
    "reconstructions.ls.damping": (0.02, RECONSTRUCTED | CHAINED | {"assemble": 2}),
    "refinements.dsnot.max_swaps": (9, {"refine": 2, "masks": 1}),
    "calibrations.chained.samples": (7, {"samples": 1} | CHAINED),
}


@pytest.mark.parametrize("path", FURTHER_SETTINGS)
def test_a_changed_setting_of_further_stages(further, path):
    workflow, config, targets = further
    value, expected = FURTHER_SETTINGS[path]
    assert workflow.planned(nested(config, path, value), *targets) == expected


def test_two_settings_that_swap_their_values_are_seen(further):
    """Snakemake compares a job's parameters as a set of values."""
    workflow, config, targets = further
    every = config["refinements"]["every"]
    swapped = every | {"freeze": every["shrinkage"], "shrinkage": every["freeze"]}
    changed = nested(config, "refinements.every", swapped)
    assert workflow.planned(changed, *targets) == FURTHER_REFINED | CHAINED | {"masks": 2, "assemble": 2}


def test_a_changed_text_is_seen(further, tmp_path):
    workflow, config, targets = further[0].copy(tmp_path / "copy"), *further[1:]
    file = workflow.folder / "calibration.txt"
    touch(file)
    assert workflow.planned(config, *targets) == {}
    file.write_text(file.read_text().replace("7", "seven"))
    assert workflow.planned(config, *targets) == {"samples": 1} | CHAINED


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project, whose code a test may change."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy2(REPOSITORY / "Snakefile", folder)
    for name in ("rules", "scripts", "sparseswaps", "schemas", "envs", "profiles", "benchmarks"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@contextmanager
def changed(file: Path, text: str) -> Iterator[None]:
    """A file that ends with further text for a while, and seems as old as it was: it is not its age that counts."""
    before, times = file.read_bytes(), file.stat()
    try:
        file.write_bytes(before + text.encode())
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def touch(file: Path) -> None:
    os.utime(file)


CODE = {
    "scripts/model.py": EVERYTHING,
    "sparseswaps/hub.py": EVERYTHING,
    "sparseswaps/text.py": SAMPLED | {"perplexity": 5},
    "scripts/samples.py": SAMPLED,
    "scripts/capture.py": CAPTURED,
    "sparseswaps/capture.py": CAPTURED,
    "scripts/warmstart.py": MASKED,
    "sparseswaps/baselines/sparsegpt.py": MASKED,
    "scripts/refine.py": REFINED,
    "sparseswaps/layerwise.py": REFINED,
    "scripts/masks.py": MASKS | CELLS_EVALUATED | REPORT,
    "scripts/assemble.py": {"assemble": 4} | CELLS_EVALUATED | REPORT,
    "sparseswaps/perplexity.py": {"perplexity": 5} | REPORT,
    "sparseswaps/embedded/tasks.py": {"tasks": 1, "harness": 5} | REPORT,
    "sparseswaps/harness.py": {"harness": 5} | REPORT,
    "sparseswaps/tables.py": REPORT,
    "sparseswaps/figures.py": PAGES,
    "sparseswaps/report.py": {"report": 1},
    "sparseswaps/report.html.j2": {"report": 1},
    "sparseswaps/pruning.py": {},  # for those who run no workflow
}
FURTHER_CODE = {
    "scripts/allocation.py": {"allocation": 2} | FURTHER_MASKED | CHAINED | {"masks": 3, "assemble": 2},
    "scripts/reconstruct.py": RECONSTRUCTED,
    "scripts/chain.py": CHAINED,
    "sparseswaps/recipe.py": CHAINED,
    "sparseswaps/rebuild.py": RECONSTRUCTED | CHAINED | {"assemble": 2},
}


@pytest.mark.parametrize("name", CODE)
def test_a_changed_line_of_code(finished, project, name):
    with changed(project / name, "\n_LINE = 1\n"):
        assert Workflow(finished[0].folder, project).planned(finished[1]) == CODE[name]


def test_a_new_measurement_of_what_zeros_are_worth_is_reported(finished, project):
    file = project / "benchmarks" / "results" / "inference-gpu.json"
    before = file.read_bytes() if file.is_file() else None
    file.write_text("{}")
    assert Workflow(finished[0].folder, project).planned(finished[1]) == {"report": 1}
    file.unlink() if before is None else file.write_bytes(before)


@pytest.mark.parametrize("name", FURTHER_CODE)
def test_a_changed_line_of_code_of_further_stages(further, project, name):
    workflow, config, targets = further
    with changed(project / name, "\n_LINE = 1\n"):
        assert Workflow(workflow.folder, project).planned(config, *targets) == FURTHER_CODE[name]


def test_comments_docstrings_and_touched_modules_rerun_nothing(finished, project):
    with ExitStack() as stack:
        for file in [*project.glob("scripts/*.py"), *project.rglob("sparseswaps/**/*.py")]:
            stack.enter_context(changed(file, "\n\n# why\ndef _unused() -> None:\n    pass\n"[:7]))
        file = project / "sparseswaps" / "layerwise.py"
        stack.callback(file.write_bytes, file.read_bytes())
        file.write_text(file.read_text().replace('"""', '"""Docs. ', 1))
        for file in project.rglob("sparseswaps/**/*.py"):
            touch(file)
        assert Workflow(finished[0].folder, project).planned(finished[1]) == {}


def test_a_touched_script_runs_again(finished, project):
    """Snakemake's own rule, which README states."""
    file = project / "scripts" / "tables.py"
    times = file.stat()
    touch(file)
    assert Workflow(finished[0].folder, project).planned(finished[1]) == REPORT
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_deleted_intermediates_come_back_when_asked_for_and_to_the_bit(finished, tmp_path):
    workflow, config = finished[0].copy(tmp_path / "copy"), finished[1]
    draw = Path("results/tiny/stdlib/seed0")
    masks = draw / "60pct" / "wanda" / "swaps" / "masks" / "block00.safetensors"
    for path in (draw / "samples.safetensors", draw / "gram", draw / "60pct" / "wanda" / "masks", masks.parent):
        place = workflow.folder / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert workflow.planned(config) == {}
    assert workflow.planned(config, masks) == {"samples": 1, "capture_tiny": 1, "warmstart": 1, "refine": 1}
    workflow.run(config, "--cores", "2", "--", masks)
    again = [path.relative_to(workflow.folder) for path in workflow.folder.rglob("results/tiny/**/*.safetensors")]
    assert {masks, draw / "samples.safetensors", draw / "gram" / "block00.safetensors"} <= set(again)
    assert all((workflow.folder / path).read_bytes() == (finished[0].folder / path).read_bytes() for path in again)


def test_results_whose_records_are_lost_are_not_taken_for_current(finished, tmp_path):
    """Snakemake takes artifacts that it has no record of for current, whatever they were made with."""
    workflow, config = finished[0].copy(tmp_path / "copy"), finished[1]
    shutil.rmtree(workflow.folder / ".snakemake")
    done = workflow.run(nested(config, "refinements.swaps.max_swaps", 3), "-n", check=False)
    assert done.returncode == 1
    assert "error: results/ is here, but not Snakemake's records" in done.stdout
    assert "Traceback" not in done.stdout
    workflow.run(config, "--touch", "--forceall", "--cores", "1")
    assert workflow.planned(config) == {}
    path = "refinements.swaps.max_swaps"
    assert workflow.planned(nested(config, path, 3)) == SETTINGS[path][1]


def test_every_rule_has_its_key_alone_for_a_parameter():
    """Snakemake does not see other values in an object, a path or what is derived from input; nor past `ancient`. And
    what it brings back for `update` after a failure passes for what the failed job made."""
    for file in REPOSITORY.glob("rules/*.smk"):
        text = file.read_text()
        assert not re.search(r"\b(ancient|update)\(\"", text)
        assert text.count("script:") == len(re.findall(r"params:\s+key=key(ed\(\w+_key|\()", text)), file
        assert text.count("params:") == text.count("script:"), file
