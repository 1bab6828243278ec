"""Fixtures: a tiny random model with the embedded tokenizer, and the real workflow run on it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import forked
import pytest
import torch
import yaml
from filelock import FileLock

REPOSITORY = Path(__file__).parent.parent

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels then run on the CPU
# Nothing in the tests may wait for a network.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1")


def write_tiny_model(folder: Path, seed: int = 0, **changes) -> Path:
    """A random bf16 Llama of two blocks, with the embedded tokenizer; its output reacts to its input."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from sparseswaps.embedded import MODEL

    settings = dict(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**settings | changes)).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return folder


def tiny_study(model: Path, **changes) -> dict:
    """A configuration that runs every stage in seconds."""
    return {
        "name": "tiny",
        "models": {"tiny": {"source": str(model)}},
        "calibrations": {"stdlib": {"text": "embedded", "samples": 8, "held_out": 4, "seqlen": 32}},
        "patterns": ["60%", "2:4"],
        "warmstarts": ["wanda"],
        "refinements": {"none": {"max_swaps": 0}, "swaps": {}},
        "evaluation": {
            "perplexity": {"held_out": {"text": "embedded", "seqlen": 32, "windows": 8, "documents": 4}},
            "lm_eval": {"tasks": ["embedded_choice"], "limit": 4},
        },
    } | changes


@dataclass(frozen=True)
class Workflow:
    """The workflow in a directory of its own, from this project or a copy of it."""

    folder: Path
    project: Path = REPOSITORY

    def run(self, config: dict, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run snakemake on `config`; its output is in `.stdout`, standard error included."""
        arguments = self._arguments(config, arguments)
        output = Path(arguments[arguments.index("--configfile") + 1]).with_suffix(".out")
        status = forked.snakemake(arguments, output)
        said = output.read_text()
        assert not check or status == 0, said
        assert "%|" not in said  # a progress bar, in what is no terminal
        return subprocess.CompletedProcess(arguments, status, said)

    def start(self, config: dict, *arguments: str) -> subprocess.Popen:
        """Start snakemake on `config` as its user does, but in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *self._arguments(config, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
        )

    def _arguments(self, config: dict, arguments: tuple[str, ...]) -> list[str]:
        with NamedTemporaryFile("w", prefix="study", suffix=".yaml", dir=self.folder.parent, delete=False) as file:
            yaml.safe_dump(config, file)
        places = ["--snakefile", self.project / "Snakefile", "--directory", self.folder, "--configfile", file.name]
        return list(map(str, [*places, *arguments]))

    def copy(self, folder: Path) -> "Workflow":
        """A copy of all that counts, while others may be at their dry runs in the directory."""
        momentary = shutil.ignore_patterns("auxiliary", "iocache", "locks", "log", "scripts")
        shutil.copytree(self.folder, folder, ignore=momentary, dirs_exist_ok=True)
        return Workflow(folder, self.project)

    def planned(self, config: dict, *targets: str) -> dict[str, int]:
        """The jobs that a dry run lists, by rule; empty when there is nothing to do."""
        lines = self.run(config, "-n", "--quiet", "rules", "--", *targets).stdout.splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith("job ")), None)
        if start is None:
            assert any("Nothing to be done" in line for line in lines), "\n".join(lines)
            return {}
        table = lines[start + 2 :]
        jobs = dict(line.split() for line in table[: next(i for i, line in enumerate(table) if not line.strip())])
        return {rule: int(count) for rule, count in jobs.items() if rule not in ("total", "all")}


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder of the whole session, which may have several processes, and whether it is still to be filled."""
    place = factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / name
    filled = place.with_suffix(".filled")
    with FileLock(place.with_suffix(".lock")):
        place.mkdir(exist_ok=True)
        yield place, not filled.exists()
        filled.touch()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    with shared(tmp_path_factory, "model") as (folder, empty):
        return write_tiny_model(folder / "tiny") if empty else folder / "tiny"


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
    text = finished[1]["calibrations"]["stdlib"]
    chained = text | {"text": "calibration.txt", "propagate": "pruned"}
    owl = {"name": "60%-owl", "sparsity": "60%", "owl": {"threshold": 2, "spread": 0.1}}
    table = {"name": "mine", "sparsity": "60%", "layers": {"mlp.down_proj": "50%"}}
    every = {"stop": "held_out", "freeze": 0.1, "shrinkage": 0.05, "between_rows": True}
    config = finished[1] | {
        "calibrations": {"stdlib": text, "chained": chained},
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
