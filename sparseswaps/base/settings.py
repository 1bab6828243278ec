"""Settings: typed values with their defaults, bounds and descriptions, and one line for a wrong one."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sparseswaps.base.errors import InputError, one_line

_TYPES = {  # how pydantic calls a type, and how a reader of YAML or Python does
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table of keys and values",
    "model_type": "a table of keys and values",
}


class Settings(BaseModel):
    """The settings of one function or one part of a configuration: immutable, with strict types.

    A subclass declares a field for each key. The field is the only place of the key's type, bounds, default and
    description.

    Attributes:
        PRESETS: other defaults that a value of one field implies: the field's name, and for each of its values the
            defaults by key.

    Raises:
        InputError: an argument is unknown or wrong; one line that names the argument and says what is allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    PRESETS: ClassVar[tuple[str, Mapping[str, Mapping[str, Any]]] | None] = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise input_error(error, values) from None

    # Without this mark pydantic would call `__init__` for nested settings, and an error would lose its path.
    __init__.__pydantic_base_init__ = True

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Select this class's keys from the settings of a stage."""
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
        values = dict(values)
        if cls.PRESETS:
            field, presets = cls.PRESETS
            choice = values.get(field)
            values = {**(presets.get(choice, {}) if isinstance(choice, str) else {}), **values}
        return values


def wrong(key: str, message: str) -> PydanticCustomError:
    """Return the error that a validator of a whole `Settings` raises for one of its keys."""
    return PydanticCustomError("wrong_key", "{message}", {"key": key, "message": message})


def unknown(value: object, choices: Iterable[object]) -> str:
    """Say what is allowed instead of a key or value, and which of the choices it resembles if it is misspelt."""
    names = list(map(str, choices))
    close = get_close_matches(str(value), names, n=1)
    return f"unknown; {f'did you mean {close[0]}? ' if close else ''}allowed: {', '.join(names)}"


def input_error(error: ValidationError, values: Any, prefix: str = "") -> InputError:
    """Turn the errors of pydantic into one line for the first of them.

    Args:
        error: what pydantic raised.
        values: the input that it was raised for.
        prefix: what stands before the path of the key.
    """
    errors = [(_path(details, values), details) for details in error.errors(include_url=False)]
    # Of a union of types, the type that the value fits most nearly has the longest path.
    path, first = min(errors, key=lambda pair: (pair[1]["type"] != "wrong_key", -len(pair[0])))
    same = [details for other, details in errors if other == path]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return InputError(f"{prefix}{name}: {_message(first, same)}" if name else f"{prefix}{_message(first, same)}")


def _path(details: Any, values: Any) -> tuple[str | int, ...]:
    """Return the keys and indexes that lead to a wrong value; pydantic's own path also names the members of unions."""
    path = []
    for part in details["loc"]:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            if details["type"] == "missing" and part == details["loc"][-1]:
                path.append(part)
        else:
            path.append(part)
    return (*path, details["ctx"]["key"]) if details["type"] == "wrong_key" else tuple(path)


def _message(first: Any, same: list[Any]) -> str:
    """Say what is wrong with a value and what is allowed.

    Args:
        first: an error of the value.
        same: all errors of the value: one for each type of a union.
    """
    kind, context = first["type"], first.get("ctx", {})
    if kind == "wrong_key":
        return context["message"]
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return one_line(context["error"])
    value = one_line(repr(first["input"]))
    value = value if len(value) <= 80 else f"{value[:77]}..."
    choices = [
        choice for details in same for choice in re.findall(r"'([^']*)'", details.get("ctx", {}).get("expected", ""))
    ]
    if choices:
        return f"{value} is {unknown(first['input'], choices)}"
    types = list(dict.fromkeys(_TYPES[details["type"]] for details in same if details["type"] in _TYPES))
    if types:
        return f"{value} is not {' or '.join(types)}"
    return f"{value}: {one_line(re.sub(r'^Input should', 'should', first['msg']))}"
