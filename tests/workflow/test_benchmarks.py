"""The benchmarks run to their end, and what they compare agrees; the speeds that they print here mean nothing."""

import importlib
import json
import sys

import pytest
from helpers import REPOSITORY, execute, read_document

BENCHMARKS = REPOSITORY / "benchmarks"
STAGES = ["capture", "perplexity", "block training", "least squares", "least squares"]


def run(script, *arguments, folder):
    execute(sys.executable, BENCHMARKS / script, *arguments, "--out", folder / "figures.json")
    return json.loads((folder / "figures.json").read_text())


@pytest.mark.slow
def test_engine(tmp_path, monkeypatch):
    """The benchmark fails where searches disagree or a row is not certified."""
    monkeypatch.delenv("SPARSESWAPS_ASSETS", raising=False)
    measured = run("engine.py", "cpu", "--quick", folder=tmp_path)
    assert {case["name"] for case in measured["cases"]} >= {"embedded down_proj", "synthetic 512"}
    measured = run("engine.py", "gpu", "--rehearse", folder=tmp_path)
    assert measured["model"]["matrices_done"] == measured["model"]["matrices"]


@pytest.mark.slow
def test_floors(tmp_path):
    measured = run("floors.py", "--quick", "--repeats", "1", folder=tmp_path)
    assert [row["stage"].split(",")[0] for row in measured["stages"]] == STAGES
    assert all(row["floor_seconds"] > 0 for row in measured["stages"])
    assert measured["swaps_per_second"]["64"] > 0


@pytest.mark.slow
def test_refit(tmp_path):
    """The benchmark fails where a row is not certified."""
    measured = run("refit.py", "--quick", folder=tmp_path)
    assert [case["pattern"] for case in measured["cases"]] == ["60%", "2:4"]
    assert all(case["refit_error"] < 1 for case in measured["cases"])


@pytest.mark.slow
def test_capture(tmp_path):
    measured = run("capture.py", "cpu", "--quick", "--repeats", "1", folder=tmp_path)
    assert all(seconds > 0 for seconds in measured["seconds"].values())


@pytest.mark.slow
def test_memory(tmp_path):
    measured = run("memory.py", "--quick", "--work", tmp_path, folder=tmp_path)
    stages = {"model", "capture", "warmstart", "refine", "masks", "assemble", "perplexity", "harness"}
    assert stages <= set(measured["peak_resident_mb"]) == set(measured["bound_mb"])
    assert max(measured["bound_mb"].values()) < sum(measured["terms_mb"].values())


@pytest.mark.slow
def test_decode(tmp_path, monkeypatch):
    """The benchmark fails where the sparse model does not write the text of the dense model with zeros."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    if not importlib.import_module("kept_weights").processor_can_run():
        pytest.skip("the kernel needs AVX2")
    (alone,) = run("decode.py", "--quick", folder=tmp_path)["runs"]
    dense, _, sparse = alone["variants"]
    assert sparse["weights_mb"] < dense["weights_mb"] / 2
    assert sparse["logits_error"] < 1e-5
    assert all(row["tokens_per_s"]["median"] > 0 for row in alone["variants"])


def test_documents_quote_the_committed_figures():
    results = BENCHMARKS / "results"
    cases = json.loads((results / "engine-cpu.json").read_text())["cases"]
    at = {case["d_in"]: case for case in cases if case["name"].startswith("synthetic") and case["pattern"] == "60%"}
    pages = ("README.md", "docs/engine.md", "docs/study.md", "docs/decisions.md")
    readme, engine, study, decisions = (" ".join((REPOSITORY / name).read_text().split()) for name in pages)
    plain, tuned = ([round(at[d_in][key]["median"]) for d_in in (1536, 4096)] for key in ("ratio_plain", "ratio"))
    for page in (readme, engine):
        assert all(f"{ratio} times" in page for ratio in plain)
    assert f"{tuned[0]} and {tuned[1]} times" in engine
    for key in ("engine_us", "plain_us", "dense_us"):
        assert f"| {at[1536][key]['median']:,.0f} | {at[4096][key]['median']:,.0f} |" in engine
    float32, bfloat16 = (
        {
            row["stage"].split(",")[0]: row
            for row in json.loads((results / f"floors-cpu-{dtype}.json").read_text())["stages"]
        }
        for dtype in ("float32", "bfloat16")
    )
    capture, scoring, training = (float32[stage]["ratio"] for stage in STAGES[:3])
    assert f"capture takes {capture:.2f} times" in study
    assert f"perplexity {scoring:.2f}, a training epoch {training:.2f}" in study
    capture, scoring, training = (bfloat16[stage]["seconds"] / float32[stage]["seconds"] for stage in STAGES[:3])
    assert f"{capture:.2f} of the time of float32 in capture, {scoring:.2f} in perplexity and {training:.2f}" in study
    refit = json.loads((results / "refit-cpu.json").read_text())["cases"]
    middle, wide = (next(case for case in refit if (case["d_in"], case["pattern"]) == (d, "60%")) for d in (1536, 4096))
    assert f"{middle['refit_ms']:.0f} ms instead of {middle['swaps_ms']:.0f} ms" in engine
    assert f"elimination {middle['obc_ms']:.0f} ms" in engine
    assert f"takes {wide['refit_ms'] / 1e3:.1f} s" in engine
    falls = [round(100 * (1 - middle[key])) for key in ("refit_error", "swaps_error")]
    assert f"falls by {falls[0]} % instead of {falls[1]} %" in engine
    memory = json.loads((results / "memory-cpu.json").read_text())
    most = max(memory["peak_resident_mb"].values())
    assert most < memory["bound_mb"]
    assert f"{most:,} MB" in study
    capture = json.loads((results / "capture-cpu.json").read_text())
    assert capture["ratio"] < 1.5
    assert f"{capture['ratio']:.2f} times" in study
    overhead = json.loads((results / "overhead-cpu.json").read_text())
    forked, started = overhead["forked"], overhead["started"]
    assert f"{forked['wall_s']:.0f} s instead of {started['wall_s']:.0f} s" in decisions
    assert f"{forked['cpu_s']:.0f} s of CPU time instead of {started['cpu_s']:.0f} s" in decisions
    assert f"{forked['jobs_cpu_s']:.0f} s of them work" in decisions


def test_the_page_on_zeros_quotes_the_committed_figures_of_decoding():
    one, two = (
        {row["variant"]: row for row in run["variants"]}
        for run in json.loads((BENCHMARKS / "results" / "decode-cpu.json").read_text())["runs"]
    )
    page = read_document("docs/worth.md").replace("\n", " ")
    rates = {name: [run[name]["tokens_per_s"]["median"] for run in (one, two)] for name in one}
    dense = max(max(both) for name, both in rates.items() if "dense" in name)
    sparse = max(max(both) for name, both in rates.items() if "dense" not in name)
    many, plain = one["60%, float32"], one["dense, bfloat16"]
    quoted = [
        f"it writes {many['ratio']:.2f} times as many",
        f"it writes {two['60%, float32']['ratio']:.2f} times as many",
    ]
    quoted += [
        f"two threads writes {dense:.1f} tokens",
        f"more than {sparse:.1f}",
        f"({one['10%, float32']['ratio']:.2f})",
    ]
    quoted += [f"{many['weights_mb']:.0f} MB of weights instead of {plain['weights_mb']:.0f} MB"]
    quoted += [f"{many['resident_mb']:.0f} MB instead of {plain['resident_mb']:.0f} MB"]
    assert [text for text in quoted if text not in page] == []
    assert sparse < 1.3 * dense  # the reason why the kernel is not in the package
