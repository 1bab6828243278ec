"""A study: the checked configuration, and the grid of cells that it spans."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match

from sparseswaps.base.errors import InputError, naming, one_line
from sparseswaps.calibration import documents
from sparseswaps.embedded.tasks import TASKS
from sparseswaps.layer.pattern import Pattern, PerRow, counting_rule, parse_pattern, slug_of
from sparseswaps.model import hub
from sparseswaps.model.directory import HUB_ID, check_files, config_of, context, depth, is_hub_id, locate, mask_files
from sparseswaps.workflow.plan.sizes import sizes_of

SCHEMA = Path(__file__).parent.parent.parent / "schemas" / "config.schema.yaml"


@dataclass(frozen=True)
class Cell:
    """One point of the grid: one mask for every layer of one model. `pattern` is the pattern's slug."""

    model: str
    calibration: str
    seed: int
    pattern: str
    warmstart: str
    refinement: str
    reconstruction: str = "none"

    def coordinates(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def method(self) -> str:
        """What is done to its warm start: the refinement, and the reconstruction if there is one."""
        return self.refinement if self.reconstruction == "none" else f"{self.refinement}+{self.reconstruction}"

    @property
    def folder(self) -> str:
        """Where its artifacts lie below the results."""
        return f"{self.model}/{self.calibration}/seed{self.seed}/{self.pattern}/{self.warmstart}/{self.method}"


@dataclass(frozen=True)
class Budget:
    """An entry of a configuration's `patterns`.

    Attributes:
        label: what tables call it.
        pattern: of every layer; where it is not the same for all, of those that a table does not name, or of all
            together.
        layers, owl: how it is divided among them, if it is: as the schema has it.
    """

    label: str
    pattern: Pattern
    layers: dict[str, Any] | None = None
    owl: dict[str, Any] | None = None

    @property
    def slug(self) -> str:
        """What folders call it."""
        return slug_of(self.label)

    @property
    def uniform(self) -> bool:
        return self.layers is None and self.owl is None


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
    _check_warmstarts(checked["warmstarts"], schema["properties"]["warmstarts"]["items"]["then"]["enum"])
    found = list(patterns(checked).values())
    if len(found) < len(checked["patterns"]):
        raise InputError(f"config key patterns: one is there twice: {', '.join(map(str, checked['patterns']))}")
    for index, entry in enumerate(checked["exclude"]):
        for key, names in _known(checked).items():
            for name in _as_list(entry.get(key, [])):
                slug = _slug(name, checked) if key == "pattern" else name
                if slug not in names:
                    labels = [budget.label for budget in patterns(checked).values()]
                    allowed = ", ".join(map(str, labels if key == "pattern" else names))
                    raise InputError(f"config key exclude.{index}.{key}: {name!r} is not one of {allowed}")
    texts = {f"calibrations.{name}": entry for name, entry in checked["calibrations"].items()}
    texts |= {f"evaluation.perplexity.{name}": entry for name, entry in checked["evaluation"]["perplexity"].items()}
    for key, entry in texts.items():
        _check_text(key, entry)
    for name, settings in config["refinements"].items():  # as written, without defaults
        if settings.get("method") == "dsnot" and settings.keys() - {"method", "max_swaps"}:
            raise InputError(f"config key refinements.{name}: method dsnot has no other keys than max_swaps")
    _check_refinements(checked["refinements"])
    if "none" in checked["reconstructions"]:
        raise InputError("config key reconstructions.none: is always there; leave it out")
    if checked["published"] is not None and not Path(checked["published"]).is_file():
        raise InputError(f"config key published: {checked['published']!r} is no file")
    _check_cells(checked)
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
                check_files(locate(settings))
            sizes = sizes_of(model)
        for key, entry in texts.items():
            if (most := context(model)) is not None and entry["seqlen"] > most:
                raise InputError(f"config key {key}.seqlen: {entry['seqlen']} tokens, but model {name} takes {most}")
        for d_in in sorted(sizes.widths):  # layers of other widths are found out when they are masked
            for budget in found:
                with naming(f"config key patterns, model {name}"):
                    budget.pattern.blocks(d_in)
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


def _check_warmstarts(entries: list[str | dict[str, str]], criteria: list[str]) -> None:
    """Of those that were made elsewhere names and files; whether these fit a model is found out as they are read."""
    names = [entry if isinstance(entry, str) else entry["name"] for entry in entries]
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            continue
        key, name = f"config key warmstarts.{index}", entry["name"]
        if name in criteria or names.count(name) > 1:
            raise InputError(f"{key}.name: {name!r} is another warm start's; take one of its own")
        if Path(entry["from"]).resolve().is_relative_to(Path("results").resolve()):
            raise InputError(f"{key}.from: {entry['from']!r} is a result, which may be made anew; copy it elsewhere")
        with naming(f"{key}.from"):
            mask_files(entry["from"])


def _check_refinements(refinements: dict[str, dict]) -> None:
    """`none` is how tables call the warm start as it is, so only that may have the name, and only once."""
    idle = [name for name, settings in refinements.items() if settings["max_swaps"] == 0]
    if len(idle) > 1:
        raise InputError(f"config key refinements: {', '.join(idle)} are all the warm start as it is; keep one")
    if "none" in refinements and idle != ["none"]:
        raise InputError("config key refinements.none: means the warm start; give it max_swaps: 0 or another name")


def _check_cells(config: dict[str, Any]) -> None:
    """What does not go together has to be left out by `exclude`."""
    budgets = patterns(config)
    for cell in cells(config):
        budget, how = budgets[cell.pattern], config["refinements"][cell.refinement]
        calibration = config["calibrations"][cell.calibration]
        if how["between_rows"] and not isinstance(budget.pattern, PerRow):
            raise InputError(
                f"config key refinements.{cell.refinement}.between_rows: pattern {budget.label} says what each block "
                f"keeps; exclude {{refinement: {cell.refinement}, pattern: {budget.label!r}}}"
            )
        if how["stop"] == "held_out" and not calibration["held_out"]:
            raise InputError(
                f"config key calibrations.{cell.calibration}.held_out: is 0, "
                f"but refinement {cell.refinement} stops by it"
            )
        if budget.owl is not None and calibration["propagate"] == "pruned":
            raise InputError(
                f"config key patterns: {budget.label} looks at all blocks before any is pruned, calibration "
                f"{cell.calibration} prunes one after the other; exclude one with the other, or take `layers`"
            )


def counted(config: dict[str, Any], warmstart: str, refinement: str | None = None) -> str:
    """Where the weights that a warm start keeps are counted, or a refinement of it: what `masks.check_mask` is told."""
    if warmstarts(config).get(warmstart) is not None:
        return "roughly"
    return counting_rule(warmstart, bool(refinement) and config["refinements"][refinement]["between_rows"])


def _check_tasks(settings: dict[str, Any]) -> None:
    for task in settings["tasks"]:
        if task.startswith("embedded_") and task not in TASKS:
            raise InputError(f"config key evaluation.lm_eval.tasks: no task {task!r}; embedded are {', '.join(TASKS)}")
    if settings["include"] is not None and not Path(settings["include"]).is_dir():
        raise InputError(f"config key evaluation.lm_eval.include: {settings['include']!r} is no directory")


def patterns(config: dict[str, Any]) -> dict[str, Budget]:
    """The patterns of a checked configuration by slug."""
    return {budget.slug: budget for budget in map(_budget, config["patterns"])}


def warmstarts(config: dict[str, Any]) -> dict[str, str | None]:
    """The warm starts of a checked configuration by name: where one that was made elsewhere is; None of a criterion."""
    found = [{"name": entry, "from": None} if isinstance(entry, str) else entry for entry in config["warmstarts"]]
    return {entry["name"]: entry["from"] for entry in found}


def cells(config: dict[str, Any]) -> Iterator[Cell]:
    """The cells of a checked configuration's grid, without those that `exclude` names."""
    known = _known(config)
    excluded = []
    for entry in config["exclude"]:
        choices = {key: _as_list(value) for key, value in entry.items()}
        if "pattern" in choices:
            choices["pattern"] = [_slug(value, config) for value in choices["pattern"]]
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
        "pattern": list(patterns(config)),
        "warmstart": list(warmstarts(config)),
        "refinement": list(config["refinements"]),
        "reconstruction": ["none", *config["reconstructions"]],
    }


def _budget(entry: Any) -> Budget:
    with naming("config key patterns"):
        if not isinstance(entry, dict):
            pattern = parse_pattern(entry)
            return Budget(pattern.label, pattern)
        budget = Budget(entry["name"], parse_pattern(entry["sparsity"]), entry.get("layers"), entry.get("owl"))
        for name, value in (budget.layers or {}).items():
            with naming(f"{budget.label}, layers.{name}"):
                parse_pattern(value)
        if budget.owl is not None and not isinstance(budget.pattern, PerRow):
            raise InputError(f"{budget.label}: owl divides a sparsity per row, which {budget.pattern.label} is not")
        return budget


def _slug(value: str | float, config: dict[str, Any]) -> str:
    """The slug of a pattern by its name, or as it is written."""
    named = next((budget.slug for budget in patterns(config).values() if budget.label == value), None)
    return named or _budget(value).slug


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
