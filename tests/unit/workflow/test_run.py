import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import REPOSITORY, layer

from sparseswaps.base.files import read_csv
from sparseswaps.calibration.grams import Grams
from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.layer.settings import RefinementSettings
from sparseswaps.model.description import describe
from sparseswaps.workflow.artifacts import read_masks, write_grams, write_masks, write_model
from sparseswaps.workflow.job import Job

PATTERN = parse_pattern("50%")
# Runs the job whose record is given, and shows every state of its progress.
RUN = """
import json, sys
from sparseswaps.base import progress
from sparseswaps.workflow.job import Job, run_job
progress.EVERY = progress._DRAWN = 0
run_job(Job(**json.load(open(sys.argv[1]))))
"""
# A stage with bars of libraries, which insist on being drawn.
LIBRARIES = """
import sys, types
from sparseswaps.workflow import job as body
from tqdm.auto import tqdm
from huggingface_hub.utils import tqdm as hub_tqdm

def job(inputs, outputs, settings, context):
    for bar in (tqdm, hub_tqdm):
        for _ in bar(range(3), desc="a library", disable=False, leave=True):
            pass
    return "done"

body.import_module = lambda name: types.SimpleNamespace(run=job)
"""


ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}


def start(job: Job, folder: Path, before: str = "", **streams) -> subprocess.Popen:
    (folder / "given.json").write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-c", before + RUN, str(folder / "given.json")]
    return subprocess.Popen(command, env=ENVIRONMENT, **streams)


def in_file(job: Job, folder: Path, before: str = "") -> tuple[str, int]:
    """Return what a job writes to standard error where that is a file, and its exit status."""
    with (folder / "stderr").open("wb") as file:
        status = start(job, folder, before, stderr=file).wait(120)
    return (folder / "stderr").read_bytes().decode(), status


def by_hand(output: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sparseswaps.workflow.run", "refine", output]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def losses_of(job: Job) -> list[dict]:
    return [row | {"seconds": None} for row in read_csv(job.outputs["losses"])]


def on_terminal(job: Job, folder: Path, before: str = "") -> str:
    """Return what a job writes to standard error where that is a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = start(job, folder, before, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait(120) == 0
    return written.decode()


@pytest.fixture
def refinement(tmp_path, tiny_model) -> Job:
    """A job of stage refine, with everything it reads."""
    model = describe(tiny_model)
    write_model(tmp_path / "model.json", model)
    grams, masks = Grams(sequences=1), {}
    for la in model.blocks[0]:
        _, inputs = layer(la.d_in, 1, la.d_in, "correlated")
        grams.reads[la.name], grams.tokens[la.name] = la.name, inputs.shape[1]
        grams.matrix[la.name], grams.sums[la.name] = inputs @ inputs.T, inputs.double().sum(1)
        masks[la.name] = wanda(model.weight(la), grams.matrix[la.name], PATTERN)
    (tmp_path / "gram").mkdir()
    write_grams(tmp_path / "gram" / "block00.safetensors", grams, model, "")
    write_masks(tmp_path / "start", masks.items(), model, "")
    settings = RefinementSettings().model_dump() | {"pattern": "50%", "counted": "rows", "gpu": False, "threads": 1}
    return Job(
        stage="refine",
        inputs={"model": f"{tmp_path}/model.json", "grams": f"{tmp_path}/gram", "masks": f"{tmp_path}/start"},
        outputs={name: f"{tmp_path}/{name}" for name in ("masks", "losses", "curves")},
        params=[f"{name}={json.dumps(value)}" for name, value in settings.items()] + ["code=1a2b"],
        wildcards={"block": "block00"},
        log=f"{tmp_path}/logs/refine.block00.log",
        gpu=False,
    )


def test_the_log_has_lines_and_a_file_has_no_bars(refinement, tmp_path):
    assert in_file(refinement, tmp_path) == ("", 0)
    log = Path(refinement.log).read_bytes().decode()
    assert "\r" not in log
    lines = re.findall(r" (\d+) of 256 rows, ([\d,]+) swaps, [\d,.]+ swaps/s, (\S+) left\n", log)
    assert [int(rows) for rows, _, _ in lines] == sorted(int(rows) for rows, _, _ in lines)
    assert lines[-1][0] == "256"
    assert lines[-1][2] == "0:00:00"
    assert f", {lines[-1][1].replace(',', '')} swaps; " in log.splitlines()[-1]  # the stage's one line of result


def test_a_terminal_shows_a_bar_until_the_work_is_done(refinement, tmp_path):
    *states, cleared, after = on_terminal(refinement, tmp_path).split("\r")
    bar = re.compile(r"block 0 +\d+%\|.+\| \d+ of 256 rows, [\d,.]+ swaps/s, \d+:\d\d:\d\d left")
    assert sum(bar.match(state) is not None for state in states) > 5
    assert "100%" in states[-1]
    assert not any("\n" in state for state in states)
    assert len(cleared) >= len(states[-1])
    assert not cleared.strip()
    assert after == ""


def test_bars_of_libraries_are_none_in_a_file_and_leave_none_on_a_terminal(tmp_path):
    job = Job("plain", {}, {}, [], {}, f"{tmp_path}/log", gpu=False)
    before = LIBRARIES + "from sparseswaps.workflow.stages import STAGES, Stage\nSTAGES['plain'] = Stage\n"
    assert in_file(job, tmp_path, before) == ("", 0)
    written = on_terminal(job, tmp_path, before)
    assert written.count("a library:") >= 2
    assert "\n" not in written
    assert not written.split("\r")[-2].strip()


def test_an_artifact_is_made_again_by_hand_from_the_record_of_its_job(refinement, tmp_path):
    assert in_file(refinement, tmp_path) == ("", 0)
    record = json.loads(refinement.record.read_text())
    assert record["seconds"] >= 0
    assert record["peak_resident_mb"] > 0
    assert record["device"]
    model = describe(Path(json.loads(Path(refinement.inputs["model"]).read_text())["folder"]))
    masks = dict(read_masks(refinement.outputs["masks"], model))
    losses = losses_of(refinement)
    for path in refinement.outputs.values():
        Path(path).unlink()
    assert by_hand(refinement.outputs["losses"], tmp_path).returncode == 0
    again = read_masks(refinement.outputs["masks"], model)
    assert all((again[name] == mask).all() for name, mask in masks.items())
    assert losses_of(refinement) == losses


def test_an_unknown_artifact_and_a_broken_one_are_one_line(refinement, tmp_path):
    unknown = by_hand("nothing", tmp_path)
    Path(refinement.inputs["masks"]).write_bytes(b"no masks")
    broken = in_file(refinement, tmp_path)
    for (line, status), name in (
        ((unknown.stderr, unknown.returncode), "nothing"),
        (broken, refinement.inputs["masks"]),
    ):
        assert (status, line.count("\n")) == (1, 1)
        assert name in line


def test_every_stage_ends_with_its_line_of_result(finished):
    logs = list((finished[0].folder / "logs").rglob("*.log"))
    expected = {"model", "samples", "capture", "warmstart", "refine", "masks", "assemble", "perplexity", "harness"}
    expected |= {"drift"}
    assert {path.name.split(".")[0] for path in logs} >= expected | {"tables", "figures", "report"}
    for path in logs:
        text = path.read_bytes().decode()
        assert not re.search(r"\r|%\|", text), path
        assert re.search(
            r"\S; seconds [\d.]+, cpu_seconds [\d.]+, peak_resident_mb \d+.*, device .+$", text.splitlines()[-1]
        ), path
