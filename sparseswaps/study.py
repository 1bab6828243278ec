"""A study: the checked configuration, and the grid of cells that it spans."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match

from sparseswaps import documents, hub
from sparseswaps.embedded.tasks import TASKS
from sparseswaps.errors import InputError, naming, one_line
from sparseswaps.modeldir import HUB_ID, check_sizes, config_of, context, depth, is_hub_id, locate
from sparseswaps.pattern import Pattern, parse_pattern
from sparseswaps.sizes import sizes_of

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

    def coordinates(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def folder(self) -> str:
        """Where its artifacts lie below the results."""
        return f"{self.model}/{self.calibration}/seed{self.seed}/{self.pattern}/{self.warmstart}/{self.refinement}"


@dataclass(frozen=True)
class Dense:
    """A model as it is, to compare with."""

    model: str

    @property
    def folder(self) -> str:
        """Where its evaluation lies below the results."""
        return f"{self.model}/dense"


def check(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with all defaults filled in, and everything checked that can be before the first job.

    The `revision` of a model of the hub becomes the commit hash that it stands for; that of a local one is None.

    Raises:
        InputError: a key or value is wrong, a model or a text is missing, or a pattern does not divide a width of a
            model; one line with the key's path and what is allowed.
    """
    checked = _copy(config)
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    error = best_match(_Validator(schema).iter_errors(checked))
    if error is not None:
        raise InputError(_one_line(error))
    found = list(patterns(checked).values())
    if len(found) < len(checked["patterns"]):
        raise InputError(f"config key patterns: one is there twice: {', '.join(map(str, checked['patterns']))}")
    for index, entry in enumerate(checked["exclude"]):
        for key, names in _known(checked).items():
            for name in _as_list(entry.get(key, [])):
                slug = _pattern(name, f"exclude.{index}.pattern").slug if key == "pattern" else name
                if slug not in names:
                    allowed = ", ".join(map(str, checked["patterns"] if key == "pattern" else names))
                    raise InputError(f"config key exclude.{index}.{key}: {name!r} is not one of {allowed}")
    texts = {f"calibrations.{name}": entry for name, entry in checked["calibrations"].items()}
    texts |= {f"evaluation.perplexity.{name}": entry for name, entry in checked["evaluation"]["perplexity"].items()}
    for key, entry in texts.items():
        _check_text(key, entry)
    _check_refinements(checked["refinements"])
    _check_tasks(checked["evaluation"]["lm_eval"])
    for name, settings in checked["models"].items():
        with naming(f"config key models.{name}.source"):
            if is_hub_id(settings["source"]):
                settings["revision"] = hub.resolve(settings["source"], settings["revision"])
            elif settings["revision"] is not None:
                raise InputError(f"{settings['source']!r} is no hub id, so it has no revision; leave that key out")
            model = config_of(locate(settings))
            depth(model)
            if settings["revision"] is None:
                check_sizes(locate(settings))
            sizes = sizes_of(model)
        for key, entry in texts.items():
            if (most := context(model)) is not None and entry["seqlen"] > most:
                raise InputError(f"config key {key}.seqlen: {entry['seqlen']} tokens, but model {name} takes {most}")
        for d_in in sorted(sizes.widths):  # layers of other widths are found out when they are masked
            for pattern in found:
                with naming(f"config key patterns, model {name}"):
                    pattern.blocks(d_in)
    return checked


def _check_text(key: str, entry: dict[str, Any]) -> None:
    text = entry["text"]
    local = text == "embedded" or documents.is_file(text)
    if documents.is_file(text):
        fits = Path(text).is_file()
    elif text in ("embedded", *documents.PRESETS):
        fits = True
    else:
        fits = HUB_ID.fullmatch(text) and not Path(text).exists()  # what is there under that name was meant
    if not fits:
        kinds, presets = " or ".join(documents.FILES), ", ".join(documents.PRESETS)
        raise InputError(
            f"config key {key}.text: {text!r} is neither `embedded`, {presets}, the id of a data set on the hub, nor a "
            f"{kinds} file that is there"
        )
    for name in documents.HUB_KEYS:
        if local and entry[name] is not None:
            raise InputError(
                f"config key {key}.{name}: is for data sets of the hub, which {text!r} is not; leave it out"
            )
    if entry["subset"] is not None and entry["files"] is not None:
        raise InputError(f"config key {key}.files: takes the place of `subset`; leave one of them out")


def _check_refinements(refinements: dict[str, dict]) -> None:
    """`none` is how tables call the warm start as it is, so only that may have the name, and only once."""
    idle = [name for name, settings in refinements.items() if settings["max_swaps"] == 0]
    if len(idle) > 1:
        raise InputError(f"config key refinements: {', '.join(idle)} are all the warm start as it is; keep one")
    if "none" in refinements and idle != ["none"]:
        raise InputError("config key refinements.none: means the warm start; give it max_swaps: 0 or another name")


def _check_tasks(settings: dict[str, Any]) -> None:
    for task in settings["tasks"]:
        if task.startswith("embedded_") and task not in TASKS:
            raise InputError(f"config key evaluation.lm_eval.tasks: no task {task!r}; embedded are {', '.join(TASKS)}")
    if settings["include"] is not None and not Path(settings["include"]).is_dir():
        raise InputError(f"config key evaluation.lm_eval.include: {settings['include']!r} is no directory")


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


def blocks(config: dict[str, Any]) -> dict[str, list[str]]:
    """The names of every model's decoder blocks, `block00` and on."""
    return {
        name: [f"block{index:02d}" for index in range(depth(config_of(locate(settings))))]
        for name, settings in config["models"].items()
    }


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
    with naming(f"config key {key}"):
        return parse_pattern(value)


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


_TYPES = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)  # 8.0 is none here
_Validator = validators.extend(Draft202012Validator, {"properties": _fill_defaults}, type_checker=_TYPES)


def _one_line(error: ValidationError) -> str:
    """A schema violation in one line: where, what, and what would be right."""
    place = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema["properties"])
        unknown = sorted(map(str, set(error.instance) - set(allowed)))[0]
        where = f"{place}.{unknown}" if place else unknown
        return f"config key {where}: unknown; allowed here: {', '.join(allowed)}"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"config key {f'{place}.{missing[0]}' if place else missing[0]}: missing"
    if error.validator == "enum":
        return f"config key {place}: {error.instance!r} is not one of {', '.join(map(str, error.validator_value))}"
    message = one_line(error.message)
    return f"config key {place or '(the whole file)'}: {message}"
