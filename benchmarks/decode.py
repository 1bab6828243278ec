"""Measure how fast a pruned model writes text on the CPU, and its memory; write results/decode-cpu.json.

    python benchmarks/decode.py                 SmolLM2-135M-Instruct (`make smollm2`), one thread, then two threads
    python benchmarks/decode.py --threads 1     one thread alone; results of other threads stay in the file

The weights of every decoder block are pruned by magnitude, row by row. Speed does not depend on which weights are kept.
A model that holds its kept weights alone (kept_weights.py) is compared with the dense model in float32 and bfloat16. At
10 % the kernel runs with few zeros: this separates the gain of the zeros from the gain of the kernel. Each variant is a
process of its own. The variants take turns, and each turn is one call of `generate`: greedy, batch 1. The figures are
medians. Nothing else should run on the machine; `load` in the file says what ran. Needs Linux and the project
installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from engine import machine, save, say, show_table, spread
from kept_weights import leave_zeros_out, processor_can_run
from torch import Tensor
from transformers import AutoModelForCausalLM

import sparseswaps
from sparseswaps.embedded import MODEL
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.blocks import find_blocks, find_layers

REPOSITORY = Path(__file__).resolve().parent.parent
SMOLLM2 = REPOSITORY / "models" / "SmolLM2-135M-Instruct"
PROMPT = [504, 2381, 282, 260, 7998, 3180, 5698, 281]  # any ids: few tokens, so that `generate` is mostly decoding
LONG = 128  # tokens of the prompt whose time is measured alone
SPARSITIES = ("10%", "50%", "60%", "70%")
MB = 1e6


# ---- one variant, in its own process ---------------------------------------------------------------------------------


def resident() -> tuple[float, float]:
    """Return the resident memory of this process and its peak since `forget_peak`, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[key].split()[0]) * 1024 / MB for key in ("VmRSS", "VmHWM"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@torch.no_grad()
def serve(order: dict[str, Any]) -> None:
    """Load a model, then answer each line of the standard input with the figures of one call of `generate`."""
    torch.set_num_threads(order["threads"])
    before = resident()[0]
    dtype = getattr(torch, order["dtype"])
    if order["run"] == "sparse":
        model = sparseswaps.load_compressed(order["path"], dtype=dtype)
        leave_zeros_out(model)
    else:
        model = AutoModelForCausalLM.from_pretrained(order["path"], dtype=dtype)
    after, peak = resident()
    about = {"imports_mb": before, "loaded_mb": after, "load_peak_mb": peak, "weights_mb": weight_bytes(model) / MB}
    prompt = torch.tensor([order["prompt"]])
    if order["run"] == "sparse":
        expected = torch.load(order["expected"])
        error = (logits(model, expected["ids"]) - expected["logits"]).abs().max()
        about["logits_error"] = float(error / expected["logits"].abs().max())
        about["same_text"] = torch.equal(
            write(model, prompt, len(expected["ids"][0]) - prompt.shape[1]), expected["ids"]
        )
    write(model, prompt, 4)
    model(prompt.repeat(1, 2))
    forget_peak()
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        write(model, prompt, order["tokens"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        began = time.perf_counter()
        model(prompt.repeat(1, LONG // prompt.shape[1]), logits_to_keep=1)
        long = time.perf_counter() - began
        figures = {"tokens_per_s": order["tokens"] / wall, "tokens_per_cpu_s": order["tokens"] / cpu}
        now, peak = resident()
        print(json.dumps(figures | {"prompt_s": long, "resident_mb": now, "peak_mb": peak}), flush=True)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's weights."""
    kept = {id(part.kept): part.kept.nbytes for part in model.modules() if hasattr(part, "kept")}
    return sum(kept.values()) + sum(parameter.nbytes for parameter in model.parameters())


def write(model: Any, prompt: Tensor, tokens: int) -> Tensor:
    """Return a prompt and the model's greedy continuation: [1, length + tokens]."""
    options = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)


def logits(model: Any, ids: Tensor) -> Tensor:
    """Return the logits of a text read token by token, as in decoding."""
    cache, rows = None, []
    for token in ids[0]:
        output = model(token.view(1, 1), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        rows.append(output.logits[0, -1].float())
    return torch.stack(rows)


# ---- all variants ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def write_checkpoints(source: Path, work: Path, prompt: list[int], tokens: int) -> dict[str, Any]:
    """Write the pruned model at every sparsity, compressed, and the logits and text of the dense model with zeros."""
    weights = {}
    for label in SPARSITIES:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        kept = total = 0
        for block, layers in zip(find_blocks(model)[1], find_layers(model), strict=True):
            for layer in layers:
                weight = layer.view_in(block.get_parameter(layer.parameter).data)
                weight[~keep_best(weight.abs(), parse_pattern(label))] = 0
                kept, total = kept + int(weight.count_nonzero()), total + weight.numel()
        weights[label] = {"kept": kept, "of": total, "all": sum(p.numel() for p in model.parameters())}
        ids = write(model, torch.tensor([prompt]), tokens)
        torch.save({"ids": ids, "logits": logits(model, ids)}, work / f"{label}.pt")
        model.to(torch.bfloat16).save_pretrained(work / label)  # the source is in bfloat16, so no bit is lost
        sparseswaps.compress(work / label, work / f"{label}-compressed")
    return weights


def variants(source: Path, work: Path, quick: bool) -> dict[str, dict[str, Any]]:
    """Return the path, the way to run and the dtype of each variant."""
    dense = {
        f"dense, {dtype}": {"path": str(source), "run": "dense", "dtype": dtype} for dtype in ("float32", "bfloat16")
    }
    sparse = {
        f"{label}, {dtype}": {
            "path": str(work / f"{label}-compressed"),
            "expected": str(work / f"{label}.pt"),
            "run": "sparse",
            "dtype": dtype,
        }
        for label, dtype in [*((label, "float32") for label in SPARSITIES), ("60%", "bfloat16")]
    }
    return dense | (dict(list(sparse.items())[2:3]) if quick else sparse)


def start(order: dict[str, Any]) -> subprocess.Popen:
    command = [sys.executable, __file__, "--serve", json.dumps(order)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        sys.exit("FAILED: a variant ended; its error is above")
    return json.loads(line)


def measure_all(orders: dict[str, dict[str, Any]], threads: int, rounds: int) -> dict[str, Any]:
    """Measure all variants in turns; return the figures of each and the machine's load before and after."""
    load = [os.getloadavg()[0]]
    processes = {name: start(order | {"threads": threads}) for name, order in orders.items()}
    about = {name: answer(process) for name, process in processes.items()}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in orders}
    for number in range(rounds):
        for name, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            turns[name].append(answer(process))
        say(
            f"{threads} threads, round {number + 1}:",
            {name: round(turns[name][-1]["tokens_per_s"], 1) for name in turns},
        )
        load.append(os.getloadavg()[0])
    for process in processes.values():
        process.stdin.close()
        process.wait()
    dense = [name for name, order in orders.items() if order["run"] == "dense"]
    best = {
        key: max(statistics.median(turn[key] for turn in turns[name]) for name in dense)
        for key in ("tokens_per_s", "tokens_per_cpu_s")
    }
    rows = []
    for name, order in orders.items():
        row = {"variant": name, "run": order["run"], "dtype": order["dtype"]} | about[name]
        for key in ("tokens_per_s", "tokens_per_cpu_s", "prompt_s"):
            row[key] = spread([turn[key] for turn in turns[name]])
        row["resident_mb"] = turns[name][-1]["resident_mb"]
        row["peak_mb"] = max(turn["peak_mb"] for turn in turns[name])
        row["ratio"] = row["tokens_per_s"]["median"] / best["tokens_per_s"]
        row["cpu_ratio"] = row["tokens_per_cpu_s"]["median"] / best["tokens_per_cpu_s"]
        rows.append(row)
    return {"threads": threads, "rounds": rounds, "load": spread(load), "variants": rows}


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="a folder in Hugging Face layout, in bfloat16")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=64, help="tokens that each call writes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the embedded model, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode-cpu.json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(json.loads(arguments.serve))
        return
    if arguments.quick:
        arguments.model, arguments.tokens, arguments.rounds, arguments.threads = Path(MODEL), 8, 2, [1]
    if not processor_can_run():
        sys.exit("the kernel needs an x86 processor with AVX2 and FMA")
    if not (arguments.model / "config.json").is_file():
        sys.exit(f"{arguments.model}: not there; run `make smollm2`, or name a folder with --model")
    prompt = [id % 1000 for id in PROMPT]
    report = machine("cpu") | {"model": arguments.model.name, "quick": arguments.quick, "tokens": arguments.tokens}
    del report["threads"]
    report |= {"prompt_tokens": len(prompt), "long_prompt_tokens": LONG, "runs": []}
    if arguments.out.is_file() and not arguments.quick:
        before = json.loads(arguments.out.read_text())["runs"]
        report["runs"] = [run for run in before if run["threads"] not in arguments.threads]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        report["weights"] = write_checkpoints(arguments.model, work, prompt, arguments.tokens)
        orders = variants(arguments.model, work, arguments.quick)
        for order in orders.values():
            order |= {"prompt": prompt, "tokens": arguments.tokens}
        for threads in arguments.threads:
            report["runs"] = [*report["runs"], measure_all(orders, threads, arguments.rounds)]
            report["runs"].sort(key=lambda run: run["threads"])
            save(report, arguments.out)
    columns = {"": "variant", "tokens/s": "tokens_per_s", "times": "ratio", "tokens/CPU s": "tokens_per_cpu_s"}
    columns |= {
        "times, CPU": "cpu_ratio",
        "weights MB": "weights_mb",
        "process MB": "resident_mb",
        "long prompt s": "prompt_s",
    }
    for run in report["runs"]:
        show_table(f"{run['threads']} threads; load {run['load']['median']:.1f}", run["variants"], columns)
        wrong = [row for row in run["variants"] if row["run"] == "sparse" and row["dtype"] == "float32"]
        if max(row["logits_error"] for row in wrong) > 1e-4 or not all(row["same_text"] for row in wrong):
            sys.exit("FAILED: a sparse model does not agree with the dense model with zeros")
    say(f"\nwritten: {arguments.out}")


if __name__ == "__main__":
    main()
