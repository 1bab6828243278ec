"""How the embedded text and tasks are made."""

import platform
import re

import pytest
from embedded_text import choice, cloze, documents, first, split_of, write

from sparseswaps import embedded


@pytest.fixture(scope="module")
def held_out() -> list[tuple[str, str]]:
    return documents("evaluation")


@pytest.mark.skipif(platform.python_version() != embedded.RELEASE, reason=f"needs Python {embedded.RELEASE}")
def test_the_shipped_files_are_what_is_written(tmp_path):
    write(tmp_path)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / file).read_bytes() == (embedded.TEXT.parent / file).read_bytes(), file


def test_the_name_alone_decides_the_split(tmp_path):
    (tmp_path / "json").mkdir()
    for name in ("json/decoder.py", "json/__init__.py", "asyncio.py"):
        (tmp_path / name).write_text("pass\n")
    names = sorted(name for split in ("train", "calibration", "evaluation") for name, _ in documents(split, tmp_path))
    assert names == ["asyncio", "json", "json.decoder"]  # each in one split
    assert ("json.decoder", "pass\n") in documents(split_of("json.decoder"), tmp_path)


def test_first_counts_bytes():
    modules = [("a", "é"), ("b", "xyz"), ("c", "")]
    assert [len(first(modules, size)) for size in (1, 2, 4, 5)] == [0, 1, 1, 3]


def test_cloze_asks_for_an_identifier_of_its_context(held_out):
    source = dict(held_out)
    for item in cloze(held_out):
        context, target = item["context"], item["target"]
        assert re.fullmatch(r" [A-Za-z_]\w{3,}", target)
        assert len(re.findall(rf"\b{target[1:]}\b", context)) >= 2
        assert not context[-1].isspace()  # exactly one blank in between
        text = source[item["module"]]
        offsets = [match.start() for match in re.finditer(re.escape(context + target) + r"\b", text)]
        assert any(offset == 0 or text[offset - 1] == "\n" for offset in offsets)


def test_choice_asks_for_the_next_line_among_lines_that_differ_in_their_words_alone(held_out):
    source = dict(held_out)
    for item in choice(held_out):
        text, choices = source[item["module"]], item["choices"]
        true, lines = choices[item["label"]], text.split("\n")
        assert ("\n" + text + "\n").count(f"\n{item['context']}\n{true}\n") == 1
        assert len(set(choices)) == 4
        assert len({len(line) - len(line.lstrip()) for line in choices}) == 1
        for line in choices:
            assert len("".join(line.split())) >= 12
            assert (line in lines) == (line is true)
            assert 0.75 < len(line.strip()) / len(true.strip()) < 1.4


@pytest.mark.parametrize("make", [cloze, choice])
def test_too_little_text_is_an_error(held_out, make):
    with pytest.raises(ValueError, match=f"embedded_{make.__name__}"):
        make([("broken", "def f(:\n" * 1000), ("short", "x = 1\n"), *held_out[:2]])
