"""What several test modules share: tiny models, studies and layers, and the workflow run on them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import NamedTemporaryFile

import forked
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock

from sparseswaps.base.errors import InputError
from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.description import describe
from sparseswaps.model.layers import file_tensors
from sparseswaps.report.tables import Measured
from sparseswaps.workflow.artifacts import write_masks

REPOSITORY = Path(__file__).parent.parent
# The study of the tests that compare with results of `make run`; SPARSESWAPS_STUDY=configs/quick.yaml is a part of it.
STUDY = os.environ.get("SPARSESWAPS_STUDY", "config.yaml")

LLAMA = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)
LLAMA |= dict(num_key_value_heads=8, vocab_size=128256, torch_dtype="bfloat16", tie_word_embeddings=False)

TEXT = {"text": "embedded", "samples": 8, "held_out": 4, "seqlen": 32}  # the calibration of `tiny_study`
DRAW = Path("results/tiny/stdlib/seed0")  # and the folder of its draw

EXPERTS = dict(num_local_experts=3, num_experts_per_tok=2, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
EXPERTS |= dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8, vocab_size=32, bos_token_id=0, eos_token_id=0)

GPT2 = dict(vocab_size=2048, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
GPT2 |= dict(initializer_range=0.2, pad_token_id=0)

ON_CUDA = torch.cuda.is_available()  # else conftest has switched on Triton's interpreter, which runs on the CPU
HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON and not ON_CUDA:
    from sparseswaps.layer.swaps import cuda

    # The interpreter is slow. So small a layer then takes several chunks, and lists overflow, as large ones do.
    cuda._CHUNK, cuda._FEW = 16, 8

FAST = ["cpu", "batched", pytest.param("cuda", marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton is not there"))]


def layer(seed: int, d_out: int, d_in: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A random layer's weight [d_out, d_in] and inputs [d_in, tokens] of one kind of difficulty."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=random)
    inputs = torch.randn(d_in, 2 * d_in + 3, generator=random)
    if kind == "correlated":
        return weight, 0.2 * inputs + torch.randn(1, inputs.shape[1], generator=random)
    return alter(weight, inputs, kind)


def alter(weight: torch.Tensor, inputs: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a layer's weight [d_out, d_in] and inputs [d_in, tokens] one kind of difficulty, if it has a name here."""
    d_in = len(inputs)
    if kind == "rank deficient":
        inputs = inputs[:, : max(1, d_in // 3)]
    elif kind == "duplicated":
        inputs[1::2] = inputs[: d_in - d_in % 2 : 2]
    elif kind == "dead":
        inputs[::3] = 0
    elif kind == "outliers":
        inputs[:: max(1, d_in // 2)] *= 1e4
    elif kind == "zero weights":
        weight[:, ::3] = 0
    return weight, inputs


def problem(seed: int, d_out: int, d_in: int, pattern: str, kind: str = "correlated") -> tuple:
    """A random layer's weight, Gram matrix and Wanda mask, and the pattern: the arguments of `refine`."""
    weight, inputs = layer(seed, d_out, d_in, kind)
    gram, pattern = inputs @ inputs.T, parse_pattern(pattern)
    return weight, gram, wanda(weight, gram, pattern), pattern


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" and ON_CUDA else "cpu"


class Reports(list):
    """The totals that a function reports: [(done, made), ...]."""

    def __call__(self, *totals: int) -> None:
        self.append(totals)


def limit_memory(function: Callable, most: int) -> Callable:
    """Return a function that is out of memory when its first argument has more than `most` rows."""

    @wraps(function)
    def limited(rows, *arguments):
        if len(getattr(rows, "weight", rows)) > most:
            raise torch.OutOfMemoryError
        return function(rows, *arguments)

    return limited


def write_tiny_model(folder: Path, seed: int = 0, **changes) -> Path:
    """A random bf16 Llama of two blocks, with the embedded tokenizer; its output reacts to its input."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from sparseswaps.embedded import MODEL

    settings = dict(vocab_size=2048, hidden_size=32, intermediate_size=64, max_position_embeddings=64)
    settings |= dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
    settings |= dict(bos_token_id=0, eos_token_id=0)
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**settings | changes)).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return folder


def tiny_study(model: Path, **changes) -> dict:
    """A configuration that runs every stage in seconds."""
    return {
        "name": "tiny",
        "models": {"tiny": {"source": str(model)}},
        "calibrations": {"stdlib": dict(TEXT)},
        "patterns": ["60%", "2:4"],
        "warmstarts": ["wanda"],
        "refinements": {"none": {"max_swaps": 0}, "swaps": {}},
        "evaluation": {
            "perplexity": {"held_out": {"text": "embedded", "seqlen": 32, "windows": 8, "documents": 4}},
            "lm_eval": {"tasks": ["embedded_choice"], "limit": 4},
            "drift": 2,
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

    def fail(self, config: dict, *arguments: str) -> str:
        """Run snakemake on `config`, which must fail without a traceback; return its output."""
        done = self.run(config, *arguments, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stdout
        return done.stdout

    def start(self, config: dict, *arguments: str) -> subprocess.Popen:
        """Start snakemake as its user does, in a process group of its own; its output is in the file `output`."""
        command = self.command(config, *arguments)
        keyboard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores SIGINT
        with (self.folder / "output").open("w") as out:
            return subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=keyboard
            )

    def command(self, config: dict, *arguments: str) -> list[str]:
        """The command that runs snakemake on `config`."""
        return [sys.executable, "-m", "snakemake", *self._arguments(config, arguments)]

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
        return planned_jobs(self.run(config, "-n", "--quiet", "rules", "--", *targets).stdout)


def planned_jobs(said: str) -> dict[str, int]:
    """The jobs that the output of a dry run lists, by rule."""
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}
    assert jobs or "Nothing to be done" in said, said
    return {rule: count for rule, count in jobs.items() if rule not in ("total", "all")}


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


PATTERNS = {"60%": 1.4, "2:4": 1.6}  # pattern: how much perplexity it costs
WARMSTARTS = {"magnitude": (3.0, 0.5), "wanda": (1.5, 0.3)}  # warm start: perplexity factor, error reduction at most
REFINEMENTS = {"none": (0, 0.0), "swaps-1": (1, 0.3), "swaps-5": (5, 0.7), "swaps": (None, 1.0)}  # budget, progress
LAYERS = {
    "self_attn.q_proj": (192, 192),
    "self_attn.k_proj": (64, 192),
    "self_attn.v_proj": (64, 192),
    "self_attn.o_proj": (192, 192),
    "mlp.gate_proj": (512, 192),
    "mlp.up_proj": (512, 192),
    "mlp.down_proj": (192, 512),
}
DENSE = 8.02
SETTINGS = {"samples": 128, "propagate": "dense", "method": "swaps", "stop": "optimum", "freeze": 0.0}
SETTINGS |= {"shrinkage": 0.0, "between_rows": False, "refit": False, "reconstruction": "none"}


def losses_of(pattern: str, warmstart: str, refinement: str, seed: int, blocks: int = 2) -> pd.DataFrame:
    budget, progress = REFINEMENTS[refinement]
    rows = []
    for block in range(blocks):
        for k, (layer, (d_out, d_in)) in enumerate(LAYERS.items()):
            reduction = progress * (WARMSTARTS[warmstart][1] + 0.02 * k + 0.01 * block + 0.01 * seed)
            reduction *= 0.9 if pattern == "2:4" else 1
            loss = 1e3 * d_out * (1 + block) * PATTERNS[pattern]
            swaps = d_out * (20 if budget is None else budget)
            kept = d_out * d_in // 2 if pattern == "2:4" else d_out * (d_in - int(0.6 * d_in))
            row = {"block": block, "layer": layer, "d_out": d_out, "d_in": d_in, "tokens": 4096, "unrouted": False}
            row |= {"kept": kept, "loss_before": loss, "loss_after": loss * (1 - reduction)}
            row |= {"held_out_before": loss / 9, "held_out_after": loss / 9 * (1 - 0.8 * reduction)}
            row |= {"swaps": swaps, "max_row_swaps": 30 if budget is None else budget, "rows": d_out}
            row |= {"rows_certified": d_out if refinement == "swaps" else 0, "seconds": swaps / 1e4}
            rows.append(row)
    return pd.DataFrame(rows)


def make_study(seeds: int = 1, blocks: int = 2) -> list[Measured]:
    """Everything measured of a small, plausible study."""
    scores = {"cloze": {"acc": 0.5, "acc_stderr": 0.02}, "choice": {"acc": 0.4, "acc_norm": 0.3}}
    dense = {"perplexity": DENSE, "seqlen": 256, "windows": 96, "tokens": 24576}
    study = [Measured({"model": "pico", "pattern": "dense"}, perplexities={"held_out": dense}, scores=scores)]
    for seed, pattern, warmstart, refinement in product(range(seeds), PATTERNS, WARMSTARTS, REFINEMENTS):
        budget, progress = REFINEMENTS[refinement]
        facts = {"model": "pico", "calibration": "c4", "seed": seed, "pattern": pattern}
        facts |= {"warmstart": warmstart, "refinement": refinement, "max_swaps": budget} | SETTINGS
        losses = losses_of(pattern, warmstart, refinement, seed, blocks)
        perplexity = DENSE * PATTERNS[pattern] * WARMSTARTS[warmstart][0] ** (2 - progress) + seed
        perplexities = {"held_out": {"perplexity": perplexity, "seqlen": 256}}
        accuracy = 0.3 + 0.1 * progress
        scores = {"cloze": {"acc": accuracy}, "choice": {"acc": accuracy / 2}}
        study.append(Measured(facts, losses, None, perplexities, scores))
    return study


def refusal(read, path: Path, kind: type[InputError] = InputError) -> str:
    """Return the line with which a reader refuses a file; it names the file."""
    with pytest.raises(kind) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert getattr(error.value, "path", path) == path  # of a broken file
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def attempt(read) -> tuple:
    """Return what a reader returns, and the line with which it refuses; one of the two is None."""
    try:
        return read(), None
    except InputError as error:
        return None, str(error)


def mask_file(folder, path):
    """A 2:4 mask file by magnitude for every layer of a model directory, as the workflow's rule masks writes it."""
    model, pattern = describe(folder), parse_pattern("2:4")
    masks = {}
    for layers in model.blocks:
        masks |= file_tensors(layers, {layer.name: keep_best(model.weight(layer).abs(), pattern) for layer in layers})
    write_masks(path, masks.items(), model, "key", base=model.base, pattern=pattern.label)
    return masks


def read_losses(folder: Path) -> pd.DataFrame:
    """Return the losses of all blocks below the folder of a method."""
    return pd.concat(pd.read_csv(path) for path in sorted((folder / "losses").glob("*.csv")))


def read_document(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def code_blocks(document: str, language: str) -> list[str]:
    """Return the code blocks of a document in one language; `""` for blocks that name none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", read_document(document), re.DOTALL | re.MULTILINE)
    return [code for name, code in blocks if name == language]


def commands(block: str) -> list[str]:
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line and not line.startswith("#")]


def checkout(folder: Path) -> dict[str, str]:
    """A checkout with its environment, as README's reader has it; the variables of a shell in it."""
    for name in execute("git", "ls-files", cwd=REPOSITORY).splitlines():
        if (source := REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(source)
    (folder / ".venv").symlink_to(sys.prefix)
    return os.environ | {"PYTHONPATH": str(folder)}


def execute(*command: str | Path, status: int = 0, **options) -> str:
    """Run a command that must exit with a status; return its output, standard error included."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == status, done.stdout
    return done.stdout


def bash(script: str, folder: Path, environment: dict[str, str]) -> str:
    return execute("bash", "-euo", "pipefail", "-c", script, cwd=folder, env=environment)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return whether two dictionaries hold the same tensors, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def cluster_commands() -> list[str]:
    """Return the commands of docs/slurm.md after the installation, which tests/slurm/test_slurm.py runs."""
    return commands(code_blocks("docs/slurm.md", "sh")[0])[1:]
