import pytest
from helpers import refusal

from sparseswaps.base.errors import BrokenFileError
from sparseswaps.base.files import read_csv, read_json, write_atomically, write_csv, write_json

ROWS = [{"layer": "a,b\n", "n": 7, "x": 0.1, "none": None, "yes": True}]
ROWS.append({"layer": "é", "n": -1, "x": 1e-300, "none": "", "yes": False})


@pytest.mark.parametrize("rows", [ROWS, []])
def test_a_table_is_read_as_it_was_written(rows, tmp_path):
    write_csv(tmp_path / "x.csv", rows)
    expected = [row | {"none": None} for row in rows]  # an empty text is None
    assert repr(read_csv(tmp_path / "x.csv")) == repr(expected)  # types included


@pytest.mark.parametrize(("write", "read"), [(write_csv, read_csv), (write_json, read_json)])
def test_a_cut_or_spoilt_file_is_refused(write, read, tmp_path):
    write(tmp_path / "x", ROWS)
    content = (tmp_path / "x").read_bytes()
    for broken in (*(content[:size] for size in range(0, len(content) - 1, 7)), b"\xff" + content, content + b"\0,"):
        (tmp_path / "x").write_bytes(broken)
        refusal(read, tmp_path / "x", BrokenFileError)
    refusal(read_json, tmp_path / "missing")


def test_a_file_or_folder_is_complete_or_as_before(tmp_path):
    with write_atomically(tmp_path / "x") as partial:
        partial.mkdir()
        (partial / "old").touch()
    (tmp_path / ".x.0.partial").touch()  # of a killed attempt
    with pytest.raises(TypeError), write_atomically(tmp_path / "x") as partial:
        partial.write_text(None)
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "old"]
    with write_atomically(tmp_path / "x") as partial:
        partial.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["x"]


def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    refusal(lambda path: write_json(path, ROWS), tmp_path / "new" / "x")
