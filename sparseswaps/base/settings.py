"""Typed settings with their defaults, bounds and descriptions, and errors of one line for wrong values."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sparseswaps.base.errors import InputError, one_line

_REQUIREMENTS = {  # what a value must be, by the type of pydantic's error, where pydantic's own words are not plain
    "int_type": "a whole number",
    "bool_type": "true or false",
    "dict_type": "a table of keys",
    "model_type": "a table of keys",
    "too_short": "a list or table with at least {min_length} entry",
    "string_too_short": "a string of at least {min_length} character",
    "string_too_long": "a string of at most {max_length} characters",
    "string_pattern_mismatch": "a string that matches {pattern}",
}


def _describe_presets(schema: dict[str, Any], settings: type["Settings"]) -> None:
    """Add the presets of a class to its JSON schema."""
    field, presets = settings.PRESETS
    for value, defaults in presets.items():
        properties = {key: {"default": default} for key, default in defaults.items()}
        condition = {"required": [field], "properties": {field: {"const": value}}}
        schema.setdefault("allOf", []).append({"if": condition, "then": {"properties": properties}})


class Settings(BaseModel):
    """The settings of one function or one part of a configuration: immutable, with strict types.

    A subclass declares a field for each key: the only place of the key's type, bounds, default and description. Raises
    InputError when an argument is unknown or wrong: one line that names the argument and says what is allowed.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, json_schema_extra=_describe_presets
    )

    # Other defaults that a value of a field implies: the name of the field, and for each of its values defaults by key.
    PRESETS: ClassVar[tuple[str, Mapping[str, Mapping[str, Any]]]] = ("", {})

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise input_error(error, values) from None

    # Without this mark pydantic would call `__init__` for nested settings, and an error would lose its path.
    __init__.__pydantic_base_init__ = True

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Make an instance from a mapping that has other keys as well."""
        return cls(**{name: settings[name] for name in cls.model_fields})

    @model_validator(mode="before")
    @classmethod
    def _fill_presets(cls, values: Any) -> Any:
        """Refuse unknown keys, and fill in the defaults that another key implies."""
        if not isinstance(values, Mapping):
            return values
        keys = [field.alias or name for name, field in cls.model_fields.items()]
        for key in values:
            if key not in keys:
                raise wrong(str(key), unknown(key, sorted(keys)))
        field, presets = cls.PRESETS
        return {**presets.get(str(values.get(field)), {}), **values}


def wrong(key: str, message: str) -> PydanticCustomError:
    """Return the error to raise for one key in a validator of all keys."""
    return PydanticCustomError("wrong_key", "{message}", {"key": key, "message": message})


def unknown(value: object, choices: Iterable[object]) -> str:
    """Say that a key or value is unknown, which choice it resembles, and what is allowed."""
    names = list(map(str, choices))
    close = get_close_matches(str(value), names, n=1)
    return f"unknown; {f'did you mean {close[0]}? ' if close else ''}allowed: {', '.join(names)}"


def input_error(error: ValidationError, values: Any, prefix: str = "") -> InputError:
    """Return one line about the first error of `values`: prefix, the key's path, the value, what is allowed."""
    errors = [(_path(details, values), details) for details in error.errors(include_url=False)]
    # Every type of a union has its own errors. The type that fits best has the longest path, or not the wrong type.
    path, first = min(errors, key=lambda pair: (pair[1]["type"] != "wrong_key", -len(pair[0]), _is_type_error(pair[1])))
    key = "".join(map(_path_part, path)).removeprefix(".")
    message = _message(first, [details for other, details in errors if other == path and _is_type_error(details)])
    return InputError(f"{prefix}{key}: {message}" if key else f"{prefix}{message}")


def _path(details: Any, values: Any) -> tuple[str | int, ...]:
    """Return the keys and indexes that lead to a wrong value. Pydantic's own path also names the types of unions."""
    path = []
    for part in details["loc"]:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            if details["type"] != "missing" or part != details["loc"][-1]:
                continue
        path.append(part)
    return (*path, details["ctx"]["key"]) if details["type"] == "wrong_key" else tuple(path)


def _path_part(part: str | int) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isprintable() and part else f".{part!r}"


def _is_type_error(details: Any) -> bool:
    return details["type"].endswith("_type")


def _message(first: Any, type_errors: list[Any]) -> str:
    """Say what is wrong and what is allowed. `type_errors` are the errors of a wrong type for the same value."""
    kind, context = first["type"], first.get("ctx", {})
    if kind == "wrong_key":
        return context["message"]
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return one_line(context["error"])
    value = one_line(repr(first["input"]))
    value = value if len(value) <= 80 else f"{value[:77]}..."
    types = list(dict.fromkeys(map(_requirement, type_errors)))
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"{value} is {unknown(first['input'], [*choices, *types])}"
    return f"must be {' or '.join(types) if _is_type_error(first) else _requirement(first)}, not {value}"


def _requirement(details: Any) -> str:
    if details["type"] in _REQUIREMENTS:
        return _REQUIREMENTS[details["type"]].format(**details.get("ctx", {}))
    return details["msg"].removeprefix("Input should be ").replace(" valid ", " ")
