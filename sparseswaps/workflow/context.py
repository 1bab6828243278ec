"""The context of a job, beside its files and settings: wildcards, provenance, device and progress."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import read_json
from sparseswaps.base.progress import Part, Report, show_progress
from sparseswaps.layer.pattern import Pattern, parse_pattern

Paths = Mapping[str, Any]  # a path, or a list of paths, by name


@dataclass(frozen=True)
class Context:
    """The context of a job, beside its files and settings.

    Attributes:
        stage: the name of the stage.
        wildcards: the wildcards of the rule: `model`, `block`, ...
        provenance: what made the artifacts, as text: settings, code, versions, upstream stages.
    """

    stage: str
    wildcards: Mapping[str, str]
    provenance: str

    @property
    def block(self) -> int:
        """The number of the decoder block that the job is for."""
        return int(self.wildcards["block"].removeprefix("block"))

    def progress(self, unit: str, makes: str, parts: Sequence[Part]) -> AbstractContextManager[list[Report]]:
        """Show how far the job is, under the name of its stage and block (`base.progress`)."""
        name = ".".join(filter(None, (self.stage, self.wildcards.get("block"), self.wildcards.get("text"))))
        return show_progress(name, unit, makes, parts)


def device_of(settings: Mapping[str, Any]) -> str:
    """Return `cuda` when the setting `gpu` is true, else `cpu`. Raise InputError when there is no CUDA device."""
    import torch

    if not settings["gpu"]:
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("config key gpu: is true, but torch finds no CUDA device here; set gpu: false")
    return "cuda"


def patterns_of(inputs: Paths, settings: Mapping[str, Any]) -> Callable[[int, str], Pattern]:
    """Return a function from a block's number and a layer's name to the layer's pattern.

    The pattern is that of the settings, or differs from layer to layer where the inputs have an allocation.
    """
    if "allocation" not in inputs:
        uniform = parse_pattern(settings["pattern"])
        return lambda block, layer: uniform
    allocation = read_json(inputs["allocation"])
    return lambda block, layer: parse_pattern(allocation[block][layer])
