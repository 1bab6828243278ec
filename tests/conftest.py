"""Fixtures: a tiny random model with the embedded tokenizer, and the real workflow run on it."""

import gc
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels then run on the CPU
# Nothing in the tests may wait for a network.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1")

from helpers import TEXT, Reports, Workflow, shared, tiny_study, write_tiny_model  # noqa: E402

settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_collection_finish():
    gc.freeze()  # or each collection of garbage looks through all libraries


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    with shared(tmp_path_factory, "model") as (folder, empty):
        return write_tiny_model(folder / "tiny") if empty else folder / "tiny"


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model) -> tuple[Workflow, dict]:
    """The whole workflow, run once on the tiny model; tests must not change what it left."""
    with shared(tmp_path_factory, "finished") as (folder, empty):
        workflow, published = Workflow(folder), folder / "published.csv"
        config = tiny_study(tiny_model, published=str(published))
        if empty:
            published.write_text(
                "model,pattern,warmstart,refinement,measure,value,source\n"
                "tiny,60%,wanda,swaps,perplexity/held_out,1000,a paper\n"
                "tiny,70%,wanda,swaps,accuracy,50,a paper\n"
            )
            workflow.run(config, "--cores", "2")
        return workflow, config


@pytest.fixture(scope="session")
def further(tmp_path_factory, finished) -> tuple[Workflow, dict, list[str]]:
    """The stages and options that `finished` has not, run once; and the targets that were asked for."""
    chained = TEXT | {"text": "calibration.txt", "propagate": "pruned"}
    owl = {"name": "60%-owl", "sparsity": "60%", "owl": {"threshold": 2, "spread": 0.1}}
    table = {"name": "mine", "sparsity": "60%", "layers": {"mlp.down_proj": "50%"}}
    every = {"stop": "held_out", "freeze": 0.1, "shrinkage": 0.05, "between_rows": True}
    config = finished[1] | {
        "calibrations": {"stdlib": dict(TEXT), "chained": chained},
        "patterns": [owl, table],
        "warmstarts": ["sparsegpt"],
        "refinements": {"every": every, "dsnot": {"method": "dsnot"}},
        "reconstructions": {"ls": {"iterations": 20}},
        "exclude": [{"calibration": "chained", "pattern": "60%-owl"}, {"calibration": "stdlib", "pattern": "mine"}],
    }
    folders = [f"results/tiny/{start}/sparsegpt" for start in ("stdlib/seed0/60pct-owl", "chained/seed0/mine")]
    targets = [f"{folder}/every+ls/checkpoint" for folder in folders] + [f"{folders[0]}/dsnot/masks.safetensors"]
    with shared(tmp_path_factory, "further") as (folder, empty):
        workflow = Workflow(folder)
        if empty:
            finished[0].copy(folder)
            (folder / "calibration.txt").write_text("import this\n".join(map(str, range(3000))))
            workflow.run(config, "--cores", "2", "--", *targets)
        return workflow, config, targets
