"""Models and samples that cannot be taken: one line each, from the stage that can know first, and nothing is lost."""

import json
import re
import shlex
import sys

import pytest
import torch
from helpers import DRAW, TEXT, Workflow, execute, same, tiny_study, write_tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sparseswaps.base.errors import InputError
from sparseswaps.model.description import describe
from sparseswaps.model.directory import check_files
from sparseswaps.model.loading import load_model, load_tokenizer
from sparseswaps.workflow.artifacts import read_model, write_model
from sparseswaps.workflow.study import load_study

SAMPLES = DRAW / "samples.safetensors"
OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def refusal(model):
    """The line with which the start of the workflow refuses a model."""
    with pytest.raises(InputError) as error:
        load_study(tiny_study(model))
    line = str(error.value)
    assert line.startswith("config key models.tiny.source: ")
    assert "\n" not in line
    return line


def set_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


def test_pickled_weights_are_refused_with_the_command_that_converts_them(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(tensors, model / "pytorch_model.bin")
    line = refusal(model)
    assert str(model) in line
    python, *arguments = shlex.split(re.search("`(.*)`", line)[1])
    assert python == "python"  # of the environment that snakemake runs in, which need not be activated here
    execute(sys.executable, *arguments, cwd=tmp_path)
    converted = tmp_path / "model-safetensors"
    assert converted.name in line
    load_study(tiny_study(converted))
    assert same(load_model(str(converted), "cpu").state_dict(), {name: t.float() for name, t in tensors.items()})
    assert load_file(converted / "model.safetensors").popitem()[1].dtype == torch.bfloat16
    assert load_tokenizer(str(converted))("text") == load_tokenizer(str(model))("text")


@pytest.mark.parametrize("place", [{}, {"text_config": {"num_hidden_layers": 2}}])
def test_quantised_weights_are_refused_at_the_start(model, place):
    set_config(model, quantization_config={"quant_method": "bitsandbytes"}, **place)
    assert "quantization_config" in refusal(model)


@pytest.mark.parametrize("size", [4, 100, -1])
def test_a_truncated_file_is_named_at_the_start_and_by_the_model_stage(model, size):
    check_files(model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert str(weights) in refusal(model)
    with pytest.raises(InputError, match=re.escape(str(weights))):
        describe(model)


def test_an_index_that_names_a_missing_shard_is_named_at_the_start(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    line = refusal(model)
    assert "model.safetensors.index.json" in line
    assert "model-00002-of-00002.safetensors" in line


@pytest.mark.parametrize("gone", ["model.safetensors", "."])
def test_a_described_model_whose_weights_are_gone_is_named(model, tmp_path, gone):
    write_model(tmp_path / "model.json", describe(model))
    assert read_model(tmp_path / "model.json") == describe(model)
    (model / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=re.escape(str(model))):
        read_model(tmp_path / "model.json")


def test_a_models_own_code_runs_only_where_the_configuration_says_so(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))  # for the processes of the workflow
    (model / "own.py").write_text(OWN_CODE)
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    set_config(model, model_type="own", auto_map=auto_map)
    for load in (describe, lambda folder: load_model(str(folder), "cpu")):
        with pytest.raises(InputError, match="trust_remote_code: true"):
            load(model)
    config = tiny_study(model, calibrations={"stdlib": TEXT | {"propagate": "pruned"}})
    workflow = Workflow(tmp_path)
    target = DRAW / "2of4/wanda/none/perplexity/held_out.json"
    assert "trust_remote_code: true" in workflow.fail(config, "--cores", "1", "--", target)
    config["models"]["tiny"]["trust_remote_code"] = True
    workflow.run(config, "--cores", "2", "--", target)
    assert json.loads((tmp_path / target).read_text())["perplexity"] > 1
    checkpoint = (tmp_path / target).parent.parent / "checkpoint"
    assert (checkpoint / "own.py").read_text() == OWN_CODE
    pruned = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    assert type(pruned).__name__ == "OwnModel"


def artifacts(workflow):
    """Return the artifacts of a workflow but the samples, which a failing draw takes with it."""
    kept = (workflow.folder / "results" / "tiny").rglob("*.safetensors")
    return {path: path.read_bytes() for path in kept if path.name != "samples.safetensors"}


def test_a_tokenizer_of_another_model_is_named_by_the_stages_that_use_it(finished, tmp_path):
    workflow = finished[0].copy(tmp_path / "copy")
    before = artifacts(workflow)
    model = write_tiny_model(tmp_path / "model", vocab_size=1000)
    config = finished[1] | {"models": {"tiny": {"source": str(model)}}}
    said = workflow.fail(config, "--cores", "1", "--", SAMPLES, "results/tiny/dense/perplexity/held_out.json")
    errors = re.findall(r"(\w+): error: config key (\S+), .* (\d+), .* 1000 ", said)
    keys = {"samples": "calibrations.stdlib.text", "perplexity": "evaluation.perplexity.held_out.text"}
    assert {rule: key for rule, key, _ in errors} == keys
    assert all(1000 <= int(token) < 2048 for *_, token in errors)
    assert artifacts(workflow) == before


def test_samples_can_be_pinned_and_a_draw_that_fails_names_its_key(finished, tmp_path):
    workflow = finished[0].copy(tmp_path / "copy")
    before = artifacts(workflow)
    (workflow.folder / "short.txt").write_text("too few words\n")
    log = (workflow.folder / "logs/tiny/stdlib/seed0/samples.log").read_text()
    drawn = re.search(r"SHA-256 of the token ids ([0-9a-f]{64})", log)[1]
    assert drawn in (workflow.folder / "results/reports/tiny/report.html").read_text()
    # The tests are offline, so that no data set can be loaded.
    wrong = [("sha256", "0" * 64, drawn), ("text", "short.txt", "short.txt"), ("text", "org/none", "org/none")]
    for key, value, named in wrong:
        config = finished[1] | {"calibrations": {"stdlib": TEXT | {key: value}}}
        said = workflow.fail(config, "--cores", "1", "--", SAMPLES)
        assert re.search(f"samples: error: config key calibrations.stdlib.{key}.*{named}", said)
        assert artifacts(workflow) == before
    pinned = finished[1] | {"calibrations": {"stdlib": TEXT | {"sha256": ["0" * 64, drawn]}}}
    workflow.run(pinned, "--cores", "1", "--", SAMPLES)
    assert workflow.planned(pinned, SAMPLES) == {}
