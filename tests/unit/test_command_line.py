import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import sparseswaps
from sparseswaps.__main__ import main
from sparseswaps.model.loading import load_model, load_tokenizer

SIZES = ["--samples", "8", "--held-out", "4", "--seqlen", "32"]


def test_a_model_is_pruned_as_by_the_function_and_saved_in_its_dtype(model, tmp_path, capsys):
    settings = {"warmstart": "ria", "max_swaps": 2, "reconstruction": {"iterations": 5}}
    options = ["--warmstart", "ria", "--max-swaps", "2", "--reconstruction", '{"iterations": 5}']
    load_model(model, "cpu").to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
    load_tokenizer(model).save_pretrained(tmp_path / "bfloat16")
    main(["prune", str(tmp_path / "bfloat16"), "--pattern", "2:4", "--out", str(tmp_path / "pruned"), *SIZES, *options])
    printed = capsys.readouterr().out
    by_function = load_model(tmp_path / "bfloat16", "cpu")
    tokenizer = load_tokenizer(model)
    result = sparseswaps.prune(by_function, tokenizer, "2:4", samples=8, held_out=4, seqlen=32, **settings)
    pruned = load_model(tmp_path / "pruned", "cpu", dtype="checkpoint")
    assert pruned.dtype == torch.bfloat16
    expected = by_function.to(torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pruned.state_dict().items())
    assert load_tokenizer(tmp_path / "pruned").get_vocab() == tokenizer.get_vocab()
    assert f"50.0% of {sum(mask.numel() for mask in result.masks.values()):,} weights are zero" in printed
    assert sum(int(line.split()[-4].replace(",", "")) for line in printed.splitlines()[1:-2]) == sum(
        row["swaps"] for row in result.losses
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--pattern", "3:2"], "3:2"),
        (["--pattern", "50%", "--warmstart", "wand"], "wanda"),
        (["--pattern", "50%", "--samples", "no"], "samples"),
        (["--pattern", "50%", "--reconstruction", "lstsq"], "least_squares"),
        (["--pattern", "60"], "60%"),
        (["--pattern", "50%", "--calibration", "missing.txt"], "missing.txt"),
        (["--pattern", "50%", "--calibration", "./missing"], ".jsonl"),  # another ending than those of files
        (["--pattern", "50%", "--seqlen", "2048"], "64"),  # tokens that the model takes
        (["--pattern", "50%", "--samples", "100000"], "100000"),
        (["--pattern", "50%", "--device", "gpu"], "gpu"),
        (["--pattern", "50%", "--revision", "main"], "revision"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(options, name, model, tmp_path):
    out = tmp_path / "pruned"
    assert name in error_line("prune", model, "--out", out, *SIZES, *options)
    assert not out.exists()


def error_line(*arguments):
    """Return the line with which a command ends."""
    with pytest.raises(SystemExit) as error:
        main(list(map(str, arguments)))
    assert str(error.value).startswith("error: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("command", ["prune", "inspect", "compress"])
def test_a_path_that_is_no_checkpoint_is_named(command, model, tmp_path):
    (tmp_path / "file").write_text("no model")
    (tmp_path / "empty").mkdir()
    sparseswaps.compress(model, tmp_path / "compressed")
    load_model(model, "cpu").save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    load_tokenizer(model).save_pretrained(tmp_path / "sharded")
    sparseswaps.compress(tmp_path / "sharded", tmp_path / "compressed shards")
    more = {"prune": ["--pattern", "50%", *SIZES, "--out", tmp_path / "out"], "compress": [tmp_path / "out"]}
    for name in ("missing", "a/missing/model", "file", "empty", "compressed", "compressed shards"):
        line = error_line(command, tmp_path / name, *more.get(command, []))
        assert str(tmp_path / name) in line
        assert "snakemake" not in line
        assert "tokenizer" not in line
        assert ("load_compressed" in line) == ("compressed" in name)
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer_is_told_which_files_it_needs(model, tmp_path):
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer.json" in error_line("prune", model, "--pattern", "50%", "--out", tmp_path / "pruned", *SIZES)


def test_a_model_that_is_too_large_for_the_device_is_one_line(model, tmp_path, monkeypatch):
    def move(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(LlamaForCausalLM, "to", move)
    monkeypatch.setattr("sparseswaps.model.loading.load_model", lambda *_: AutoModelForCausalLM.from_pretrained(model))
    options = ["--pattern", "50%", "--out", tmp_path / "pruned", "--device", "meta", *SIZES]
    assert "--device" in error_line("prune", model, *options)


def test_an_existing_folder_is_not_overwritten(model):
    assert "exists" in error_line("prune", model, "--pattern", "50%", "--out", model)


def test_a_dense_checkpoint_that_is_compressed_is_said_to_be_no_smaller(model, tmp_path, capsys):
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")  # which transformers does not read
    main(["compress", str(model), str(tmp_path / "dense")])
    assert f"{model} is not pruned" in capsys.readouterr().out
    main(["prune", str(model), "--pattern", "2:4", "--out", str(tmp_path / "pruned"), *SIZES])
    main(["compress", str(tmp_path / "pruned"), str(tmp_path / "small")])
    assert "is not pruned" not in capsys.readouterr().out


def test_masks_and_checkpoints_of_the_workflow_are_shown(finished, capsys):
    workflow, _ = finished
    for pattern, groups, zeros in (("2of4", "2:4", "50.0%"), ("60pct", "-", "59.4%")):
        folder = workflow.folder / "results" / "tiny" / "stdlib" / "seed0" / pattern / "wanda" / "swaps"
        base = json.loads((folder / "checkpoint" / "sparseswaps.json").read_text())["base"]
        for path in (folder / "checkpoint", folder / "masks.safetensors"):
            main(["inspect", str(path)])
            first, _header, *rows = capsys.readouterr().out.splitlines()
            assert base["fingerprint"] in first
            q_proj = next(row.split() for row in rows if "q_proj" in row)
            assert (q_proj[-1], q_proj[-3]) == (groups, zeros)


def test_a_dense_checkpoint_has_no_pattern(model, capsys):
    main(["inspect", str(model)])
    assert {tuple(row.split()[-3::2]) for row in capsys.readouterr().out.splitlines()[2:]} == {("0.0%", "-")}


def test_help_needs_no_torch():
    check = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    code = f"{check}; from sparseswaps.__main__ import main; main(['prune', '--help'])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("False\n")
    assert "--max-swaps" in printed
