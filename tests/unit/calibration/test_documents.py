import gzip
import json
import sys

import pandas
import pytest

from sparseswaps.base.errors import InputError
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.settings import TextSource

LINES = "".join(json.dumps({"body": body}) + "\n" for body in ("one", "", "two")).encode()


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.jsonl.gz", "x.json.gz", "x.parquet"])
def test_a_file_gives_its_documents(name, tmp_path):
    path = tmp_path / name
    if name.endswith(".txt"):
        path.write_text("one\n<|endoftext|>\n\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    elif name.endswith(".parquet"):
        pandas.DataFrame({"body": ["one", "", "two"], "n": [1, 2, 3]}).to_parquet(path)
    else:
        path.write_bytes(gzip.compress(LINES, mtime=0) if name.endswith(".gz") else LINES)
    expected = ["one", "two"] if name.endswith(".txt") else ["one", "", "two"]
    assert load(TextSource(text=str(path), field="body"), "calibration") == expected


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("other.jsonl", b'{"text": "one"}\n\n{"body": "two"}\n', "line 3"),
        ("broken.jsonl", b'{"text": "one"}\n{"text"', "line 2"),
        ("latin.txt", "é".encode("latin-1"), ""),
        ("plain.jsonl.gz", b"{}", ""),
        ("half.json.gz", gzip.compress(b'{"text": "one"}\n' * 99, mtime=0)[:-9], ""),
        ("broken.parquet", b"PAR1", ""),
        ("hole.parquet", {"text": ["one", None]}, "row 2"),
        ("other.parquet", {"body": ["one"]}, ""),
        ("missing.txt", None, ""),
    ],
)
def test_a_broken_file_is_named_in_one_line(name, content, place, tmp_path):
    if isinstance(content, dict):
        pandas.DataFrame(content).to_parquet(tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load(str(tmp_path / name), "calibration")
    assert str(error.value).startswith(f"text '{tmp_path / name}': {place}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "package"), [("c4", "datasets"), ("x.parquet", "pandas")])
def test_a_package_that_is_not_installed_is_named(text, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks a module that cannot be imported
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(InputError, match=rf'{package}.*pip install "sparseswaps\[workflow\]"'):
        load(text, "calibration")
