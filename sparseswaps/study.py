"""A study: the checked configuration, and the grid of cells that it spans."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match

from sparseswaps.embedded import MODEL
from sparseswaps.errors import InputError
from sparseswaps.files import read_json
from sparseswaps.pattern import Pattern, parse_pattern

SCHEMA = Path(__file__).parent.parent / "schemas" / "config.schema.yaml"


@dataclass(frozen=True)
class Cell:
    """One point of the grid: one mask for every layer of one model. `pattern` is the pattern's slug."""

    model: str
    calibration: str
    seed: int
    pattern: str
    warmstart: str
    refinement: str

    def wildcards(self) -> dict[str, Any]:
        return asdict(self)


def check(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with all defaults filled in.

    Raises:
        InputError: a key or value is wrong; one line with its path and what is allowed.
    """
    checked = _copy(config)
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    error = best_match(_Validator(schema).iter_errors(checked))
    if error is not None:
        raise InputError(_one_line(error))
    labels = [_pattern(value).label for value in checked["patterns"]]
    if len(set(labels)) < len(labels):
        raise InputError(f"config key patterns: the same pattern twice in {', '.join(labels)}")
    for index, entry in enumerate(checked["exclude"]):
        for key, names in _known(checked).items():
            for name in _as_list(entry.get(key, [])):
                if key == "pattern":
                    name = _pattern(name, f"exclude.{index}.pattern").slug
                if name not in names:
                    allowed = ", ".join(map(str, names))
                    raise InputError(f"config key exclude.{index}.{key}: no {key} {name!r} here; there are {allowed}")
    return checked


def patterns(config: dict[str, Any]) -> dict[str, Pattern]:
    """The patterns of a checked configuration by slug."""
    return {pattern.slug: pattern for pattern in map(_pattern, config["patterns"])}


def cells(config: dict[str, Any]) -> Iterator[Cell]:
    """The cells of a checked configuration's grid, without those that `exclude` names."""
    known = _known(config)
    excluded = []
    for entry in config["exclude"]:
        choices = {key: _as_list(value) for key, value in entry.items()}
        if "pattern" in choices:
            choices["pattern"] = [_pattern(value).slug for value in choices["pattern"]]
        excluded.append(choices)
    for values in product(*known.values()):
        cell = dict(zip(known, values, strict=True))
        if not any(all(cell[key] in choices for key, choices in entry.items()) for entry in excluded):
            yield Cell(**cell)


def model_folder(settings: dict[str, Any]) -> Path:
    """The directory of a model, given its entry under `models`."""
    return MODEL if settings["source"] == "embedded" else Path(settings["source"])


def model_config(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A model's `config.json`. Raises InputError, naming the configuration's key, when it is not there."""
    folder = model_folder(settings)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"config key models.{name}.source: {str(folder)!r} is not a model directory (no config.json in it)"
        )
    config = read_json(folder / "config.json")
    return config.get("text_config", config)


def depth(config: dict[str, Any]) -> int:
    """The number of decoder blocks by a model's `config.json`. Raises InputError when it does not say."""
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if key in config:
            return config[key]
    raise InputError("config.json of the model says nowhere how many decoder blocks it has (num_hidden_layers)")


def check_divides(patterns: dict[str, Pattern], name: str, config: dict[str, Any]) -> None:
    """Raise InputError when a pattern does not divide a width that a model's `config.json` announces.

    The widths are those that linear layers read; every layer is checked again when it is masked.
    """
    for key in ("hidden_size", "intermediate_size", "moe_intermediate_size", "n_embd"):
        if isinstance(width := config.get(key), int):
            for pattern in patterns.values():
                try:
                    pattern.blocks(width)
                except InputError as error:
                    raise InputError(f"config key patterns, model {name}, {key}: {error}") from None


def _known(config: dict[str, Any]) -> dict[str, list]:
    """The values of each coordinate of the grid, in the order of `Cell`."""
    return {
        "model": list(config["models"]),
        "calibration": list(config["calibrations"]),
        "seed": config["seeds"],
        "pattern": [_pattern(value).slug for value in config["patterns"]],
        "warmstart": config["warmstarts"],
        "refinement": list(config["refinements"]),
    }


def _pattern(value: Any, key: str = "patterns") -> Pattern:
    try:
        return parse_pattern(value)
    except InputError as error:
        raise InputError(f"config key {key}: {error}") from None


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _copy(value: Any) -> Any:
    """Plain dicts and lists all the way down: Snakemake hands over classes of its own."""
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    return [_copy(entry) for entry in value] if isinstance(value, list) else value


def _fill_defaults(validator: Any, properties: dict, instance: Any, schema: dict) -> Iterator[ValidationError]:
    """The `properties` keyword, which also writes defaults into the instance."""
    if isinstance(instance, dict):
        for key, subschema in properties.items():
            if "$ref" in subschema and "default" not in subschema:
                subschema = {**validator._resolver.lookup(subschema["$ref"]).contents, **subschema}
            if "default" in subschema:
                instance.setdefault(key, _copy(subschema["default"]))
    yield from Draft202012Validator.VALIDATORS["properties"](validator, properties, instance, schema)


_Validator = validators.extend(Draft202012Validator, {"properties": _fill_defaults})


def _one_line(error: ValidationError) -> str:
    """A schema violation in one line: where, what, and what would be right."""
    place = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(allowed))[0]
        where = f"{place}.{unknown}" if place else unknown
        return f"config key {where}: unknown; allowed here: {', '.join(allowed)}"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"config key {f'{place}.{missing[0]}' if place else missing[0]}: missing"
    if error.validator == "enum":
        return f"config key {place}: {error.instance!r} is not one of {', '.join(map(str, error.validator_value))}"
    message = " ".join(error.message.split())
    return f"config key {place or '(the whole file)'}: {message}"
