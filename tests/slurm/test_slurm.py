"""The workflow on a SLURM of one node, through profiles/slurm, gives the results of a local run."""

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pandas
import pytest
import yaml
from helpers import (
    REPOSITORY,
    STUDY,
    Workflow,
    bash,
    checkout,
    cluster_commands,
    code_blocks,
    tiny_study,
    write_tiny_model,
)
from safetensors.torch import load_file, save
from slurm_cluster import cluster, jobs, unavailable

from sparseswaps.base.files import read_json

pytestmark = pytest.mark.slurm

CPUS, BLOCKS = 4, 6
# The profile as it is, but for the seconds between two looks at the queue.
LOOKS = ("--slurm-init-seconds-before-status-checks", 10)
THROUGH_SLURM = ("--workflow-profile", REPOSITORY / "profiles" / "slurm", *LOOKS)
# The stages of `STUDY` that run many jobs to an allocation, one after another.
GROUPS = {
    "draw": ["model", "samples", "capture"],
    "start": ["warmstart", "refine", "reconstruct", "masks", "assemble"],
    "evaluations": ["perplexity", "harness", "drift"],
    "page": ["tables", "figures", "report"],
}
START = Path("results/tiny/stdlib/seed0/60pct/wanda")
FINISHED = re.compile(r"Finished jobid: \d+ \(Rule: refine\)")
MASKS = START / "swaps/masks.safetensors"


@pytest.fixture(scope="module", autouse=True)
def slurm():
    if reason := unavailable():
        pytest.skip(reason)
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="`pip install .[slurm]` has the plugin")
    with cluster(CPUS):
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> tuple[Workflow, dict]:
    """A tiny study, run on this machine up to its refined masks."""
    model = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=BLOCKS)
    config = tiny_study(model, patterns=["60%"], refinements={"swaps": {}}, evaluation={})
    workflow = Workflow(tmp_path_factory.mktemp("local"))
    workflow.run(config, "--cores", "2", "--", MASKS)
    return workflow, config


@pytest.fixture
def unrefined(local, tmp_path) -> Workflow:
    """The same, as it was before the refinement."""
    workflow = local[0].copy(tmp_path / "workflow")
    shutil.rmtree(workflow.folder / START / "swaps")
    return workflow


def until(true, process: subprocess.Popen | None = None, seconds: float = 900):
    """Return the value of `true()` once it is true; fail when a process has ended before, or after that time."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert process is None or process.poll() is None, "snakemake has ended"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


def refinements(since: int, state: str = "") -> list:
    """The jobs of rule refine that were submitted after so many others."""
    return [job for job in jobs()[since:] if job.what.startswith("rule_refine") and state in job.state]


def measurements(results: Path) -> dict[Path, object]:
    """What a study has found, by file: masks and weights, losses without seconds, perplexities and scores."""
    found = {}
    for path in results.rglob("*"):
        if path.parent.name in ("masks", "weights") or path.name == "masks.safetensors":
            found[path.relative_to(results)] = save(load_file(path))  # the tensors' bytes, without what made them
        elif path.parent.name == "losses":
            found[path.relative_to(results)] = pandas.read_csv(path).drop(columns="seconds").to_csv()
        elif path.parent.name == "perplexity" or path.name == "lm_eval.json":
            found[path.relative_to(results)] = read_json(path)["results" if path.name == "lm_eval.json" else "nll"]
    return found


def assert_same(found: dict[Path, object], expected: dict[Path, object]) -> None:
    """Bit by bit, every file of `found`."""
    assert found
    assert [path for path, value in found.items() if value != expected[path]] == []


def test_blocks_run_side_by_side_and_a_cancelled_one_is_given_more(local, unrefined):
    reference, config = local
    before = len(jobs())
    snakemake = unrefined.start(config, *THROUGH_SLURM, "--", MASKS)
    victim = until(lambda: refinements(before, "RUNNING"), snakemake)[0]
    subprocess.run(["scancel", victim.id], check=True)
    assert snakemake.wait(900) == 0, (unrefined.folder / "output").read_text()

    refined = refinements(before)
    again = [job for job in refined if job.what == victim.what]
    assert [job.state for job in again] == ["CANCELLED", "COMPLETED"]
    assert len(refined) == BLOCKS + 1
    memory = [int(job.memory.removesuffix("M")) for job in again]
    assert memory[1] == pytest.approx(1.5 * memory[0], abs=1)
    assert (again[0].limit, again[1].limit) == ("10:00", "15:00")
    # As many at a time as the cluster has processors, one each, though more were waiting.
    steps = Counter()
    for job in refined:
        assert job.cpus == 1
        steps[job.start] += 1
        steps[job.end] -= 1
    assert max(accumulate(steps[moment] for moment in sorted(steps))) == CPUS < BLOCKS
    assert_same(measurements(unrefined.folder / "results"), expected := measurements(reference.folder / "results"))
    assert len(expected) == 3 * BLOCKS + 1  # two kinds of masks, losses, and the mask file


def test_a_killed_snakemake_takes_up_where_it_was(local, unrefined):
    """What docs/slurm.md tells its user to do, and nothing else."""
    reference, config = local
    before = len(jobs())
    command = (*THROUGH_SLURM, "--", MASKS)
    snakemake = unrefined.start(config, "--jobs", "3", *command)  # so that not all have ended at the first look
    output = unrefined.folder / "output"
    until(lambda: FINISHED.search(output.read_text()), snakemake)
    snakemake.kill()
    snakemake.wait()
    seen = len(FINISHED.findall(output.read_text()))
    cancel, unlock, _ = next(block for block in code_blocks("docs/slurm.md", "") if "scancel" in block).splitlines()
    subprocess.run(cancel, shell=True, cwd=unrefined.folder, check=True)
    until(lambda: all(job.state in ("COMPLETED", "CANCELLED") for job in refinements(before)))
    first = len(refinements(before))
    kept = {path: path.stat().st_mtime_ns for path in (unrefined.folder / START / "swaps/masks").iterdir()}

    unrefined.run(config, unlock.removeprefix("snakemake "))
    snakemake = unrefined.start(config, *command)
    assert snakemake.wait(900) == 0, output.read_text()

    # A job that ended after Snakemake's last look may run again, or not.
    again = [job.what for job in refinements(before)[first:]]
    assert len(again) == len(set(again))
    unchanged = [path for path, modified in kept.items() if path.stat().st_mtime_ns == modified]
    assert BLOCKS > len(unchanged) == BLOCKS - len(again) >= seen > 0
    assert_same(measurements(unrefined.folder / "results"), measurements(reference.folder / "results"))


def test_gpus_are_for_the_rules_that_compute(local, unrefined):
    config = local[1] | {"gpu": True}
    text = config["calibrations"]["stdlib"]
    whole = tiny_study(config["models"]["tiny"]["source"], gpu=True, reconstructions={"ls": {}})
    whole["calibrations"] = {"dense": text, "pruned": text | {"propagate": "pruned"}}
    planned = unrefined.run(whole, "-n", *THROUGH_SLURM).stdout.split("\nrule ")[1:]
    asking = {rule.partition(":")[0] for rule in planned if re.search(r"resources: .*\bgpu=1\b", rule)}
    computing = {"capture", "warmstart", "refine", "reconstruct", "chain"}
    assert asking == computing | {"perplexity", "harness", "drift"}

    # Through a profile as a user would edit it.
    shutil.copytree(REPOSITORY / "profiles" / "slurm", unrefined.folder / "mine")
    profile = unrefined.folder / "mine" / "config.yaml"
    uncommented = re.sub(r"# (?=slurm_partition|qos|slurm_extra)", "", profile.read_text())
    profile.write_text(uncommented.replace('"main"', '"other"'))
    before = len(jobs())
    warm = START / "masks" / "block00.safetensors"
    (unrefined.folder / warm).unlink()
    once = ("--workflow-profile", profile.parent, *LOOKS, "--retries", "0", "--rerun-triggers", "mtime", "--verbose")
    done = unrefined.run(config, *once, "--", warm, check=False)  # a job that finds no GPU says so, and fails
    submitted = jobs()[before:]
    assert {job.what.split("_")[1]: job.gpus for job in submitted} == {"warmstart": "gres:gpu:1"}
    assert {(job.partition, job.nice) for job in submitted} == {("other", "100")}
    assert done.stdout.count("--qos=normal ") == len(submitted)  # which SLURM without accounting forgets


def test_the_commands_of_the_document(local, tmp_path):
    """In a checkout with a study of its own, whose masks are there already."""
    local[0].copy(tmp_path)
    environment = checkout(tmp_path)
    environment["PATH"] = f"{sys.prefix}/bin:{environment['PATH']}"
    environment["EDITOR"] = 'sed --in-place \'s/# slurm_partition: "main"/slurm_partition: "other"/\''
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(local[1]))
    before = len(jobs())
    said = bash("\n".join(cluster_commands()).replace("$EDITOR", "eval $EDITOR"), tmp_path, environment)
    assert {job.partition for job in jobs()[before:]} == {"other"}, said
    assert (tmp_path / "results" / "reports" / "tiny" / "report.html").is_file()


def test_the_embedded_model_has_the_results_of_the_local_run(tmp_path):
    """All of the study, many jobs to an allocation."""
    reference = REPOSITORY / "results" / "embedded"
    assert reference.is_dir(), "`make run` first: its results are what these are compared with"
    config = yaml.safe_load((REPOSITORY / STUDY).read_text())
    groups = [f"{rule}={group}" for group, rules in GROUPS.items() for rule in rules]
    before = len(jobs())
    grouped = ("--groups", *groups, "--group-components", "evaluations=6", "--cores", "1")
    Workflow(tmp_path).run(config, *THROUGH_SLURM, *grouped)
    assert {job.cpus for job in jobs()[before:]} == {1}
    found = measurements(tmp_path / "results" / "embedded")
    assert_same(found, measurements(reference))
    kinds = Counter(path.parent.name for path in found)
    assert kinds["masks"] > kinds["losses"] > kinds["perplexity"] > 0
    assert (tmp_path / "results" / "reports" / config["name"] / "report.html").exists()
