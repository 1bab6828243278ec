"""The real workflow on a tiny model: what it writes, what it does again, and what it says of bad input."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pandas
import pytest
import torch
from helpers import DRAW, REPOSITORY, TEXT, Workflow, read_losses, same, tiny_study, write_tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, MixtralConfig

import sparseswaps
from sparseswaps.embedded import MODEL
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.loading import load_model, load_tokenizer
from sparseswaps.workflow.artifacts import read_masks, read_model


def cell(workflow, pattern, refinement):
    return workflow.folder / DRAW / pattern / "wanda" / refinement


@pytest.mark.parametrize("refinement", ["none", "swaps"])
@pytest.mark.parametrize(("pattern", "slug"), [("60%", "60pct"), ("2:4", "2of4")])
def test_a_cell_is_pruned_as_its_masks_say_and_no_layers_error_rises(finished, tiny_model, pattern, slug, refinement):
    folder = cell(finished[0], slug, refinement)
    dense = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    pruned = AutoModelForCausalLM.from_pretrained(folder / "checkpoint").state_dict()
    described = read_model(finished[0].folder / "results" / "tiny" / "model.json")
    masks = read_masks(folder / "masks.safetensors", described)
    assert len(masks) == 14
    assert same(pruned, dense | {name: dense[name] * mask for name, mask in masks.items()})
    for name in masks:
        size, kept = parse_pattern(pattern).groups(dense[name].shape[1])
        zeros = (pruned[name] == 0).view(len(dense[name]), -1, size).sum(-1)
        assert (zeros == size - kept).all(), name  # exact in every row and block; no dense weight is zero
    losses = read_losses(folder)
    assert len(losses) == 14
    if refinement == "none":
        assert (losses["loss_after"] == losses["loss_before"]).all()
        assert (losses["swaps"] == 0).all()
    else:
        assert (losses["loss_after"] <= losses["loss_before"]).all()
        assert (losses["swaps"] > 0).all()
        assert (losses["rows_certified"] == losses["rows"]).all()


def test_families_with_layers_of_their_own_kind(tmp_path):
    """Transposed layers, and experts, with hidden states on disk."""
    width = dict(vocab_size=2048, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)
    width |= dict(initializer_range=0.2, bos_token_id=0, eos_token_id=0, max_position_embeddings=64)
    experts = dict(intermediate_size=48, num_key_value_heads=1, head_dim=16, num_local_experts=3, num_experts_per_tok=2)
    configs = {"gpt2": GPT2Config(**width), "mixtral": MixtralConfig(**width, **experts)}
    for name, config in configs.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "models" / name)
        AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "models" / name)
    workflow = Workflow(tmp_path)
    study = tiny_study(tmp_path, patterns=["2:4"], refinements={"swaps": {}}, evaluation={}, activations="disk")
    study["models"] = {name: {"source": str(tmp_path / "models" / name)} for name in configs}
    workflow.run(study, "--cores", "2")
    for name in configs:
        source = tmp_path / "models" / name
        folder = tmp_path / "results" / name / "stdlib" / "seed0" / "2of4" / "wanda" / "swaps"
        losses = read_losses(folder)
        assert losses["loss_after"].sum() < losses["loss_before"].sum()
        assert (losses["rows_certified"] == losses["rows"]).all()
        assert (losses["tokens"] <= 8 * 32).all()
        assert losses["tokens"].lt(8 * 32).any() == ("expert" in str(list(losses["layer"])))
        base = AutoModelForCausalLM.from_pretrained(source)
        masks = sparseswaps.apply_masks(base, folder / "masks.safetensors")
        assert same(base.state_dict(), AutoModelForCausalLM.from_pretrained(folder / "checkpoint").state_dict())
        assert all(mask.float().mean() == 0.5 for mask in masks.values())
        model, tokenizer = load_model(str(source), "cpu"), load_tokenizer(str(source))
        by_call = sparseswaps.prune(model, tokenizer, "2:4", samples=8, held_out=4, seqlen=32)
        assert same(by_call.masks, masks)
        assert [row["loss_after"] for row in by_call.losses] == list(losses["loss_after"])


def test_the_report_has_it_all(finished, tiny_model):
    report = finished[0].folder / "results" / "reports" / "tiny"
    cells = pandas.read_csv(report / "tables" / "cells.csv")
    assert list(cells["pattern"]) == ["dense", "60%", "60%", "2:4", "2:4"]
    assert cells["perplexity/held_out"].gt(1).all()
    assert cells["embedded_choice/acc"].between(0, 1).all()
    assert cells.loc[cells["pattern"] == "60%", "sparsity"].iloc[0] == pytest.approx(0.6, abs=0.02)
    for table in ("cells", "layers", "curves", "summary", "comparison"):
        for ending in (".csv", ".md", ".tex"):
            assert "60%" in (report / "tables" / (table + ending)).read_text().replace("\\", "")
    published = pandas.read_csv(report / "tables" / "published.csv")
    measured = cells.loc[(cells["pattern"] == "60%") & (cells["refinement"] == "swaps"), "perplexity/held_out"].item()
    assert published["difference"].iloc[0] == measured - 1000
    assert published["measured"].isna().tolist() == [False, True]  # no such cell
    page = (report / "report.html").read_text()
    assert "a paper" in page
    assert "60%" in page
    size = (tiny_model / "model.safetensors").stat().st_size
    assert f"<td class=n>{size / 1e6:.4g}</td><td class=n>{size / 1e6:.4g}</td>" in page  # dense and pruned alike
    record = json.loads((report / "provenance.json").read_text())
    assert record["config"]["seeds"] == [0]
    assert record["made with"]["torch"] == torch.__version__
    assert record["made with"]["devices"]
    assert record["made with"]["model tiny"].startswith(finished[1]["models"]["tiny"]["source"])
    assert re.fullmatch("[0-9a-f]{64}", record["made with"]["token ids of tiny/stdlib/seed0"])
    ran = {stage["stage"]: stage for stage in record["stages"]}
    assert ran.keys() == record["code"].keys() >= {"model", "capture", "warmstart", "refine", "assemble", "harness"}
    assert ran["refine"]["jobs"] == 8
    assert all(stage["seconds"] > 0 for stage in ran.values())
    figures = {path.name for path in (report / "figures" / "tiny" / "stdlib").iterdir()}
    named = ("error_reduction_by_layer", "error_reduction_by_type", "held_out_curve", "error_by_block")
    assert figures == {f"{name}.{kind}" for name in named for kind in ("pdf", "png")}
    links = re.findall(r'<a href="(\.\./[^"]+)">', page)
    assert len(links) == 4 * 3  # masks, checkpoint and logs of each cell
    assert all((report / link).exists() for link in links)


def test_snakemake_reports_show_tables_figures_and_the_page(finished, tmp_path):
    workflow, config = finished
    workflow.run(config, "--report", tmp_path / "shown.zip")
    with zipfile.ZipFile(tmp_path / "shown.zip") as file:
        names = {Path(*Path(name).parts[4:]) for name in file.namelist()}
        page = file.read("shown/report.html").decode()
    folder = workflow.folder / "results" / "reports" / config["name"]
    tables = {Path(f"{name}.csv") for name in ("cells", "summary", "comparison", "published")}
    pictures = {path.relative_to(folder / "figures") for path in folder.glob("figures/**/*.png")}
    assert names == {Path("report.html"), Path("."), Path("drift.csv"), *tables, *pictures}
    assert all(f'"{label}": "{of}"' in page for label, of in (("pattern", "2of4"), ("method", "wanda, swaps")))
    assert f"Perplexity and accuracy in study {config['name']}" in page  # a caption


def test_artifacts_say_what_made_them(finished):
    with safe_open(cell(finished[0], "2of4", "swaps") / "masks.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["sparseswaps"])
    made_by, more = json.loads(header["provenance"]), header["more"]
    assert {'pattern="2:4"', 'counted="rows"', f"torch={torch.__version__}"} <= set(made_by)
    assert {value.partition("=")[0] for value in made_by} >= {"code", "upstream model", "upstream refine"}
    assert more["base"]["fingerprint"] == header["model"]


def test_a_changed_configuration_of_the_model_is_seen(finished, tmp_path):
    """Also when the model stage alone ran since: its description must say what changed."""
    workflow, config = finished
    copy = workflow.copy(tmp_path / "copy")
    model = shutil.copytree(config["models"]["tiny"]["source"], tmp_path / "model")
    config = config | {"models": {"tiny": {"source": str(model)}}}
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert (model / "config.json").read_text() != text
    copy.run(config, "--cores", "1", "--", "results/tiny/model.json")
    assert "capture" in copy.planned(config)


@pytest.mark.slow
def test_a_large_grid_is_listed(tmp_path):
    models = {name: {"source": str(write_tiny_model(tmp_path / name, num_hidden_layers=4))} for name in "abc"}
    many = {"seeds": [*range(5)], "patterns": ["50%", "60%", "70%", "2:4"], "warmstarts": ["wanda", "ria", "greedy"]}
    jobs = Workflow(tmp_path).planned(tiny_study(tmp_path / "a", models=models, **many))
    cells = 3 * 5 * 4 * 3 * 2
    assert jobs["refine"] == 4 * cells
    assert jobs["perplexity"] == jobs["harness"] == jobs["drift"] + 3 == cells + 3
    assert sum(jobs.values()) > 3000


@pytest.mark.parametrize(
    ("count", "value", "error", "finished_before"),
    [
        (1, float("nan"), r"model: error: .*model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight ", set()),
        (None, 3e38, r"capture: error: model\.layers\.1\.mlp\.down_proj: ", {"model.json", "samples.safetensors"}),
    ],
    ids=["weight", "activation"],
)
def test_numbers_that_are_not_finite_stop_their_stage(model, tmp_path, count, value, error, finished_before):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[:count] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    said = Workflow(tmp_path).fail(tiny_study(model, evaluation={}), "--cores", "1")
    assert re.search(f"{error}.*NaN or Inf", said)
    assert {path.name for path in (tmp_path / "results" / "tiny").rglob("*.*")} == finished_before


def test_a_terminal_shows_the_time_left(tiny_model, tmp_path):
    """In the bar of all jobs of `--logger rich`, as `make run` has it."""
    command = Workflow(tmp_path).command(
        tiny_study(tiny_model), "--logger", "rich", "--cores", "1", "--", DRAW / "samples.safetensors"
    )
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        command, stdout=other, stderr=other, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(other)
    said = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 1 << 16):
            said += part
    assert process.wait() == 0, said.decode()
    assert re.search(rb"Total Progress.* about \d+ s left", said)


def test_a_wrong_configuration_is_named_and_touches_nothing(finished):
    workflow, config = finished
    before = {path: path.stat().st_mtime_ns for path in (workflow.folder / "results").rglob("*")}
    assert re.search("paterns.*patterns", workflow.fail(config | {"paterns": ["60%"]}, "--cores", "1"))
    assert {path: path.stat().st_mtime_ns for path in (workflow.folder / "results").rglob("*")} == before


def test_inputs_propagate_through_pruned_blocks(tmp_path, tiny_model, finished):
    config = tiny_study(tiny_model, calibrations={"chained": TEXT | {"propagate": "pruned"}}, patterns=["2:4"])
    folder = "results/tiny/chained/seed0/2of4/wanda/swaps"
    Workflow(tmp_path).run(config, "--cores", "2", "--", f"{folder}/masks.safetensors")
    described = read_model(tmp_path / "results" / "tiny" / "model.json")
    chained = read_masks(tmp_path / folder / "masks.safetensors", described)
    dense = read_masks(cell(finished[0], "2of4", "swaps") / "masks.safetensors", described)
    equal = {name: torch.equal(mask, dense[name]) for name, mask in chained.items()}
    model, tokenizer = load_model(str(tiny_model), "cpu"), load_tokenizer(str(tiny_model))
    sizes = {"samples": 8, "held_out": 4, "seqlen": 32}
    assert same(sparseswaps.prune(model, tokenizer, "2:4", propagate="pruned", **sizes).masks, chained)
    assert all(equal[name] for name in equal if ".layers.0." in name)  # nothing is pruned before the first block
    assert not all(equal.values())
    losses = read_losses(tmp_path / folder)
    assert (losses["loss_after"] < losses["loss_before"]).all()


def test_blocks_are_trained_as_in_memory_and_a_killed_chain_continues_where_it_was(tmp_path, tiny_model):
    source = shutil.copytree(tiny_model, tmp_path / "model")  # in float32, as in memory
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).save_pretrained(source)
    block = {"epochs": 2, "levels": 2, "sequences": 4}
    config = tiny_study(
        source,
        calibrations={"chained": TEXT | {"propagate": "pruned"}},
        patterns=["2:4"],
        refinements={"swaps": {}},
        reconstructions={"gradual": {"block": block}},
        evaluation={},
    )
    workflow, folder = Workflow(tmp_path), Path("results/tiny/chained/seed0/2of4/wanda/swaps+gradual")
    # After the first block, its hidden states wait for the second.
    workflow.run(config, "--cores", "2", "--notemp", "--", folder / "masks/block00.safetensors")
    assert workflow.planned(config, folder / "checkpoint") == {"chain": 1, "masks": 1, "assemble": 1}
    workflow.run(config, "--cores", "2", "--", folder / "checkpoint")
    assert not list((tmp_path / folder / "hidden").glob("*"))
    assert workflow.planned(config, folder / "checkpoint") == {}

    model, tokenizer = load_model(str(source), "cpu"), load_tokenizer(str(source))
    arguments = {"samples": 8, "held_out": 4, "seqlen": 32, "propagate": "pruned"}
    arguments["reconstruction"] = sparseswaps.Reconstruction(block=block)
    pruned = sparseswaps.prune(model, tokenizer, "2:4", **arguments)
    stored = load_model(str(tmp_path / folder / "checkpoint"), "cpu").state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    epochs = pandas.concat([pandas.read_csv(path) for path in sorted((tmp_path / folder / "epochs").iterdir())])
    assert epochs.to_dict("records") == pruned.epochs
    assert epochs["epoch"].tolist() == [0, 1, 2] * 2


def test_every_further_stage_and_option(further):
    """Unequal budgets, rows that differ, options of refinement, and new weights, with dense inputs and pruned ones."""
    workflow, config, targets = further
    folders = [target.partition("/every+ls")[0] for target in targets[:2]]
    described = read_model(workflow.folder / "results" / "tiny" / "model.json")
    allocation = json.loads((workflow.folder / folders[0]).parent.joinpath("allocation.json").read_text())
    sparsities = [float(of_block["mlp.up_proj"].rstrip("%")) / 100 for of_block in allocation]
    assert abs(sparsities[0] - sparsities[1]) == pytest.approx(0.2, abs=1e-5)
    assert sum(sparsities) == pytest.approx(1.2, abs=1e-5)
    dense = described.checkpoint
    asked = [lambda block, _: sparsities[block], lambda _, name: 0.5 if name == "mlp.down_proj" else 0.6]
    for folder, sparsity in zip(folders, asked, strict=True):
        start = workflow.folder / folder
        pruned = AutoModelForCausalLM.from_pretrained(start / "every+ls" / "checkpoint").state_dict()
        for block, layers in enumerate(described.blocks):
            for layer in layers:
                zeros = pruned[layer.tensor] == 0
                assert zeros.sum() == layer.d_out * int(layer.d_in * sparsity(block, layer.name) + 1e-9), layer.tensor
                assert len(set(zeros.sum(1).tolist())) > 1  # rows differ
                assert not torch.equal(pruned[layer.tensor], dense.tensor(layer.tensor) * ~zeros)  # new weights
        losses = read_losses(start / "every+ls")
        assert (losses["loss_after"] < losses["loss_before"]).all()
        curves = pandas.read_csv(start / "every" / "curves" / "block00.csv") if "owl" in folder else None
        assert curves is None or set(curves["layer"]) == {layer.name for layer in described.blocks[0]}
    assert workflow.planned(config, *targets) == {}


def test_base_and_masks_evaluate_as_the_checkpoint_does(finished, tmp_path):
    workflow, config = finished[0].copy(tmp_path / "copy"), finished[1]
    folder = cell(workflow, "2of4", "swaps")
    shutil.rmtree(folder / "checkpoint")
    results = [folder / "lm_eval.json", folder / "perplexity" / "held_out.json"]
    of_checkpoint = [json.loads(path.read_text()) for path in results]
    drift = folder / "drift.csv"
    drift_of_checkpoint = drift.read_text()
    after, evaluated = {"tables": 1, "figures": 1, "report": 1}, {"perplexity": 1, "harness": 1, "drift": 1}
    one = config | {"patterns": ["2:4"], "refinements": {"swaps": {}}, "checkpoints": False}
    assert workflow.planned(one) == evaluated | after  # the dense model's stay as they are
    workflow.run(one, "--cores", "2", "--", *(path.relative_to(workflow.folder) for path in (*results, drift)))
    assert drift.read_text() == drift_of_checkpoint
    for path, expected in zip(results, of_checkpoint, strict=True):
        result = json.loads(path.read_text())
        assert result.pop("provenance") != expected.pop("provenance")
        assert result == expected
    assert not (folder / "checkpoint").exists()
    assert workflow.planned(config) == {"assemble": 1} | evaluated | after
    assert workflow.planned(config | {"evaluation": {}}) == {"assemble": 1} | after  # also where nothing is evaluated
    assert workflow.planned(config | {"evaluation": {}, "checkpoints": False}) == after


# Imports only packages of an environment, whose names are the first argument.
ONLY = """
import re, sys
from importlib.metadata import packages_distributions
owners, allowed = packages_distributions(), sys.argv.pop(1).split()

class Refusal:
    def find_spec(self, name, path=None, target=None):
        names = [re.sub("[-_.]+", "-", owner).lower() for owner in owners.get(name.partition(".")[0], [])]
        if names and not {*allowed, "sparseswaps"}.intersection(names):
            raise ImportError(f"{name} is not in the environment")

sys.meta_path.insert(0, Refusal())
from sparseswaps.workflow.run import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("stage", ["tables", "figures", "report"])
def test_a_report_is_written_with_the_packages_of_its_conda_environment(stage, finished, tmp_path):
    workflow = finished[0].copy(tmp_path / "copy")
    packages = re.findall(r"- ([\w-]+)==", (REPOSITORY / "envs" / "report.yaml").read_text())
    assert not {"torch", "transformers", "numba", "snakemake"}.intersection(packages)
    output = {"tables": "tables/cells.csv", "figures": "figures", "report": "report.html"}[stage]
    made = workflow.folder / "results/reports/tiny" / output
    before = made.stat().st_mtime_ns
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", ONLY, " ".join(packages), stage, str(made.relative_to(workflow.folder))]
    subprocess.run(command, cwd=workflow.folder, env=environment, check=True)
    assert made.stat().st_mtime_ns > before
