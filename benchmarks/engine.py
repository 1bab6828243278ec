"""Measure the speed of the swap engine on one CPU core or on one GPU; print tables and write results/engine-PART.json.

    python benchmarks/engine.py cpu     the search compared with dense searches in torch and with the memory's speed
    python benchmarks/engine.py gpu     every matrix of a model with the shapes of Llama-3.1-8B, to certified optima

Needs torch, numpy and tabulate, numba for `cpu`, triton for `gpu`. The `cpu` part also measures layers of the embedded
model, and of the models in the folder SPARSESWAPS_ASSETS, if the whole project is installed.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package may not be installed

from sparseswaps.base.progress import ignore_progress
from sparseswaps.layer.criteria import wanda
from sparseswaps.layer.gram import correlation, row_loss, validate_layer
from sparseswaps.layer.pattern import Pattern, parse_pattern
from sparseswaps.layer.swaps.backends import Rows
from sparseswaps.layer.swaps.certificate import improvable_rows
from sparseswaps.layer.swaps.engine import Refinement, refine_mask
from sparseswaps.workflow.machine import processor

STARTED = time.perf_counter()
SPARSITY = parse_pattern("60%")
UNLIMITED = torch.iinfo(torch.int64).max
REAL = ("stories260k", "babyllama105")  # models in SPARSESWAPS_ASSETS
DENSE_STOP = 1e-6  # the least gain of a swap, as a share of its two weights' own costs; float32 resolves no less

# Llama-3.1-8B: the prunable layers of a block (d_out, d_in, the input that they share), and how many blocks.
LAYERS = {
    "q_proj": (4096, 4096, "attention"),
    "k_proj": (1024, 4096, "attention"),
    "v_proj": (1024, 4096, "attention"),
    "o_proj": (4096, 4096, "heads"),
    "gate_proj": (14336, 4096, "mlp"),
    "up_proj": (14336, 4096, "mlp"),
    "down_proj": (4096, 14336, "gated"),
}
BLOCKS = 32
VARIANTS = 4  # Gram matrices per input; blocks take turns
PAPER = 106.0  # seconds per swap iteration over that model on an H100 (arXiv 2512.10922)


# ---- both parts ------------------------------------------------------------------------------------------------------


def synthetic_gram(d_in: int, seed: int, device: str) -> Tensor:
    """Return a Gram matrix similar to Gram matrices of language models, float32 [d_in, d_in], of 4 d_in tokens.

    Features share d_in / 16 factors of falling strength, and have noise and means of their own. Their scales are
    log-normal, and one feature in a hundred is an outlier of 20 times its scale.
    """
    random = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=device)

    rank = max(8, d_in // 16)
    factors = torch.nn.functional.normalize(normal(d_in, rank) * torch.arange(1, rank + 1, device=device) ** -0.5)
    scale = torch.exp(0.3 * normal(d_in, 1))
    scale[torch.randperm(d_in, generator=random, device=device)[: max(1, d_in // 100)]] *= 20
    mean = 0.5 * normal(d_in, 1)
    gram = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
    for part in torch.arange(4 * d_in).split(4096):
        inputs = (0.7 * factors @ normal(rank, len(part)) + 0.7 * normal(d_in, len(part)) + mean) * scale
        gram += inputs @ inputs.T
    return ((gram + gram.T) / 2).float()


def synthetic_weight(d_out: int, d_in: int, seed: int, device: str) -> Tensor:
    """Return normal weights whose columns differ in scale, float32 [d_out, d_in]."""
    random = torch.Generator(device).manual_seed(seed)
    scale = 0.02 * torch.exp(0.3 * torch.randn(d_in, generator=random, device=device))
    return torch.randn(d_out, d_in, generator=random, device=device) * scale


def correlation_figures(gram: Tensor) -> dict[str, float]:
    """Return the mean |correlation| of two features, and the mean over features of their strongest correlation."""
    scale = gram.diagonal().clamp_min(0).rsqrt().nan_to_num(posinf=0)
    strength = (gram.float() * scale * scale[:, None]).abs_().fill_diagonal_(0)
    d_in = len(gram)
    return {"mean_correlation": float(strength.sum() / (d_in * (d_in - 1))), "mean_rho": float(strength.amax(1).mean())}


def read_clock(device: str) -> float:
    """Return the time after the device has finished all its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(device: str, function: Callable, *arguments: Any, **named: Any) -> tuple[Any, float]:
    """Call a function; return its result and its seconds on the device."""
    start = read_clock(device)
    result = function(*arguments, **named)
    return result, read_clock(device) - start


@dataclass(frozen=True)
class Search:
    """The result of one search by a backend, and its seconds."""

    mask: Tensor
    swaps: Tensor
    certified: Tensor
    seconds: float


def search(backend: str, weight: Tensor, gram: Tensor, mask: Tensor, current: Tensor, size: int) -> Search:
    """Measure the search alone, from copies of a mask and its correlation."""
    swap_rows = importlib.import_module(f"sparseswaps.layer.swaps.{backend}").swap_rows
    mask, current = mask.clone(), current.clone()
    budget = torch.full((len(weight),), UNLIMITED, device=weight.device)
    rows = Rows(weight, gram, mask, torch.zeros_like(mask), current, size, budget)
    (swaps, certified), seconds = measure(weight.device.type, swap_rows, rows, ignore_progress)
    return Search(mask, swaps, certified, seconds)


def parts_of_a_call(weight: Tensor, gram: Tensor, mask: Tensor, pattern: Pattern, backend: str) -> dict[str, Any]:
    """Run the steps of `refine_mask` one by one; return the seconds of each, and the result of the search."""
    device, size = weight.device.type, pattern.groups(weight.shape[1]).size
    (weight, gram), check = measure(device, validate_layer, weight, gram)
    current, correlation_s = measure(device, correlation, weight, gram, mask)
    first = search(backend, weight, gram, mask, current, size)
    current, again = measure(device, correlation, weight, gram, first.mask)
    second = search(backend, weight, gram, first.mask, current, size)
    sample = torch.arange(len(weight), device=weight.device)[:: max(1, len(weight) // 4)]
    wrong, certificate = measure(
        device, improvable_rows, weight[sample], gram, first.mask[sample], torch.zeros_like(mask[sample]), size
    )
    return {
        "check_s": check,
        "correlation_s": correlation_s,
        "search_s": first.seconds,
        "second_pass_s": again + second.seconds,
        "certificate_s": certificate,
        "swaps": first.swaps,
        "certified": bool(first.certified.all() and second.certified.all() and not wrong.any()),
    }


def copy_bandwidth(megabytes: int, device: str = "cpu") -> float:
    """Return the bytes read and written per second by a large copy, the median of five."""
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * len(source) / statistics.median(measure(device, target.copy_, source)[1] for _ in range(5))


def spread(values: list[float]) -> dict[str, float] | None:
    """Return the median and the range of some values, or None if there are none."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine(device: str) -> dict[str, Any]:
    """Return the machine, date and versions of this measurement."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "numba", "triton", "transformers", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"machine": name, "date": date.today().isoformat(), "versions": versions, "threads": torch.get_num_threads()}


def say(*parts: Any) -> None:
    print(*parts, flush=True)


def format_cell(value: Any) -> str:
    """Format a table's cell: a number with three significant digits, a spread as its median and range."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        least, median, most = (format_cell(value[key]) for key in ("min", "median", "max"))
        return median if least == most else f"{median} [{least}..{most}]"
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"
    return str(value)


def show_table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Print a Markdown table; `columns` maps headers to keys of the rows."""
    cells = [[format_cell(row[key]) for key in columns.values()] for row in rows]
    say(f"\n{title}\n{tabulate(cells, list(columns), tablefmt='github', disable_numparse=True)}")


def save(report: dict[str, Any], path: Path) -> None:
    """Write the report so far, floats with five significant digits."""
    rounded = json.loads(json.dumps(report), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded, indent=2) + "\n")


# ---- cpu -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A layer and a pattern, with the warm start of all searches."""

    name: str
    weight: Tensor  # float32 [d_out, d_in]
    gram: Tensor  # float32 [d_in, d_in]
    pattern: Pattern
    mask: Tensor  # from Wanda
    correlation: Tensor  # float64 [d_out, d_in]
    dense_rows: int  # rows that the dense searches run on

    @property
    def size(self) -> int:
        return self.pattern.groups(self.weight.shape[1]).size


def make_case(name: str, weight: Tensor, gram: Tensor, pattern: Pattern, dense_rows: int) -> Case:
    weight, gram = validate_layer(weight.float(), gram.float())
    mask = wanda(weight, gram, pattern)
    return Case(name, weight, gram, pattern, mask, correlation(weight, gram, mask), min(dense_rows, len(weight)))


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Yield one case at a time, so that memory holds one Gram matrix."""
    yield from real_cases(quick)
    for d_in, d_out, dense_rows in ((512, 64, 2),) if quick else ((1536, 512, 8), (4096, 256, 4)):
        gram, weight = synthetic_gram(d_in, 0, "cpu"), synthetic_weight(d_out, d_in, 1, "cpu")
        yield make_case(f"synthetic {d_in}", weight, gram, SPARSITY, dense_rows)
        if d_in <= 1536:
            yield make_case(f"synthetic {d_in}", weight, gram, parse_pattern("2:4"), 64)


def real_cases(quick: bool) -> Iterator[Case]:
    """Yield the widest and the first layer of the middle block of each trained model on this machine."""
    try:
        import transformers

        from sparseswaps.calibration.capture import capture
        from sparseswaps.calibration.documents import load
        from sparseswaps.calibration.sampling import draw
        from sparseswaps.embedded import MODEL
        from sparseswaps.model.description import describe
        from sparseswaps.model.loading import load_tokenizer
        from sparseswaps.model.weights import WeightsOnDisk
    except ImportError as error:
        say(f"skipped: layers of trained models ({error})")
        return
    transformers.utils.logging.disable_progress_bar()
    sources = {"embedded": (MODEL, "embedded")}
    if assets := os.environ.get("SPARSESWAPS_ASSETS"):
        text = str(Path(assets) / "text" / "tinystories_calibration.txt")
        sources |= {name: (Path(assets) / name, text) for name in REAL}
    else:
        say(f"skipped: {', '.join(REAL)}, since SPARSESWAPS_ASSETS is not set")
    for name, (folder, text) in sources.items():
        model = describe(folder)
        documents = ["\n".join(load(text, "calibration"))]
        samples, none = draw(documents, load_tokenizer(model.folder), samples=64, held_out=0, seqlen=256, seed=0)
        middle = len(model.blocks) // 2
        grams = next(islice(capture(WeightsOnDisk(model, "cpu"), samples, none, batch_size=16), middle, None))
        widest = max(model.blocks[middle], key=lambda layer: layer.d_in)
        for layer in (widest, model.blocks[middle][0]):
            weight, gram = model.weight(layer), grams.matrix[grams.reads[layer.name]]
            yield make_case(f"{name} {layer.name.split('.')[-1]}", weight, gram, SPARSITY, 2 if quick else 8)


def dense_row(w: Tensor, gram: Tensor, mask: Tensor, c: Tensor, tuned: bool) -> int:
    """Refine one row to its local optimum by forming the cost of every pair, in float32; return its swaps.

    `w`, `mask` and `c` are [d_in]; the last two change in place. `tuned` replaces plain indexing and the argmin over a
    matrix by operations that are several times faster in torch and give the same results.
    """
    own, swaps = w * w * gram.diagonal(), 0
    while True:
        u, p = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
        pairs = gram.index_select(0, u).index_select(1, p) if tuned else gram[u][:, p]
        pairs.mul_(-2 * w[u, None]).mul_(w[p]).add_((own + 2 * w * c)[u, None]).add_((own - 2 * w * c)[p])
        if tuned:
            row = int(pairs.amin(1).argmin())
            column = int(pairs[row].argmin())
        else:
            row, column = divmod(int(pairs.argmin()), len(p))
        cost, i, j = pairs[row, column], u[row], p[column]
        if not cost < -DENSE_STOP * (own[i] + own[j]):
            return swaps
        mask[i], mask[j] = False, True
        c += w[i] * gram[i] - w[j] * gram[j]
        swaps += 1


def dense_blocks(weight: Tensor, gram: Tensor, mask: Tensor, c: Tensor, size: int) -> int:
    """Refine all rows together for an N:M pattern by forming every pair within a group, in float32; return the swaps.

    `weight`, `mask` and `c` are [rows, d_in]; the last two change in place.
    """
    d_in = weight.shape[1]
    groups = gram.view(d_in // size, size, d_in // size, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
    active, swaps = torch.arange(len(weight)), 0
    while len(active):
        w, slope, kept = weight[active], 2 * weight[active] * c[active], mask[active]
        own = w * w * gram.diagonal()
        grouped = (len(active), -1, size)
        pruning = (own + slope).masked_fill_(~kept, torch.inf).view(grouped)
        keeping = (own - slope).masked_fill_(kept, torch.inf).view(grouped)
        pairs = w.view(grouped)[..., :, None] * w.view(grouped)[..., None, :]
        pairs.mul_(-2).mul_(groups).add_(pruning[..., :, None]).add_(keeping[..., None, :])
        cost, flat = pairs.flatten(1).min(1)
        u = flat // size
        p = u // size * size + flat % size
        rows = torch.arange(len(active))
        better = cost < -DENSE_STOP * (own[rows, u] + own[rows, p])
        active, u, p = active[better], u[better], p[better]
        mask[active, u], mask[active, p] = False, True
        c[active] += weight[active, u, None] * gram[u] - weight[active, p, None] * gram[p]
        swaps += len(active)
    return swaps


def dense_search(case: Case, tuned: bool) -> tuple[Tensor, int, float]:
    """Return the masks of the case's first rows by a dense search, their swaps, and its us per swap."""
    weight, gram = case.weight[: case.dense_rows], case.gram
    mask, c = case.mask[: case.dense_rows].clone(), case.correlation[: case.dense_rows].float()

    def refine_rows() -> int:
        if case.size < weight.shape[1]:
            return dense_blocks(weight, gram, mask, c, case.size)
        return sum(dense_row(w, gram, m, row, tuned) for w, m, row in zip(weight, mask, c, strict=True))

    swaps, seconds = measure("cpu", refine_rows)
    return mask, swaps, 1e6 * seconds / swaps


def engine_search(case: Case, rows: int) -> tuple[Tensor, int, float]:
    """Return the masks of the first `rows` by the engine, their swaps, and its seconds; 0 rows measure the set-up."""
    result = search("cpu", case.weight[:rows], case.gram, case.mask[:rows], case.correlation[:rows], case.size)
    assert result.certified.all()
    return result.mask, int(result.swaps.sum()), result.seconds


def compare(case: Case, repeats: int) -> dict[str, Any]:
    """Compare the search alone: dense and engine in turn, from the same masks and correlations, to convergence."""
    d_out, d_in = case.weight.shape
    engine_search(case, 1)  # compiles
    bandwidth, tuned, plain, ours, setup, throughput = [], [], [], [], [], []
    for _ in range(repeats):
        bandwidth.append(copy_bandwidth(256))
        dense_mask, dense_swaps, us = dense_search(case, tuned=True)
        tuned.append(us)
        few, none = [], []  # seven of each, since the difference of short times is noisy
        for _ in range(7):
            none.append(engine_search(case, 0)[2])
            mask, swaps, seconds = engine_search(case, case.dense_rows)
            few.append(seconds)
        setup.append(statistics.median(none))
        ours.append(1e6 * (statistics.median(few) - setup[-1]) / swaps)
        if case.size == d_in:
            plain.append(dense_search(case, tuned=False)[2])
        _, all_swaps, seconds = engine_search(case, d_out)
        throughput.append(1e6 * seconds / all_swaps)
    weight = case.weight[: case.dense_rows]
    loss, dense_loss = (row_loss(weight, case.gram, m) for m in (mask, dense_mask))
    apart = float(((dense_loss - loss).abs() / loss.clamp_min(torch.finfo(loss.dtype).tiny)).max())
    floor = 1e6 * d_in * (2 * 4 + 8 + 8 + 8 + 1) / max(bandwidth)  # two Gram rows; w, c read and written, mask
    return {
        "copy_gb_per_s": spread([b / 1e9 for b in bandwidth]),
        "d_out": d_out,
        "dense_rows": case.dense_rows,
        "swaps": swaps,
        "dense_swaps": dense_swaps,
        "loss_apart": apart,
        "agree": dense_swaps == swaps and apart <= 1e-5,
        "swaps_per_row": all_swaps / d_out,
        "dense_us": spread(tuned),
        "plain_us": spread(plain),
        "engine_same_rows_us": spread(ours),
        "engine_us": spread(throughput),
        "setup_ms": spread([1e3 * s for s in setup]),
        "ratio": spread([a / b for a, b in zip(tuned, ours, strict=True)]),
        "ratio_plain": spread([a / b for a, b in zip(plain, ours[: len(plain)], strict=True)]),
        "ratio_throughput": spread([a / b for a, b in zip(tuned, throughput, strict=True)]),
        "floor_us": floor,
        "over_floor": statistics.median(throughput) / floor,
    }


def whole_calls(case: Case, repeats: int) -> dict[str, Any]:
    """Measure `refine_mask` on the whole matrix with the shares of its parts, and backward elimination."""
    size, kept = case.pattern.groups(case.weight.shape[1])
    eliminate_rows = importlib.import_module("sparseswaps.layer.swaps.cpu").eliminate_rows
    pruned = int((~case.mask).sum())
    calls, parts, pruning = [], [], []
    for _ in range(repeats):
        result, seconds = measure("cpu", refine_mask, case.weight, case.gram, case.mask, case.pattern)
        calls.append(seconds)
        parts.append(parts_of_a_call(case.weight, case.gram, case.mask, case.pattern, "cpu"))
        pruning.append(
            1e6 * measure("cpu", eliminate_rows, case.weight, case.gram, size, kept, ignore_progress)[1] / pruned
        )
    swaps = int(result.swaps.sum())
    return {
        "call_s": spread(calls),
        "call_us_per_swap": 1e6 * statistics.median(calls) / swaps,
        "certified": bool(result.certified.all()) and all(p["certified"] for p in parts),
        "search_share": spread([p["search_s"] / seconds for p, seconds in zip(parts, calls, strict=True)]),
        "greedy_us_per_weight": spread(pruning),
    } | {key: spread([p[key] for p in parts]) for key in parts[0] if key.endswith("_s")}


def run_cpu(arguments: argparse.Namespace) -> bool:
    """Run the `cpu` part; return whether dense and engine searches agree and every row is certified."""
    torch.set_num_threads(1)
    repeats = 1 if arguments.quick else 5
    report = machine("cpu") | {"part": "cpu", "quick": arguments.quick, "repeats": repeats, "cases": []}
    say(f"{report['machine']}, {report['date']}, {report['versions']}, one thread")
    for case in cpu_cases(arguments.quick):
        row = {"name": case.name, "d_in": case.weight.shape[1], "pattern": case.pattern.label}
        row |= correlation_figures(case.gram) | compare(case, repeats) | whole_calls(case, repeats)
        say(
            f"{case.name} {row['pattern']}: us per swap: dense {format_cell(row['dense_us'])}, engine "
            f"{format_cell(row['engine_us'])}; on the first {case.dense_rows} rows: swaps: dense {row['dense_swaps']}, "
            f"engine {row['swaps']}; losses within {row['loss_apart']:.1e}"
        )
        report["cases"].append(row)
        save(report, arguments.out)
    label = {"layer": "name", "pattern": "pattern", "d_in": "d_in", "rows": "d_out"}
    show_table(
        "The search alone to every row's optimum, us per swap on one core: median [range].\n"
        "dense: every pair in torch, float32. plain: dense with gram[u][:, p] and argmin, which are slow in torch.\n"
        "same rows: the engine on the dense search's rows, without set-up per layer. engine: all rows, with set-up.\n"
        "floor: a copy of two Gram rows and of the row's state, at the speed of the fastest copy.",
        report["cases"],
        label
        | {"mean corr": "mean_correlation", "mean rho": "mean_rho", "swaps/row": "swaps_per_row"}
        | {"dense rows": "dense_rows", "dense": "dense_us", "plain": "plain_us", "same rows": "engine_same_rows_us"}
        | {"x dense": "ratio", "x plain": "ratio_plain", "engine": "engine_us", "x dense, all rows": "ratio_throughput"}
        | {"floor": "floor_us", "x floor": "over_floor", "agree": "agree"},
    )
    show_table(
        "Whole calls of refine_mask() to the certified optimum of every row, seconds, and backward elimination",
        report["cases"],
        label
        | {"refine": "call_s", "us/swap": "call_us_per_swap", "share of search": "search_share", "check": "check_s"}
        | {"correlation": "correlation_s", "search": "search_s", "second pass": "second_pass_s"}
        | {"certificate": "certificate_s", "set-up ms": "setup_ms", "certified": "certified"}
        | {"greedy us/weight": "greedy_us_per_weight", "copy GB/s": "copy_gb_per_s"},
    )
    return all(case["agree"] and case["certified"] for case in report["cases"])


# ---- gpu -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """The device and the size of the `gpu` part. A rehearsal runs a small one on the CPU."""

    device: str
    backend: str
    scale: int  # the divisor of the model's widths
    blocks: int
    variants: int

    def shapes(self) -> dict[str, tuple[int, int, str]]:
        """Return `LAYERS` at this scale."""
        return {name: (o // self.scale, i // self.scale, source) for name, (o, i, source) in LAYERS.items()}


def agreement(bench: Bench) -> dict[str, bool]:
    """Return whether the backend gives the masks of `batched` in float64, by pattern and dtype of the Gram matrix."""
    d_out, d_in = 256 // bench.scale, 1024 // bench.scale
    weight, gram = synthetic_weight(d_out, d_in, 1, bench.device), synthetic_gram(d_in, 0, bench.device)
    agrees = {}
    for pattern in map(parse_pattern, ("60%", "2:4", "4:8")):
        mask = wanda(weight, gram, pattern)
        expected = refine_mask(weight.double(), gram.double(), mask, pattern, backend="batched")
        for dtype in (torch.float32, torch.float64):
            result = refine_mask(weight, gram.to(dtype), mask, pattern, backend=bench.backend)
            rows = int((result.mask != expected.mask).any(1).sum())
            equal = rows == 0 and torch.equal(result.swaps, expected.swaps) and bool(result.certified.all())
            name = f"{pattern.label} {str(dtype).removeprefix('torch.')}"
            agrees[name] = equal
            say(f"{d_out} x {d_in}, {name}: agrees {equal}, {rows} rows differ, {int(result.swaps.sum())} swaps")
    return agrees


def tensor_bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def peak_of_call(work: Callable[[], Refinement], *own: Tensor) -> int | None:
    """Return the peak memory of torch during a call, without tensors other than the call's and its arguments `own`."""
    if own[0].device.type != "cuda":
        return None
    others = torch.cuda.memory_allocated() - tensor_bytes(*own)
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - others


def shape_figures(bench: Bench, name: str, gram: Tensor, bandwidth: float) -> dict[str, Any]:
    """Measure one layer of a shape: whole calls, calls with one swap per row, peak memory, and the parts of a call."""
    d_out, d_in, _ = bench.shapes()[name]
    weight = synthetic_weight(d_out, d_in, 1, bench.device).bfloat16()
    mask = wanda(weight, gram, SPARSITY)
    kept = SPARSITY.groups(d_in).kept
    call = partial(refine_mask, weight, gram, mask, SPARSITY, backend=bench.backend)
    _, first = measure(bench.device, call, max_swaps=1)  # compiles
    _, one_swap = measure(bench.device, call, max_swaps=1)
    result, seconds = measure(bench.device, call)
    peak = peak_of_call(call, weight, gram, mask)
    state = tensor_bytes(weight, mask) + 8 * weight.numel()  # w as loaded, the mask, c in float64
    parts = parts_of_a_call(weight, gram, mask, SPARSITY, bench.backend)
    swaps = int(parts["swaps"].sum())
    gram_bytes = swaps * 2 * gram.element_size() * d_in / parts["search_s"]
    return {
        "shape": f"{d_out} x {d_in}",
        "d_out": d_out,
        "count": bench.blocks * sum(shape[:2] == (d_out, d_in) for shape in bench.shapes().values()),
        "first_call_s": first,
        "one_swap_call_s": one_swap,
        "call_s": seconds,
        **{key: value for key, value in parts.items() if key.endswith("_s")},
        "certified": bool(result.certified.all()) and parts["certified"],
        "swaps_per_row": swaps / d_out,
        "most_swaps": int(parts["swaps"].max()),
        "swaps_per_s": swaps / parts["search_s"],
        "pairs_per_s": (swaps + d_out) * kept * (d_in - kept) / parts["search_s"],  # the last step certifies
        "gram_gb_per_s": gram_bytes / 1e9,
        "of_copy": gram_bytes / bandwidth,
        "peak_gb": peak and peak / 1e9,
        "bound_gb": (tensor_bytes(weight, gram) + 3 * state) / 1e9,
    }


def whole_model(bench: Bench, grams: dict[tuple[str, int], Tensor], shapes: list[dict], end: float) -> dict[str, Any]:
    """Refine every matrix of the model to certified optima; project the matrices not started at time `end`."""
    seconds: dict[str, list[float]] = {name: [] for name in LAYERS}
    swaps = rows = 0
    certified = True
    layers = list(bench.shapes().items())
    for number, (block, (name, (d_out, d_in, source))) in enumerate(product(range(bench.blocks), layers)):
        if time.perf_counter() > end:
            break
        weight = synthetic_weight(d_out, d_in, 1000 + number, bench.device).bfloat16()
        gram = grams[source, block % bench.variants]
        mask = wanda(weight, gram, SPARSITY)
        result, spent = measure(bench.device, refine_mask, weight, gram, mask, SPARSITY, backend=bench.backend)
        seconds[name].append(spent)
        swaps, rows = swaps + int(result.swaps.sum()), rows + d_out
        certified = certified and bool(result.certified.all())
        if name == layers[-1][0]:
            say(f"block {block}: {sum(s[-1] for s in seconds.values()):.3f} s, {swaps / rows:.1f} swaps per row so far")
    # A kind of layer that was never refined is projected from the call for its shape.
    before = {shape["shape"]: shape["call_s"] for shape in shapes}
    total = sum(
        bench.blocks * (statistics.mean(seconds[name]) if seconds[name] else before[f"{d_out} x {d_in}"])
        for name, (d_out, d_in, _) in layers
    )
    done = sum(map(len, seconds.values()))
    if not rows:
        rows = sum(shape["count"] * shape["d_out"] for shape in shapes)
        swaps = sum(shape["count"] * shape["d_out"] * shape["swaps_per_row"] for shape in shapes)
    return {
        "matrices": bench.blocks * len(layers),
        "matrices_done": done,
        "done_s": sum(map(sum, seconds.values())),
        "total_s": total,
        "certified": certified,
        "swaps_per_row": swaps / rows,
        "one_swap_s": sum(shape["count"] * shape["one_swap_call_s"] for shape in shapes),
        "s_per_swap_of_every_row": total * rows / swaps,
        "paper_s_per_swap_of_every_row": PAPER,
        "layers_s": {name: spread(times) for name, times in seconds.items()},
    }


def run_gpu(arguments: argparse.Namespace) -> bool:
    """Run the `gpu` part; return whether all masks agree with the masks of `batched` and every row is certified."""
    if arguments.rehearse:
        torch.set_num_threads(1)
        bench = Bench("cpu", "batched", scale=32, blocks=2, variants=2)
    elif torch.cuda.is_available():
        bench = Bench("cuda", "cuda", scale=1, blocks=BLOCKS, variants=VARIANTS)
    else:
        sys.exit("the gpu part needs a CUDA device")
    report = machine(bench.device) | {"part": "gpu", "quick": arguments.quick, "rehearsal": arguments.rehearse}
    say(f"{report['machine']}, {report['date']}, {report['versions']}")
    report["agreement"] = agreement(bench)
    save(report, arguments.out)

    bandwidth = copy_bandwidth(4096 // bench.scale, bench.device)
    report["copy_gb_per_s"] = bandwidth / 1e9
    widths = {source: d_in for _, d_in, source in bench.shapes().values()}
    grams = {
        (source, variant): synthetic_gram(d_in, 100 * index + variant, bench.device)
        for index, (source, d_in) in enumerate(widths.items())
        for variant in range(bench.variants)
    }
    report["grams"] = [
        {"input": source, "d_in": len(grams[source, 0])} | correlation_figures(grams[source, 0]) for source in widths
    ]
    say(
        f"copy {bandwidth / 1e9:.0f} GB/s; {len(grams)} Gram matrices ready after {time.perf_counter() - STARTED:.0f} s"
    )
    columns = {"input": "input", "d_in": "d_in", "mean corr": "mean_correlation", "mean rho": "mean_rho"}
    show_table("Gram matrices, synthetic", report["grams"], columns)
    report["shapes"] = []
    for name in ("q_proj", "k_proj", "gate_proj", "down_proj"):
        row = shape_figures(bench, name, grams[LAYERS[name][2], 0], bandwidth)
        report["shapes"].append(row)
        say(f"{row['shape']}: refine {row['call_s']:.3f} s, {row['swaps_per_row']:.1f} swaps per row")
        save(report, arguments.out)
    show_table(
        "One layer of each shape, bf16, 60 % from Wanda. Seconds of a whole call of refine_mask(), of calls with one\n"
        "swap per row (the first compiles), and of a call's parts",
        report["shapes"],
        {"d_out x d_in": "shape", "of them": "count", "refine": "call_s", "at 1 swap": "one_swap_call_s"}
        | {"at 1 swap, first": "first_call_s", "check": "check_s", "correlation": "correlation_s", "search": "search_s"}
        | {"second pass": "second_pass_s", "certificate": "certificate_s", "certified": "certified"},
    )
    show_table(
        "The searches of these calls, and their memory. bound: weights + Gram matrix + 3 x the rows' state",
        report["shapes"],
        {"d_out x d_in": "shape", "swaps/row": "swaps_per_row", "most": "most_swaps", "swaps/s": "swaps_per_s"}
        | {"pairs certified/s": "pairs_per_s", "Gram rows GB/s": "gram_gb_per_s", "of copy": "of_copy"}
        | {"peak GB": "peak_gb", "bound GB": "bound_gb"},
    )
    model = whole_model(bench, grams, report["shapes"], STARTED + (0 if arguments.quick else arguments.budget))
    report["model"] = model
    save(report, arguments.out)
    done, matrices = model["matrices_done"], model["matrices"]
    source = "measured" if done == matrices else f"PROJECTED from {done or 'one call for each shape'}"
    agreed = all(report["agreement"].values())
    say(
        f"\nAll {matrices} matrices to the optimum of every row: {model['total_s']:.1f} s, {source}\n"
        f"{model['swaps_per_row']:.1f} swaps per row, certified: {model['certified']}\n"
        f"One swap per row: {model['one_swap_s']:.1f} s by the calls above; the paper on an H100: {PAPER:.0f} s\n"
        f"Up to the optimum, per swap of every row: {model['s_per_swap_of_every_row']:.2f} s\n"
        f"Masks equal those of the batched backend in float64: {agreed}"
    )
    return agreed and model["certified"] and all(shape["certified"] for shape in report["shapes"])


def main() -> None:
    """Read the command line and run one part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["cpu", "gpu"])
    parser.add_argument("--quick", action="store_true", help="a short version, to see that it runs")
    parser.add_argument("--out", type=Path, help="the JSON file (default: results/engine-PART.json beside this script)")
    parser.add_argument("--budget", type=float, default=400, help="gpu: seconds after which the rest is projected")
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)  # gpu: on the CPU, in small
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path(__file__).parent / "results" / f"engine-{arguments.part}.json"
    passed = run_cpu(arguments) if arguments.part == "cpu" else run_gpu(arguments)
    say(f"\nwritten: {arguments.out}")
    if not passed:
        sys.exit("FAILED: a result above disagrees or is not certified")


if __name__ == "__main__":
    main()
