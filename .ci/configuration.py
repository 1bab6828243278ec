"""Print docs/configuration.md: every key of a configuration, from the models that check it."""

import json
from typing import Any

import yaml

from sparseswaps.workflow.config import json_schema

HEAD = """\
# Configuration

Every key of a study's configuration file, written by `make docs` from the models that check it
(`sparseswaps/workflow/config.py`). [A study](study.md) explains the keys in context.
[schemas/config.schema.yaml](../schemas/config.schema.yaml) holds the same for editors.
"""
TYPES = {"string": "string", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
TYPES |= {"null": "`null`"}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
NO_BOUND = 2**63 - 1


class Reference:
    """The sections of the page: one for each table of keys, under the path of the key that holds the table."""

    def __init__(self, study: dict[str, Any]) -> None:
        self.study = study
        self.classes = study["$defs"]
        self.paths: dict[str, str] = {}  # class: path of its key
        self._collect_paths(study, "")

    def _collect_paths(self, table: dict[str, Any], prefix: str) -> None:
        for key, schema in table["properties"].items():
            for name in references(schema):
                self.paths[name] = f"{prefix}{key}"
                self._collect_paths(self.classes[name], f"{prefix}{key}.")

    def page(self) -> str:
        sections = [HEAD, self.rows(self.study)]
        for name, path in self.paths.items():
            table = self.classes[name]
            sections += [f"## {path}\n", f"{table['description']}\n", self.rows(table), *presets(table)]
        return "\n".join(sections)

    def rows(self, table: dict[str, Any]) -> str:
        lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key, schema in table["properties"].items():
            if key in table.get("required", []):
                default = "required"
            else:
                default = "those of its keys" if "$ref" in schema else code(schema["default"])
            lines.append(f"| `{key}` | {self.type_of(schema)} | {default} | {schema['description']} |")
        return "\n".join(lines) + "\n"

    def type_of(self, schema: dict[str, Any]) -> str:
        """Describe the type and the bounds of a value."""
        if "$ref" in schema:
            return f"[table](#{self.paths[class_name(schema)].replace('.', '')})"
        if "enum" in schema:
            return " or ".join(map(code, schema["enum"]))
        if "anyOf" in schema:
            types = list(map(self.type_of, schema["anyOf"]))
            return " or ".join(name for name in types if name != "whole number" or "number" not in types)
        if schema["type"] == "array":
            items = self.type_of(schema["items"])
            return f"list of ({items})" if " or " in items else f"list of {items}"
        if schema["type"] == "object":
            values = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
            return f"by name: {self.type_of(values)}"
        bounds = [f"{word} {schema[key]}" for key, word in BOUNDS.items() if schema.get(key, NO_BOUND) != NO_BOUND]
        return " ".join([TYPES[schema["type"]], " and ".join(bounds)]).strip()


def references(schema: Any) -> list[str]:
    """Return the names of the classes that a schema of a key refers to."""
    if isinstance(schema, dict):
        return [class_name(schema)] if "$ref" in schema else [n for value in schema.values() for n in references(value)]
    return [name for value in schema for name in references(value)] if isinstance(schema, list) else []


def class_name(schema: dict[str, Any]) -> str:
    return schema["$ref"].rpartition("/")[2]


def presets(table: dict[str, Any]) -> list[str]:
    """Describe the defaults that a value of another key changes."""
    lines = []
    for preset in table.get("allOf", []):
        [(key, value)] = preset["if"]["properties"].items()
        defaults = (f"{code(name)} {code(part['default'])}" for name, part in preset["then"]["properties"].items())
        lines.append(f"Other defaults with `{key}: {value['const']}`: {', '.join(defaults)}.\n")
    return lines


def code(value: Any) -> str:
    """Return a value as code: a string without quotes, unless it is white space."""
    return f"`{value if isinstance(value, str) and value.isprintable() and value.strip() else json.dumps(value)}`"


def write_page() -> str:
    return Reference(yaml.safe_load(json_schema())).page()


if __name__ == "__main__":
    print(write_page(), end="")
