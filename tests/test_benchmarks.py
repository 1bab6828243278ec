"""The benchmarks run to their end, and what they compare agrees; the speeds that they print here mean nothing."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from test_semi_structured import OnTheCPU
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from sparseswaps import report


@pytest.mark.parametrize("part", [["cpu", "--quick"], ["gpu", "--rehearse"]])
def test_engine(part, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "SPARSESWAPS_ASSETS"}
    command = [sys.executable, REPOSITORY / "benchmarks" / "engine.py", *part, "--out", tmp_path / "figures.json"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout  # it fails where searches disagree or a row is not certified
    found = json.loads((tmp_path / "figures.json").read_text())
    if part[0] == "cpu":
        assert {case["name"] for case in found["cases"]} >= {"embedded down_proj", "synthetic 512"}
    else:
        assert found["model"]["matrices_done"] == found["model"]["matrices"]


def run(script, *arguments, out):
    command = [sys.executable, REPOSITORY / "benchmarks" / script, *arguments, "--out", out]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return json.loads(out.read_text())


def test_capture(tmp_path):
    found = run("capture.py", "cpu", "--quick", "--repeats", "1", out=tmp_path / "figures.json")
    assert all(seconds > 0 for seconds in found["seconds"].values())


def test_memory(tmp_path):
    found = run("memory.py", "--quick", "--work", tmp_path, out=tmp_path / "figures.json")
    assert {"model", "capture", "warmstart", "refine", "masks", "assemble"} <= set(found["peak_resident_mb"])
    assert found["bound_mb"] == sum(found["terms_mb"].values())


def test_inference_on_the_cpu(tmp_path):
    found = run("inference.py", "cpu", "--quick", "--repeats", "2", out=tmp_path / "figures.json")
    sizes = {(shape["d_out"], shape["d_in"]): shape["left dense"] for shape in found["shapes"]}
    assert sizes.pop((64, 96)) == "64 x 96, which are no multiples of 32 and 64"
    assert sizes == dict.fromkeys([(64, 64), (32, 64), (96, 64)])
    assert report.in_dense([found])


@pytest.fixture
def inference():
    spec = importlib.util.spec_from_file_location("inference", REPOSITORY / "benchmarks" / "inference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_inference_with_kernels(inference):
    """Its logic, where a dense product stands for the kernels; CUTLASS's refuse, as they do off a GPU."""
    model = inference.random_model("gpu", True, "cpu")
    backends = {"CUTLASS": SparseSemiStructuredTensorCUTLASS, "stand-in": OnTheCPU}
    found = inference.measure(model, (1, 8), backends, "cpu", 2) | {"part": "gpu", "machine": "a", "date": "b"}
    assert [shape["layers"] for shape in found["shapes"]] == [16, 16, 16, 8]
    for shape in found["shapes"][:3]:
        assert "Only CUDA tensors" in shape["refused"]["CUTLASS"]
        assert shape["bytes"]["stand-in"] * 16 == shape["bytes"]["dense"] * 9
        assert [set(entry["seconds"]) for entry in shape["calls"]] == [
            {"dense", "half zeros", "2:4 zeros", "stand-in"}
        ] * 2
    assert (found["forward"]["backend"], found["forward"]["layers"]) == ("stand-in", 48)
    saved = found["forward"]["bytes"]["2:4 zeros"] - found["forward"]["bytes"]["stand-in"]
    assert saved * 16 == 7 * 2 * 8 * (2 * 64 * 64 + 2 * 32 * 64 + 2 * 96 * 64)
    (section,) = report.in_kernels([found | {"model": "random"}])
    assert [row[0][0] for row in section["table"]["rows"]] == ["64 x 64", "32 x 64", "96 x 64", "whole model"]
    assert section["notes"][0] == "64 x 96: 64 x 96, which are no multiples of 32 and 64"
    assert section["notes"][1].startswith("CUTLASS: ")


def test_inference_measures_no_kernels_that_are_wrong(inference):
    class Wrong(OnTheCPU):
        def _mm(self, *inputs, **named):
            return super()._mm(*inputs, **named) * 1.02

    pruned = inference.random_model("gpu", True, "cpu").model.layers[0].self_attn.q_proj.weight.detach()
    with pytest.raises(SystemExit, match="Wrong: a product with a"), torch.inference_mode():
        inference.compressed(pruned, {"Wrong": Wrong})


def test_inference_without_a_gpu_says_so(inference, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["inference.py", "gpu"])
    with pytest.raises(SystemExit, match=r"^the gpu part needs a CUDA device$"):
        inference.main()


@pytest.mark.gpu
def test_inference_on_a_gpu(tmp_path):
    found = run("inference.py", "gpu", "--quick", "--repeats", "2", out=tmp_path / "figures.json")
    assert found["forward"]["backend"] in ("cuSPARSELt", "CUTLASS")
    assert all("kernels" in shape for shape in found["shapes"] if not shape["left dense"])


def test_documents_quote_the_committed_figures():
    cases = json.loads((REPOSITORY / "benchmarks" / "results" / "engine-cpu.json").read_text())["cases"]
    at = {case["d_in"]: case for case in cases if case["name"].startswith("synthetic") and case["pattern"] == "60%"}
    readme, study = (" ".join((REPOSITORY / name).read_text().split()) for name in ("README.md", "docs/study.md"))
    plain, tuned = ([round(at[d_in][key]["median"]) for d_in in (1536, 4096)] for key in ("ratio_plain", "ratio"))
    assert f"{plain[0]} times less than a straightforward search in torch at d_in 1536" in readme
    assert f"{plain[1]} times less at 4096 ({tuned[0]} and {tuned[1]} times less than one" in readme
    memory = json.loads((REPOSITORY / "benchmarks" / "results" / "memory-cpu.json").read_text())
    most = max(memory["peak_resident_mb"].values())
    assert most < memory["bound_mb"]
    assert f"within {most:,} MB resident" in study
    capture = json.loads((REPOSITORY / "benchmarks" / "results" / "capture-cpu.json").read_text())
    assert capture["ratio"] < 1.5
    assert f"capture take {capture['ratio']:.2f} times a plain forward pass" in study
