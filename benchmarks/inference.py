"""What zeros are worth in inference: prints tables and writes JSON beside them in results/.

    python benchmarks/inference.py gpu [CHECKPOINT]     2:4 in torch's semi-structured kernels against dense products
    python benchmarks/inference.py cpu [CHECKPOINT]     zeros that stay in dense weights, for which there are no kernels

CHECKPOINT is a folder with a model pruned at 2:4, in bfloat16 or float16 for `gpu`. Without one, a random model of the
shapes of Llama-3.1-8B is pruned, with eight blocks (`cpu`: one, in float32). Every distinct shape of the linear layers
of its blocks is measured, on inputs of several numbers of tokens: with dense weights, with half of those 0 wherever
they are, with 2:4 zeros in the dense format, and with these in the layout of each backend that torch has for it. On a
GPU then also the whole model's forward pass. Rounds go through all of these in turn, medians are taken, and a ratio is
the median of the rounds'. Each product of a round has its own copy of the weight, so that none is read from a cache.

On a GPU two times are taken: of the kernels, launched ahead of the device, and of the calls as a program makes them,
which at few tokens wait for Python. Needs torch, transformers, accelerate and safetensors.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package may not be installed

from sparseswaps.blocks import find_blocks, linear_layers
from sparseswaps.errors import InputError, one_line
from sparseswaps.files import read_json
from sparseswaps.masks import keep_best
from sparseswaps.modeldir import context
from sparseswaps.pattern import NM
from sparseswaps.pretrained import load_model
from sparseswaps.semi_structured import layers_2_4, refusal, semi_structured

BACKENDS = {"cuSPARSELt": SparseSemiStructuredTensorCUSPARSELT, "CUTLASS": SparseSemiStructuredTensorCUTLASS}
TOKENS = {"cpu": (1, 32, 128), "gpu": (1, 32, 512, 4096)}  # one is a step of decoding
SIZES = {"cpu": dict(blocks=1, vocabulary=256), "gpu": dict(blocks=8, vocabulary=32000)}
QUICK = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
LLAMA = dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8)
CACHE = 256e6  # bytes of copies of a weight: several times what a device caches
LAUNCHES = 64  # and how many at most: the host launches that many within AHEAD
AHEAD = 50_000_000  # cycles that the device is kept busy while the host launches: 25 ms or more


# ---- the clock -------------------------------------------------------------------------------------------------------


def seconds(calls: list[Callable[[], object]], device: str, ahead: bool) -> float:
    """Seconds of a call, of several in a row; `ahead`: all are launched before the first begins."""
    if device == "cpu":
        began = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - began) / len(calls)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if ahead:
        torch.cuda._sleep(AHEAD)
    begin.record()
    for call in calls:
        call()
    end.record()
    if ahead and begin.query():
        warnings.warn(
            "the host launches more slowly than it was given time for: kernels' times hold waiting", stacklevel=1
        )
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / len(calls)


def in_turn(
    works: Mapping[str, list[Callable[[], object]]], device: str, repeats: int, ahead: bool
) -> dict[str, list[float]]:
    """Seconds of each work's calls, round by round, all works in every round."""
    for calls in works.values():
        seconds(calls, device, ahead)
    times = {name: [] for name in works}
    for _ in range(repeats):
        for name, calls in works.items():
            times[name].append(seconds(calls, device, ahead))
    return times


def ratio(times: list[float], of: list[float]) -> dict[str, float]:
    """How many times the one's time the other's is: the median of the rounds, and between what they lie."""
    found = [b / a for a, b in zip(times, of, strict=True)]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


# ---- products --------------------------------------------------------------------------------------------------------


def weights_of(pruned: Tensor) -> dict[str, Tensor]:
    """The kinds of dense weights that are compared with a pruned one, [d_out, d_in], and that itself."""
    random = torch.Generator(pruned.device).manual_seed(0)
    noise = torch.randn(pruned.shape, generator=random, device=pruned.device) * pruned.float().std()
    dense = torch.where(pruned == 0, noise.to(pruned.dtype), pruned)
    half = torch.rand(pruned.shape, generator=random, device=pruned.device) < 0.5
    return {"dense": dense, "half zeros": dense.masked_fill(half, 0), "2:4 zeros": pruned}


def differs(found: Tensor, expected: Tensor, most: float) -> bool:
    """Whether a result is off by more than `most` times its dtype's epsilon, which rounding it makes a third of."""
    difference = (found.float() - expected.float()).norm()
    return not bool(difference <= most * torch.finfo(found.dtype).eps * expected.float().norm())


def compressed(pruned: Tensor, backends: Mapping[str, type]) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """A pruned weight in the layout of each backend that takes it and gives the dense product; what the others say."""
    x = torch.randn(8, pruned.shape[1], device=pruned.device).to(pruned.dtype)
    found, refused = {}, {}
    for name, of in backends.items():
        try:
            weight = semi_structured(pruned, of)
            result = linear(x, weight)
        except (RuntimeError, NotImplementedError) as error:
            refused[name] = one_line(error)
            continue
        if differs(result, linear(x.float(), pruned.float()), most=1):
            sys.exit(f"{name}: a product with a {tuple(pruned.shape)} weight is not the dense one")
        found[name] = weight
    return found, refused


def bytes_of(weight: Tensor) -> int:
    """The bytes of a weight: of the tensors that it is made of, where it is compressed."""
    parts = weight.__tensor_flatten__()[0] if hasattr(weight, "__tensor_flatten__") else None
    return weight.nbytes if parts is None else sum(getattr(weight, part).nbytes for part in parts)


@torch.inference_mode()
def measure_shape(
    pruned: Tensor, tokens: tuple[int, ...], backends: Mapping[str, type], device: str, repeats: int
) -> dict:
    """The figures of a shape: bytes by kind of weight, what was refused, and times by the number of tokens: on a GPU of
    the kernels, and of the calls."""
    kinds = weights_of(pruned)
    taken, refused = compressed(pruned, backends)
    kinds |= taken
    copies = max(1, min(LAUNCHES, round(CACHE / pruned.nbytes)))
    weights = {name: [weight, *(weight.clone() for _ in range(copies - 1))] for name, weight in kinds.items()}
    ways = {"calls": False} if device == "cpu" else {"kernels": True, "calls": False}  # launched ahead or not
    result = {"bytes": {name: bytes_of(weight) for name, weight in kinds.items()}, "refused": refused}
    result |= {way: [] for way in ways}
    for number in tokens:
        x = torch.randn(number, pruned.shape[1], device=device).to(pruned.dtype)
        works = {name: [partial(linear, x, weight) for weight in of] for name, of in weights.items()}
        for way, ahead in ways.items():
            result[way].append({"tokens": number} | figures(in_turn(works, device, repeats, ahead), taken))
    return result


def figures(times: dict[str, list[float]], compressed_kinds: Mapping) -> dict:
    """Medians, and what zeros are worth: times faster than dense weights where they are in a dense format, and than the
    same in a dense format where they are compressed."""
    return {
        "seconds": {name: statistics.median(found) for name, found in times.items()},
        "faster": {
            **{name: ratio(times[name], times["dense"]) for name in ("half zeros", "2:4 zeros")},
            **{name: ratio(times[name], times["2:4 zeros"]) for name in compressed_kinds},
        },
    }


# ---- the model -------------------------------------------------------------------------------------------------------


def random_model(part: str, quick: bool, device: str) -> PreTrainedModel:
    """A Llama with random weights, at 2:4 by magnitude."""
    dtype = torch.float32 if device == "cpu" and not quick else torch.bfloat16
    size = SIZES[part]
    config = LlamaConfig(
        **LLAMA | (QUICK if quick else {}),
        num_hidden_layers=size["blocks"],
        vocab_size=size["vocabulary"],
        max_position_embeddings=4096,
        dtype=dtype,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    for block in find_blocks(model)[1]:
        for layer in linear_layers(block).values():
            layer.weight.data.masked_fill_(~keep_best(layer.weight.data.abs(), NM(2, 4)), 0)
    return model


def shapes_of(model: PreTrainedModel) -> list[dict]:
    """The distinct shapes of the linear layers of a model's blocks: how many have it, and the weight of the first that
    is 2:4; or why none of them is compressed."""
    found: dict[tuple[int, int], dict] = {}
    for block in find_blocks(model)[1]:
        for layer in linear_layers(block).values():
            weight = layer.weight.detach()
            why = refusal(weight.bfloat16()) if weight.is_cpu else refusal(weight)  # no dtype has kernels on the CPU
            entry = found.setdefault(tuple(weight.shape), {"layers": 0, "left dense": why, "weight": weight})
            entry["layers"] += 1
            if entry["left dense"] and why is None:
                entry |= {"left dense": None, "weight": weight}
    return [{"d_out": d_out, "d_in": d_in} | entry for (d_out, d_in), entry in found.items()]


@torch.inference_mode()
def measure_forward(
    model: PreTrainedModel, tokens: tuple[int, ...], name: str, of: type, device: str, repeats: int
) -> dict:
    """The whole model's forward pass with all 2:4 layers compressed against the same with dense weights."""
    layers = layers_2_4(model)
    dense = {layer: layer.weight for layer in layers.values()}
    sparse = {layer: semi_structured(weight, of) for layer, weight in dense.items()}
    config = model.config.get_text_config()
    tokens = [number for number in tokens if number <= (context(config.to_dict()) or max(tokens))]
    ids = torch.randint(config.vocab_size, (1, max(tokens)), device=device)

    def forward(number: int, weights: dict[nn.Linear, nn.Parameter]) -> Tensor:
        for layer, weight in weights.items():
            layer.weight = weight
        return model(input_ids=ids[:, :number], use_cache=False).logits

    calls = []
    for number in tokens:
        # Errors of the layers' roundings add up as independent ones do.
        if differs(forward(number, sparse), forward(number, dense), most=len(layers) ** 0.5):
            sys.exit(f"the whole model on {number} tokens: logits are not those of dense weights")
        times = {"2:4 zeros": [], name: []}
        for _ in range(repeats):
            for kind, weights in zip(times, (dense, sparse), strict=True):
                forward(number, weights)  # puts them in place, where what is timed finds them
                call = partial(model, input_ids=ids[:, :number], use_cache=False)
                times[kind].append(seconds([call], device, ahead=False))
        medians = {kind: statistics.median(found) for kind, found in times.items()}
        faster = {name: ratio(times[name], times["2:4 zeros"])}
        calls.append({"tokens": number, "seconds": medians, "faster": faster})
    forward(1, dense)
    every = sum(parameter.nbytes for parameter in model.parameters())
    saved = sum(weight.nbytes - bytes_of(sparse[layer]) for layer, weight in dense.items())
    return {"backend": name, "layers": len(layers), "bytes": {"2:4 zeros": every, name: every - saved}, "calls": calls}


def measure(
    model: PreTrainedModel, tokens: tuple[int, ...], backends: Mapping[str, type], device: str, repeats: int
) -> dict:
    """All figures of a model; the whole of it runs with the first of the backends that refuses none of its shapes."""
    shapes = shapes_of(model)
    if all(shape["left dense"] for shape in shapes):
        raise InputError(f"none of its linear layers can be measured: {shapes[0]['left dense']}")
    for shape in shapes:
        weight = shape.pop("weight")
        if shape["left dense"] is None:
            shape |= measure_shape(weight, tokens, backends, device, repeats)
    result = {"dtype": str(model.dtype).removeprefix("torch."), "shapes": shapes, "forward": None}
    runs = [name for name in backends if not any(name in shape.get("refused", {}) for shape in shapes)]
    if runs:
        try:
            result["forward"] = measure_forward(model, tokens, runs[0], backends[runs[0]], device, repeats)
        except torch.OutOfMemoryError:
            print("the whole model is not measured: it does not fit twice")
    return result


# ---- what is printed and kept ----------------------------------------------------------------------------------------


def report(result: dict) -> None:
    print(f"{result['machine']}, {result['dtype']}, {result['model']}; times faster, and between what the rounds lie")
    for shape in result["shapes"]:
        print(f"{shape['d_out']} x {shape['d_in']}, {shape['layers']} layers")
        if shape["left dense"]:
            print(f"  left dense: {shape['left dense']}")
            continue
        for name, why in shape["refused"].items():
            print(f"  {name}: refused: {why}")
        dense = shape["bytes"]["dense"]
        print("  bytes of dense: " + ", ".join(f"{name} {size / dense:.4f}" for name, size in shape["bytes"].items()))
        for way in ("kernels", "calls"):
            for entry in shape.get(way, []):
                line(f"{way}, {entry['tokens']} tokens", entry, "dense")
    if forward := result["forward"]:
        print(f"whole model, {forward['layers']} layers in the layout of {forward['backend']}")
        for entry in forward["calls"]:
            line(f"{entry['tokens']} tokens", entry, "2:4 zeros")


def line(what: str, entry: dict, dense: str) -> None:
    ratios = (
        f"{name} {found['median']:.2f} [{found['low']:.2f}-{found['high']:.2f}]"
        for name, found in entry["faster"].items()
    )
    print(f"  {what:22} {dense} {entry['seconds'][dense] * 1e6:10.1f} us   {'   '.join(ratios)}")


def about(device: str) -> dict:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if device == "cuda":
        machine = torch.cuda.get_device_name()
    return {
        "date": date.today().isoformat(),
        "machine": machine,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "cusparselt": torch.backends.cusparselt.version(),
    }


def name_of(checkpoint: Path | None, model: PreTrainedModel) -> str:
    if checkpoint is None:
        return f"random Llama, {len(find_blocks(model)[1])} blocks of width {model.config.hidden_size}"
    made = checkpoint / "sparseswaps.json"
    return Path(read_json(made)["base"]["source"]).name if made.is_file() else checkpoint.resolve().name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=TOKENS)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = {"cpu": "cpu", "gpu": "cuda"}[arguments.part]
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("the gpu part needs a CUDA device")
    try:
        if arguments.checkpoint:
            model = load_model(str(arguments.checkpoint), device)
        else:
            model = random_model(arguments.part, arguments.quick, device)
        model.requires_grad_(False)
        backends = BACKENDS if device == "cuda" else {}
        found = measure(model, TOKENS[arguments.part], backends, device, arguments.repeats)
    except InputError as error:
        sys.exit(f"error: {error}")
    result = about(device) | {"part": arguments.part, "model": name_of(arguments.checkpoint, model)} | found
    report(result)
    out = arguments.out or Path(__file__).parent / "results" / f"inference-{arguments.part}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
