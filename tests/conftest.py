"""Fixtures: a tiny random model with the embedded tokenizer, and the real workflow run on it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

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
            "perplexity": {"held_out": {"text": "embedded", "seqlen": 32, "windows": 8}},
            "lm_eval": {"tasks": ["embedded_choice"], "limit": 4},
        },
    } | changes


@dataclass(frozen=True)
class Workflow:
    """The workflow in a directory of its own."""

    folder: Path

    def run(self, config: dict, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run snakemake on `config`; its output is in `.stdout`, standard error included."""
        file = self.folder / "study.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile"]
        command += ["--directory", self.folder, "--configfile", file, *arguments]
        done = subprocess.run(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout
        return done

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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model) -> tuple[Workflow, dict]:
    """The whole workflow, run once on the tiny model; tests must not change what it left."""
    workflow = Workflow(tmp_path_factory.mktemp("workflow"))
    published = workflow.folder / "published.csv"
    published.write_text(
        "model,pattern,warmstart,refinement,measure,value,source\n"
        "tiny,60%,wanda,swaps,perplexity/held_out,1000,a paper\n"
        "tiny,70%,wanda,swaps,accuracy,50,a paper\n"
    )
    config = tiny_study(tiny_model, published=str(published))
    workflow.run(config, "--cores", "2")
    return workflow, config
