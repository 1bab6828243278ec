"""The notebook and the scripts of examples/ run."""

import json
import os
import re
import runpy
import sys
from importlib.util import find_spec

import pytest
import torch
from helpers import REPOSITORY, execute, read_document, write_tiny_model

import sparseswaps
from sparseswaps.model.loading import load_model

NOTEBOOK = json.loads(read_document("examples/tour.ipynb"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_tour_runs_and_shows_what_its_cells_give(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = {}
    for number, cell in enumerate(CODE):
        exec(compile("".join(cell["source"]), f"examples/tour.ipynb, code cell {number}", "exec"), names)
    dense, wanda, swaps = names["perplexities"].values()
    assert dense < swaps < wanda
    assert (names["layers"]["rows_certified"] == names["layers"]["rows"]).all()
    assert (names["reduction"] > 0).all(axis=None)
    assert names["axes"].containers
    refined = names["refined"]
    assert refined.certified.all()
    assert names["changes"].min() > -1e-6 * refined.loss_after[0]
    assert names["same_bits"]
    assert names["same_masks"]
    assert not list(tmp_path.iterdir())
    shown = [line for cell in CODE for output in cell["outputs"] for line in output.get("text", [])]
    printed = capsys.readouterr().out
    assert shown
    assert all(line.rpartition(" ")[0][:20] in printed for line in shown)  # figures depend on the processor
    tables = [output["data"]["text/plain"] for cell in CODE for output in cell["outputs"] if "data" in output]
    stored = [float(line.split()[-1]) for line in tables[0][1:]]
    assert stored == pytest.approx([dense, wanda, swaps], rel=0.01)


def test_the_tour_is_stored_as_it_ran_once_from_the_top():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert "stderr" not in {output.get("name") for output in outputs}
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}
    assert (REPOSITORY / "examples" / "tour.ipynb").stat().st_size < 150_000


@pytest.mark.parametrize("method", ["train_all", "train_lora"])
def test_zeros_are_kept_in_fine_tuning(method, tmp_path):
    if method == "train_lora":
        pytest.importorskip("peft")
    example = runpy.run_path(str(REPOSITORY / "examples" / "finetune.py"))
    model = load_model(write_tiny_model(tmp_path / "model"), "cpu")
    ids = torch.arange(24 * 12).view(24, 12) % 2048
    masks = sparseswaps.prune(model, None, "60%", calibration=ids).masks
    pruned = {name: model.get_parameter(name).detach().clone() for name in masks}
    dataset, trained = [{"input_ids": row, "labels": row} for row in ids], []
    monitored = example["run_trainer"].__globals__

    def evaluate_after(model, dataset, run_trainer=monitored["run_trainer"], **options):
        run_trainer(model, dataset, **options)
        with torch.no_grad():
            trained.append(model.eval()(input_ids=ids).logits)

    monitored["run_trainer"] = evaluate_after
    tuned = example[method](model, masks, dataset, max_steps=3)
    for name, mask in masks.items():
        weight = tuned.get_parameter(name)
        assert torch.equal(weight != 0, mask)
        assert not torch.equal(weight, pruned[name])
    with torch.no_grad():  # the weights that are saved are the weights that were trained
        torch.testing.assert_close(tuned.eval()(input_ids=ids).logits, trained[0], rtol=1e-4, atol=1e-4)
    tuned.save_pretrained(tmp_path / "tuned")
    saved = load_model(tmp_path / "tuned", "cpu").state_dict()
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name] != 0, mask) for name, mask in masks.items())


def test_the_script_of_fine_tuning_runs(capsys):
    runpy.run_path(str(REPOSITORY / "examples" / "finetune.py"))["main"](max_steps=4)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("%")]
    perplexities = [float(row[-2]) for row in rows]
    assert len(rows) == (4 if find_spec("peft") else 2)
    assert all(perplexity < perplexities[0] for perplexity in perplexities[1:])
    assert {row[-1] for row in rows} == {"59.5%"}


@pytest.mark.slow
def test_the_package_as_pip_installs_it_runs_the_script_of_pruning(tmp_path):
    execute(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, REPOSITORY)
    said = execute(
        sys.executable, REPOSITORY / "examples/prune.py", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    table = dict(re.findall(r"^(\S.*\S) +(\d+\.\d\d)$", said, re.MULTILINE))
    dense, start, refined, fitted, of_blocks, trained_on = map(float, table.values())
    assert dense < of_blocks < fitted < refined < start
    assert dense < trained_on < refined
