import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseswaps.base.errors import InputError
from sparseswaps.layer.pattern import parse_pattern, slug_of


@pytest.mark.parametrize(
    ("value", "label", "slug", "groups"),
    [
        ("60%", "60%", "60pct", (10, 4)),
        (0.6, "60%", "60pct", (10, 4)),
        ("0.7", "70%", "70pct", (10, 3)),  # floor(10 * 0.7) is 7, though 10 * 0.7 in floating point may not be
        ("62.5%", "62.5%", "62.5pct", (10, 4)),
        (0, "0%", "0pct", (10, 10)),
        ("1:2", "1:2", "1of2", (2, 1)),
        ("4:5", "4:5", "4of5", (5, 4)),
    ],
)
def test_patterns(value, label, slug, groups):
    pattern = parse_pattern(value)
    assert (pattern.label, slug_of(pattern.label), tuple(pattern.groups(10))) == (label, slug, groups)
    assert parse_pattern(0.29).groups(100).kept == 71  # 100 * 0.29 is 28.999999999999996 in floating point


@pytest.mark.parametrize("value", ["100%", 1, -0.1, "-10%", "1.2", "4:4", "0:4", "5:4", "half", "2:4:8", "", None])
def test_other_values_are_no_patterns(value):
    with pytest.raises(InputError, match="pattern"):
        parse_pattern(value)
    with pytest.raises(InputError, match="3:8"):
        parse_pattern("3:8").groups(12)  # 8 does not divide 12


@given(st.decimals(0, "99.9999999", places=7))
def test_a_label_parses_to_its_pattern(percent):
    pattern = parse_pattern(f"{percent:f}%")
    assert parse_pattern(pattern.label) == pattern
