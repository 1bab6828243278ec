"""The command line: prune one model, show masks, compress checkpoints. Studies of many cells run with Snakemake.

    sparseswaps prune MODEL --pattern 60% --out DIR
    sparseswaps inspect CHECKPOINT_OR_MASKS
    sparseswaps compress CHECKPOINT OUT

The options of `prune` are keys of the configuration: a new key needs its name in `_CALIBRATION` or `_METHOD` alone.
"""

import argparse
import json
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from sparseswaps.base.errors import InputError
from sparseswaps.pruning.settings import PruneSettings

# The keys of a configuration that are options of `prune`. `PruneSettings` has their descriptions and defaults.
_CALIBRATION = ("text", "samples", "held_out", "seqlen", "seed", "propagate", "order", "dense_target", "batch_size")
_METHOD = ("warmstart", "max_swaps", "stop", "freeze", "shrinkage", "between_rows", "refit")


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Bad input ends it with one line of error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        options.run(options)
    except InputError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sparseswaps", description="Prune language models by exact 1-swaps.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prune = commands.add_parser(
        "prune",
        help="prune one model, and save it",
        description="Prune a causal language model, and save it as a Hugging Face directory. On a GPU the model runs "
        "in the dtype of its files, on a CPU in float32.",
    )
    prune.set_defaults(run=_prune)
    prune.add_argument("model", help="a Hugging Face directory, the id of a model on the hub, or `embedded`")
    prune.add_argument("--pattern", required=True, help="a sparsity of every row, such as 60%%, or N:M, such as 2:4")
    prune.add_argument("--out", required=True, type=Path, help="the new directory")
    prune.add_argument("--device", help="where the model runs (default: cuda if there is a GPU, else cpu)")
    prune.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    prune.add_argument("--trust-remote-code", action="store_true", help="let Python code beside the weights run")
    for title, names in (("calibration", _CALIBRATION), ("method", _METHOD)):
        group = prune.add_argument_group(title)
        for name in names:
            _add_setting(group, name)
    group.add_argument(
        "--reconstruction",
        type=_value,
        help="how the kept weights are fitted to the masks: least_squares, admm or sparsegpt, or a table of keys as "
        """JSON, such as '{"block": {"levels": 8}}' (default: their values stay)""",
    )
    inspect = commands.add_parser(
        "inspect",
        help="show what a checkpoint or a mask file keeps",
        description="Show the base model of a checkpoint or a mask file, and the sparsity and pattern of each kind of "
        "matrix.",
    )
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("path", type=Path, help="a Hugging Face directory, or a masks.safetensors of the workflow")
    compress = commands.add_parser(
        "compress",
        help="write a checkpoint without its zeros",
        description="Write a pruned checkpoint with a bit a weight and the kept values. "
        "sparseswaps.load_compressed(OUT) gives the same model, bit by bit.",
    )
    compress.set_defaults(run=_compress)
    compress.add_argument("checkpoint", type=Path, help="a Hugging Face directory")
    compress.add_argument("out", type=Path, help="the new directory")
    for command in (prune, inspect, compress):
        command.add_argument("--verbose", action="store_true", help="log a line for each layer")
    return parser


def _add_setting(group: Any, name: str) -> None:
    """Add the option of a key, as `PruneSettings` declares it."""
    field = PruneSettings.model_fields[name]
    option = "--calibration" if name == "text" else f"--{name.replace('_', '-')}"
    texts = {"text": "`embedded`, a .txt, .jsonl or .parquet file, or a data set of the hub, such as c4"}
    texts |= {"warmstart": "what makes the first masks", "seed": "of the draw"}
    description = (field.description or texts[name]).replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(option, dest=name, action="store_true", help=description)
    else:
        default = "null" if field.default is None else field.default
        choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
        group.add_argument(
            option,
            dest=name,
            type=_value,
            default=field.default,
            metavar="{" + ",".join(choices) + "}" if choices else None,
            help=f"{description} (default: {default})",
        )


def _value(text: str) -> Any:
    """Read a number or a table. Anything else is a string, which the settings check."""
    with suppress(ValueError):
        return json.loads(text)
    return text


def _prune(options: argparse.Namespace) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    import sparseswaps
    from sparseswaps.base.files import write_atomically
    from sparseswaps.model.directory import is_hub_id, locate, read_config
    from sparseswaps.model.hub import download, resolve
    from sparseswaps.model.loading import load_model, load_tokenizer

    disable_progress_bar()  # of transformers; those of this project stay
    if options.out.exists():
        raise InputError(f"--out: {options.out} exists; take another, or delete it")
    hub = is_hub_id(options.model)
    if options.revision is not None and not hub:
        raise InputError(f"--revision: {options.model!r} is no model of the hub, so it has no revision; leave it out")
    settings = {name: getattr(options, name) for name in (*_CALIBRATION, *_METHOD, "reconstruction") if name != "text"}
    if isinstance(settings["reconstruction"], str):
        settings["reconstruction"] = {"method": settings["reconstruction"]}
    PruneSettings(**settings)  # an error comes before the model is loaded
    sparseswaps.parse_pattern(options.pattern)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(device)
    folder = download(options.model, resolve(options.model, options.revision)) if hub else locate(options.model, None)
    read_config(folder)  # a wrong path is reported as such, and not as a missing tokenizer
    tokenizer = load_tokenizer(folder, options.trust_remote_code)
    model = load_model(folder, "cpu", options.trust_remote_code, "checkpoint")
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    try:
        model = model.float() if device == "cpu" else model.to(device)
    except torch.OutOfMemoryError:
        remedy = "take --device cpu, or run a study, which loads one block at a time"
        raise InputError(f"--device {device}: the model is larger than its free memory; {remedy}") from None
    result = sparseswaps.prune(model, tokenizer, options.pattern, calibration=options.text, **settings)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    with write_atomically(options.out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    _print_losses(result.losses)
    kept, all_weights = (sum(count(mask) for mask in result.masks.values()) for count in (torch.sum, torch.numel))
    print(f"\n{options.out}: {1 - kept / all_weights:.1%} of {all_weights:,} weights are zero")


def _check_device(device: str) -> None:
    """Raise InputError when torch has no such device here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        built_for_cpu = device.startswith("cuda") and not torch.backends.cuda.is_built()
        problem = "this torch is built without CUDA" if built_for_cpu else "torch finds no such device here"
        raise InputError(f"--device {device}: {problem}; take cpu, or a device that torch finds, as cuda") from None


def _print_losses(losses: list[dict[str, Any]]) -> None:
    """Print what was done to each kind of layer, over all blocks."""
    rows = []
    for name in dict.fromkeys(_kind(row["layer"]) for row in losses):
        of_kind = [row for row in losses if _kind(row["layer"]) == name]
        before, after, held_before, held_after = (
            sum(row[column] or 0 for row in of_kind)
            for column in ("loss_before", "loss_after", "held_out_before", "held_out_after")
        )
        change = [f"{100 * (b - a) / a:+.1f} %" if a else "-" for a, b in ((before, after), (held_before, held_after))]
        certified, rows_in_all = (sum(row[column] or 0 for row in of_kind) for column in ("rows_certified", "rows"))
        swaps = sum(row["swaps"] for row in of_kind)
        rows.append([name, len(of_kind), *change, f"{swaps:,}", f"{certified:,} of {rows_in_all:,}"])
    _print_table(["layer", "number", "error", "on held-out text", "swaps", "rows at the optimum"], rows)


def _kind(layer: str) -> str:
    """Return a layer's name without the numbers of blocks and experts."""
    return ".".join("*" if part.isdigit() else part for part in layer.split("."))


def _inspect(options: argparse.Namespace) -> None:
    from sparseswaps.model.inspection import inspect

    base, matrices = inspect(options.path)
    print(base)
    rows = []
    for kind, shape in dict.fromkeys((_kind(matrix.name), matrix.shape) for matrix in matrices):
        of_kind = [matrix for matrix in matrices if (_kind(matrix.name), matrix.shape) == (kind, shape)]
        least, most = min(m.least_kept for m in of_kind), max(m.most_kept for m in of_kind)
        patterns = dict.fromkeys(m.group_pattern for m in of_kind)
        rows.append(
            [
                kind,
                f"{shape[0]} x {shape[1]}",
                len(of_kind),
                f"{sum(m.zeros for m in of_kind) / (len(of_kind) * shape[0] * shape[1]):.1%}",
                str(least) if least == most else f"{least} to {most}",
                ", ".join(pattern or "-" for pattern in patterns),
            ]
        )
    _print_table(["matrix", "shape", "number", "zeros", "kept in a row", "N:M"], rows)


def _compress(options: argparse.Namespace) -> None:
    from sparseswaps.base.progress import Part, show_progress
    from sparseswaps.model.checkpoint import Checkpoint
    from sparseswaps.model.compress import compress
    from sparseswaps.model.directory import weight_files

    tensors = len(Checkpoint(options.checkpoint).files)
    with show_progress("compress", "tensors", "MB", [Part(tensors)]) as (report,):
        compress(options.checkpoint, options.out, report)
    before = sum((options.checkpoint / name).stat().st_size for name in weight_files(options.checkpoint))
    after = sum(path.stat().st_size for path in options.out.glob("*.safetensors"))
    print(f"{options.out}: {after / 1e6:,.1f} MB of weights instead of {before / 1e6:,.1f} MB ({after / before:.1%})")
    if after >= before:
        print(f"No matrix is smaller without its zeros: {options.checkpoint} is not pruned, or not enough")


def _print_table(header: list[str], rows: list[list[Any]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    lines = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *others = line
        print(
            first.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)),
            sep="  ",
        )


if __name__ == "__main__":
    main()
