"""Kills, full disks and broken files in the real workflow: what the user sees, and that the same command then finishes
with masks that are those of an undisturbed run, to the bit."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from helpers import DRAW, Workflow

from sparseswaps.workflow.server import VARIABLE

# Imported by every Python at its start: kills a job once it has written half of an artifact, if its stage is to die.
KILLER = """
import os, pathlib, re, signal, sys

def replace(self, target, replace=pathlib.Path.replace):
    stage = pathlib.Path(re.sub(r"^tmp[^.]*\\.", "", pathlib.Path(sys.argv[0]).name)).stem
    mark = pathlib.Path(os.environ["TO_DIE"], stage)
    if self.suffix == ".partial" and "results" in self.parts and mark.exists():
        mark.unlink()
        for file in [self] if self.is_file() else self.glob("*.safetensors"):
            os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

pathlib.Path.replace = replace
"""


@contextmanager
def killing(stages: set[str]) -> Iterator[Path]:
    """Has one job of each stage killed in mid-write; a folder with a file for each that was not yet."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder, "sitecustomize.py").write_text(KILLER)
        marks = Path(folder, "marks")
        marks.mkdir()
        for stage in stages:
            (marks / stage).touch()
        patch.setenv("PYTHONPATH", folder)
        patch.setenv("TO_DIE", str(marks))
        patch.setenv(VARIABLE, "")  # a job then starts by itself, with the killer in it
        yield marks


@pytest.fixture
def study(finished, tmp_path) -> tuple[Workflow, dict]:
    """A directory of its own for one cell of the study `finished`, with nothing in it yet."""
    (tmp_path / "study").mkdir()
    return Workflow(tmp_path / "study"), finished[1] | {"patterns": ["2:4"], "refinements": {"swaps": {}}}


def final(undisturbed: Workflow, workflow: Workflow) -> set[str]:
    """The names of the tensor files that stand under their final names, each to the bit as in the undisturbed run."""
    found = {path.relative_to(workflow.folder) for path in workflow.folder.glob("results/tiny/**/*.safetensors")}
    found = {path for path in found if not any(part.endswith(".partial") for part in path.parts)}
    assert not [f for f in found if (workflow.folder / f).read_bytes() != (undisturbed.folder / f).read_bytes()]
    return {path.name for path in found}


COMPLETE = {f"{name}.safetensors" for name in ("samples", "block00", "block01", "masks", "model")}
SAMPLES, GRAM = DRAW / "samples.safetensors", DRAW / "gram"
WARM = DRAW / "2of4/wanda/masks/block00.safetensors"
MASKS = DRAW / "2of4/wanda/swaps/masks.safetensors"


@pytest.mark.slow
def test_a_job_of_every_stage_killed_in_mid_write(study, finished):
    """The same command until it ends well."""
    workflow, config = study
    stages = {"model", "samples", "capture", "warmstart", "refine", "masks", "assemble", "perplexity"}
    stages |= {"harness", "drift", "tables", "figures", "report"}
    with killing(stages) as marks:
        left = len(stages)
        while (done := workflow.run(config, "--cores", "2", check=False)).returncode != 0:
            assert "Error in rule" in done.stdout
            final(finished[0], workflow)
            assert len(list(marks.iterdir())) < left, done.stdout
            left = len(list(marks.iterdir()))
        assert left == 0, list(marks.iterdir())
    assert final(finished[0], workflow) == COMPLETE
    assert not list(workflow.folder.rglob("*.partial"))


@pytest.mark.slow
def test_a_job_of_every_further_stage_killed_in_mid_write(further, tmp_path):
    """Within one run, which repeats what fails, as profiles/slurm does."""
    undisturbed, config, targets = further
    workflow = undisturbed.copy(tmp_path / "copy")
    for made in [*workflow.folder.rglob("allocation.json"), *workflow.folder.rglob("every+ls")]:
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    stages = {"allocation", "warmstart", "refine", "masks", "reconstruct", "chain", "assemble"}
    with killing(stages) as marks:
        done = workflow.run(config, "--cores", "2", "--retries", "1", "--", *targets)
        assert not list(marks.iterdir())
    assert done.stdout.count("Error in rule") == len(stages)
    final(undisturbed, workflow)
    assert len(list(workflow.folder.rglob("every+ls/**/*.safetensors"))) == 2 * 2 + 2 + 2 + 2


def test_what_follows_a_killed_job_does_not_pass_for_current(finished, tmp_path):
    """Snakemake records the changed parameters of a job that failed, and does not miss its output while the artifacts
    below it are there."""
    workflow, config = finished[0].copy(tmp_path / "copy"), finished[1] | {"batch_size": 2}
    planned = workflow.planned(config, MASKS)
    assert planned == {"capture": 1, "warmstart": 2, "refine": 2, "masks": 1}
    with killing({"capture"}) as marks:
        assert workflow.run(config, "--cores", "2", "--", MASKS, check=False).returncode != 0
        assert not list(marks.iterdir())
    assert workflow.planned(config, MASKS) == planned


@contextmanager
def running(workflow: Workflow, config: dict, target: Path, until: Path) -> Iterator[subprocess.Popen]:
    """Snakemake in the background, in a process group of its own, once there is a certain file."""
    process = workflow.start(config, "--cores", "2", "--", target)
    try:
        while not (workflow.folder / until).exists():
            assert process.poll() is None, (workflow.folder / "output").read_text()
            time.sleep(0.02)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also the jobs that it left behind
        process.wait()


def test_snakemake_killed_then_interrupted_from_the_keyboard_and_a_second_one_beside_it(study, finished):
    workflow, config = study
    with running(workflow, config, MASKS, until=SAMPLES) as process:
        assert "Directory cannot be locked" in workflow.fail(config, "--cores", "1", "--", MASKS)
        assert process.poll() is None
        process.kill()  # its jobs end with it
        process.wait()
        assert "--unlock" in workflow.fail(config, "--cores", "1", "--", MASKS)
        workflow.run(config, "--unlock")
        shutil.rmtree((workflow.folder / WARM).parent, ignore_errors=True)
        with running(workflow, config, MASKS, until=WARM) as again:
            os.killpg(again.pid, signal.SIGINT)
            assert again.wait(timeout=100) != 0
            assert "warmstart" in (workflow.folder / "output").read_text()
        final(finished[0], workflow)
        workflow.run(config, "--cores", "2", "--", MASKS)
    assert final(finished[0], workflow) == COMPLETE - {"model.safetensors"}
    assert workflow.planned(config, MASKS) == {}


@contextmanager
def small_disk(folder: Path, free: int, aside: Path) -> Iterator[Callable[[str], None]]:
    """Puts a folder on a disk with `free` bytes left, by way of `aside`; what is given changes how it is mounted."""
    folder.rename(aside)
    folder.mkdir()
    held = sum(-path.stat().st_size // 4096 * -4096 for path in aside.rglob("*") if path.is_file())
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={held + free}", "tmpfs", str(folder)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        folder.rmdir()
        aside.rename(folder)
        pytest.skip("needs to mount a file system, which takes the superuser")
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
        shutil.rmtree(aside)
        shutil.copytree(folder, aside)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
        aside.rename(folder)


@pytest.mark.parametrize(
    ("disk", "free", "before", "target", "error", "after"),
    [
        ("results/tiny", 30_000, "rw", GRAM, "No space left on device", "size=1G"),
        ("results/tiny/stdlib", 30_000, "rw", MASKS.with_name("checkpoint"), "No space left on device", "size=1G"),
        ("results", 1_000_000, "ro", WARM.parent, "Read-only file system", "rw"),
    ],
    ids=["capture", "assemble", "read-only"],
)
def test_a_disk_that_cannot_be_written(finished, tmp_path, disk, free, before, target, error, after):
    workflow, config = finished[0].copy(tmp_path / "copy"), finished[1]
    made = target / "block00.safetensors" if target == WARM.parent else target
    shutil.rmtree(workflow.folder / target)
    with small_disk(workflow.folder / disk, free, tmp_path / "aside") as remount:
        remount(before)
        assert error in workflow.fail(config, "--cores", "1", "--", made)
        assert not (workflow.folder / made).exists()
        remount(after)
        workflow.run(config, "--cores", "1", "--", made)
    assert final(finished[0], workflow) == COMPLETE


DAMAGES = {"60pct/wanda/none": "truncated", "60pct/wanda/swaps": "empty", "2of4/wanda/none": "bit flipped"}


@pytest.mark.parametrize(
    ("artifact", "file", "made_of_it"),
    [
        ("masks/block00.safetensors", "", "masks.safetensors"),
        ("checkpoint", "/model.safetensors", "perplexity/held_out.json"),
    ],
)
def test_broken_artifacts_are_set_aside_and_made_anew(finished, tmp_path, artifact, file, made_of_it):
    """The tests of the units have every way in which an artifact is broken."""
    workflow, config = finished[0].copy(tmp_path / "copy"), finished[1]
    place, broken = workflow.folder / DRAW, {}
    for cell, how in DAMAGES.items():
        (place / cell / made_of_it).unlink()
        damaged = Path(f"{place / cell / artifact}{file}")
        whole, middle = damaged.read_bytes(), damaged.stat().st_size // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        broken[cell] = {"truncated": whole[:middle], "empty": b"", "bit flipped": flipped}[how]
        damaged.write_bytes(broken[cell])
    command = ("--cores", "2", "--", *(DRAW / cell / made_of_it for cell in DAMAGES))
    said = workflow.fail(config, *command)
    ending = said.rpartition("Exiting because")[2]
    for cell, content in broken.items():
        assert f"logs/{(DRAW / cell).relative_to('results')}/" in ending  # the log of each of the failed jobs
        named = DRAW / cell / artifact
        assert re.search(f"error: {named}{file}: .* {named}.broken: ", said), cell
        aside = workflow.folder / f"{named}.broken"
        assert Path(f"{aside}{file}").read_bytes() == content
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    workflow.run(config, *command)
    assert final(finished[0], workflow) == COMPLETE
    assert all((place / cell / made_of_it).exists() for cell in DAMAGES)


def test_a_measurement_that_is_not_whole_is_named_and_made_anew(finished, tmp_path):
    workflow, config = finished[0].copy(tmp_path / "copy"), finished[1]
    table = "results/reports/tiny/tables/cells.csv"
    expected = (workflow.folder / table).read_bytes()
    (workflow.folder / table).unlink()
    for name in ("losses/block01.csv", "perplexity/held_out.json"):
        measured = DRAW / "2of4/wanda/none" / name
        file = workflow.folder / measured
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        said = workflow.fail(config, "--cores", "1", "--", table)
        assert re.search(f"tables: error: {measured}: .* {measured}.broken: ", said)
        assert not file.exists()
        if name.endswith(".csv"):  # which takes more to make anew
            file.write_bytes(whole)
    workflow.run(config, "--cores", "1", "--", table)
    assert (workflow.folder / table).read_bytes() == expected
