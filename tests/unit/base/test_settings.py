from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from sparseswaps.base.errors import InputError
from sparseswaps.base.settings import Settings, input_error, wrong


class Part(Settings):
    PRESETS = ("kind", {"large": {"size": 9, "share": 0.5}})

    kind: Literal["small", "large"] = "small"
    size: int = Field(1, ge=1, le=10)
    share: float = Field(0.0, ge=0, lt=1)
    on: bool = False
    name: Annotated[str, Field(min_length=1, max_length=3, pattern="^[a-z]*$")] | None = None

    @model_validator(mode="after")
    def _check_share(self):
        if self.share > 0.7 and self.kind == "small":
            raise wrong("share", "is too much for a small one")
        if self.on and self.size == 3:
            raise ValueError("is odd")
        return self


class Whole(Settings):
    parts: dict[str, Part] = Field({})
    mixed: list[Literal["none"] | Part] = Field([])
    texts: str | list[str] = "a"
    needed: Annotated[list[int], Field(min_length=1)] = Field([1])
    source: str = Field("x", alias="from")


def test_settings_are_immutable_values_and_presets_are_defaults_that_a_value_implies():
    assert Part(kind="large") == Part(kind="large", size=9, share=0.5)
    assert Part(kind="large", size=2).size == 2
    assert Part(kind="small") == Part()
    part = Part(size=2)
    with pytest.raises(ValidationError):
        part.size = 3
    assert {part: 1}[Part(size=2)] == 1
    assert Part.of({"kind": "small", "size": 2, "share": 0.0, "on": False, "name": None, "of another": 1}) == part


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"parts": {"a": {"siez": 2}}}, "parts.a.siez", ["size"]),
        ({"parts": {"a": {"size": 0}}}, "parts.a.size", ["0", "1"]),
        ({"parts": {"a": {"size": 11}}}, "parts.a.size", ["11", "10"]),
        ({"parts": {"a": {"size": 2.0}}}, "parts.a.size", ["2.0"]),
        ({"parts": {"a": {"size": True}}}, "parts.a.size", ["True"]),
        ({"parts": {"a": {"size": "2"}}}, "parts.a.size", ["'2'"]),
        ({"parts": {"a": {"share": 1}}}, "parts.a.share", ["1"]),
        ({"parts": {"a": {"share": float("nan")}}}, "parts.a.share", ["nan"]),
        ({"parts": {"a": {"share": 0.8}}}, "parts.a.share", []),
        ({"parts": {"a": {"on": True, "size": 3}}}, "parts.a", []),
        ({"parts": {"a": {"on": 1}}}, "parts.a.on", ["1"]),
        ({"parts": {"a": {"name": ""}}}, "parts.a.name", ["''"]),
        ({"parts": {"a": {"name": "abcd"}}}, "parts.a.name", ["'abcd'", "3"]),
        ({"parts": {"a": {"name": "A\nB"}}}, "parts.a.name", ["^[a-z]*$"]),
        ({"parts": {"a": {"kind": "smal"}}}, "parts.a.kind", ["'smal'", "did you mean small?"]),
        ({"parts": {"a": 3}}, "parts.a", ["3"]),
        ({"parts": {1: {}}}, "parts[1]", ["1"]),
        ({"parts": []}, "parts", ["[]"]),
        ({"mixed": ["none", "nnoe"]}, "mixed[1]", ["none"]),
        ({"mixed": ["none", {"size": 0}]}, "mixed[1].size", ["0"]),
        ({"mixed": [{"sise": 1}]}, "mixed[0].sise", ["size"]),
        ({"texts": 3}, "texts", ["a string or a list"]),
        ({"texts": ["a", 3]}, "texts[1]", ["3"]),
        ({"needed": []}, "needed", ["[]"]),
        ({"source": "y"}, "source", ["from"]),
        ({"needed": "x" * 1000}, "needed", ["..."]),
    ],
)
def test_the_first_mistake_is_one_line_with_its_path(values, key, words):
    with pytest.raises(InputError) as error:
        Whole(**values)
    line = str(error.value)
    assert line.startswith(f"{key}: ")
    assert all(word in line for word in words)
    assert "\n" not in line
    assert len(line) < 200


def test_a_missing_key_has_its_path_and_an_input_that_is_no_table_has_none():
    class Strict(Settings):
        name: str

    with pytest.raises(InputError, match=r"^name: "):
        Strict()
    with pytest.raises(ValidationError) as error:
        Whole.model_validate([1])
    assert str(input_error(error.value, [1], "the file ")).startswith("the file must")
