import json
import re
from pathlib import Path

import numpy
import pytest
import yaml
from helpers import LLAMA, REPOSITORY, read_document
from safetensors.numpy import save_file

from sparseswaps.workflow.grid import Grid
from sparseswaps.workflow.plan import needs
from sparseswaps.workflow.plan.plan import plan_rows, table
from sparseswaps.workflow.plan.sizes import sizes_of
from sparseswaps.workflow.study import load_study

PATHS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
FILES = [path.relative_to(REPOSITORY) for path in PATHS if path.parent.name != "tasks"]  # which are lm-eval's
TABLE = read_document("configs/README.md")


SIZES = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
SIZES += ["vocab_size", "max_position_embeddings"]


def config_json(*sizes, **more):
    """Return what counts of a config.json; the rest is as Llama's."""
    return LLAMA | dict(zip(SIZES, sizes, strict=True)) | more


TIED, WHOLE = {"tie_word_embeddings": True}, {"torch_dtype": "float32"}
GEMMA = config_json(3584, 14336, 42, 16, 8, 256000, 8192, model_type="gemma2", head_dim=256, **WHOLE)
GEMMA |= {"transformers_version": "4.42.0"}
del GEMMA["tie_word_embeddings"]  # which its file leaves out
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
MODELS = {  # config.json and the number of parameters that the model is known by
    "HuggingFaceTB/SmolLM2-135M": (config_json(576, 1536, 30, 9, 3, 49152, 8192, **TIED), 134.5e6),
    "Qwen/Qwen2.5-7B": (config_json(3584, 18944, 28, 28, 4, 152064, 131072), 7.62e9),
    "meta-llama/Llama-3.1-8B": (config_json(4096, 14336, 32, 32, 8, 128256, 131072), 8.03e9),
    "meta-llama/Meta-Llama-3-8B": (config_json(4096, 14336, 32, 32, 8, 128256, 8192), 8.03e9),
    "google/gemma-2-9b": (GEMMA, 9.24e9),
    "mistralai/Mixtral-8x7B-v0.1": (config_json(4096, 14336, 32, 32, 8, 32000, 32768, **EXPERTS), 46.7e9),
    "01-ai/Yi-1.5-9B": (config_json(4096, 11008, 48, 32, 4, 64000, 4096), 8.83e9),
    "deepseek-ai/deepseek-llm-7b-base": (config_json(4096, 11008, 30, 32, 32, 102400, 4096), 6.91e9),
    "meta-llama/Llama-3.1-70B": (config_json(8192, 28672, 80, 64, 8, 128256, 131072), 70.6e9),
    "Qwen/Qwen2.5-72B": (config_json(8192, 29568, 80, 64, 8, 152064, 131072), 72.7e9),
    "assets/babyllama105": (config_json(128, 352, 5, 8, 4, 105, 256, **TIED, **WHOLE), 936_448),
    "models/SmolLM2-135M-Instruct": (config_json(576, 1536, 30, 9, 3, 49152, 8192, **TIED), 134.5e6),
    "assets/stories260k": (config_json(64, 172, 5, 8, 4, 512, 512, **TIED, **WHOLE), 260_032),
}
HUB = {source for source in MODELS if not source.startswith(("assets/", "models/"))}


@pytest.fixture
def local_models(tmp_path, monkeypatch):
    """Go to a folder where all models are directories, which go before the hub's, with little but config.json."""
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(REPOSITORY / "configs")
    for source, (config, _) in MODELS.items():
        Path(source).mkdir(parents=True)
        Path(source, "config.json").write_text(json.dumps(config))
        save_file({"none": numpy.zeros(1)}, Path(source, "model.safetensors"))
    Path("assets/text").mkdir()
    for name in ("tinystories_calibration.txt", "tinystories_eval.txt", "wikitext2_raw_test.jsonl"):
        Path("assets/text", name).touch()
    for name in ("c4_calibration.jsonl", "c4_evaluation.jsonl"):
        Path("models", name).touch()


def load(file):
    return yaml.safe_load(read_document(file))


def rounded(text):
    number, unit = text.split()
    return f"{float(f'{float(number):.2g}'):g} {unit}"


def needed(grid):
    """Return the last line of a plan, rounded: time of all jobs, the most host and GPU memory of a job, all disk."""
    (line,) = (line for line in table(grid).splitlines() if line.startswith("in all"))
    *_, gpu, host, disk, _, time = re.split(r" {2,}", line)
    return [text if text == "-" else rounded(text) for text in (time, host, gpu, disk)]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_table_and_the_file_say_its_command_and_what_is_planned(file, local_models):
    assert len(re.findall(r"^\| \[", TABLE, re.MULTILINE)) == len(FILES)
    study = load_study(load(file))
    grid = Grid(study)
    (row,) = re.findall(rf"\]\({file.relative_to('configs')}\) \| .* \|$", TABLE, re.MULTILINE)
    planned = needed(grid)
    assert row.removesuffix(" |").split(" | ")[2:] == planned
    assert max(row.most.gpu for row in plan_rows(grid)) < 80e9  # one card is enough
    lines = read_document(file).splitlines()
    assert f"#   snakemake --configfile {file}" in lines
    if {model.source for model in study.models.values()} <= HUB:
        models = rounded(f"{sum(sizes.checkpoint for sizes in grid.sizes.values()) / 1e9} GB")
        (plan,) = (line for line in lines if line.startswith("# `snakemake plan`"))
        figures = [figure for figure in planned if figure != "-"]
        assert re.findall(r"[\d.]+ (?:d|h|min|s|TB|GB|MB)\b", plan) == [*figures, models]


def test_a_page_quotes_what_fewer_jobs_would_save(local_models):
    grid = Grid(load_study(load("configs/llama-3.1-8b.yaml")))
    rows, (sizes,) = {row.stage: row for row in plan_rows(grid)}, grid.sizes.values()
    (started,) = re.findall(r"\(([\d.]+)%\)", table(grid))
    evaluated = sum(rows[stage].seconds / rows[stage].jobs for stage in ("perplexity", "harness"))
    page = " ".join(read_document("docs/snakemake.md").split())
    assert f"takes {started} % of the time of `configs/llama-3.1-8b.yaml`" in page
    assert f"{100 * sizes.checkpoint / needs._DISK / evaluated:.0f} % less time for perplexity and seven tasks" in page
    assert float(started) < 20


@pytest.mark.parametrize("source", MODELS)
def test_sizes_are_those_that_the_models_are_known_by(source):
    config, parameters = MODELS[source]
    assert sizes_of(config).parameters == pytest.approx(parameters, rel=0.03 if parameters < 1e6 else 0.002)


def test_names_in_studies_of_the_embedded_model_have_one_meaning():
    meanings: dict[tuple[str, str], set[str]] = {}
    ablations = sorted((REPOSITORY / "configs" / "ablations").glob("*.yaml"))
    for path in [*ablations, REPOSITORY / "configs" / "quick.yaml", REPOSITORY / "config.yaml"]:
        config = load_study(load(path)).dump()
        named = {key: config[key] for key in ("calibrations", "refinements", "reconstructions")}
        named |= {"texts": config["evaluation"]["perplexity"], "": {"checkpoints": config["checkpoints"]}}
        for key, entries in named.items():
            for name, settings in entries.items():
                meanings.setdefault((key, name), set()).add(json.dumps(settings, sort_keys=True))
        assert path not in ablations or config["name"] == f"ablation-{path.stem}"
    assert [name for name, settings in meanings.items() if len(settings) > 1] == []
