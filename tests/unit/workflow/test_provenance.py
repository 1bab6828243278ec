import tomllib
from itertools import chain

import pytest
import yaml
from helpers import read_document
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sparseswaps.workflow import code
from sparseswaps.workflow.code import code_digest, reachable
from sparseswaps.workflow.provenance import ALWAYS, digest, names_above, settings_of
from sparseswaps.workflow.stages import STAGES


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package: the job imports layer.a, which imports layer.b and other.c; nothing imports layer.d."""
    monkeypatch.setattr(code, "ROOT", tmp_path)
    files = {
        "workflow/jobs/stage.py": "from sparseswaps.layer.a import f\n\ndef run():\n    return f()\n",
        "layer/a.py": (
            '"""Docs."""\nimport logging\nfrom sparseswaps.other import c\n\n\n'
            'def f(x: int = 1) -> int:\n    """Docs."""\n'
            "    from sparseswaps.layer import b\n\n    logging.info('%s rows', x)\n    if x < 0:\n"
            "        raise ValueError(f'{x} is wrong')\n    message = 'two words'\n"
            "    with progress('rows', ''):\n        return b.x * 2\n"
        ),
        "layer/b.py": "x = 1\nkey = 'loss'\n",
        "layer/d.py": "y = 1\n",
        "other/c.py": "z = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digest_of(words: tuple[str, ...] = ()) -> str:
    for function in (code.imports, code.skeleton, code.code_digest):
        function.cache_clear()
    return code_digest("workflow.jobs.stage", ("layer",), words)


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("workflow/jobs/stage.py", "f()", "f() or 1", True),
        ("layer/a.py", "* 2", "* 3", True),
        ("layer/a.py", "x < 0", "x <= 0", True),
        ("layer/a.py", "x: int = 1", "x: int = 2", True),
        ("layer/b.py", "1", "2", True),
        ("layer/b.py", "'loss'", "'held_out'", True),
        ("layer/d.py", "1", "2", False),
        ("other/c.py", "1", "2", False),
        ("layer/a.py", "Docs.", "Other words.", False),
        ("layer/a.py", "x: int", "x: float", False),
        ("layer/a.py", "-> int", "-> float", False),
        ("layer/a.py", "%s rows", "%s of the rows", False),
        ("layer/a.py", "is wrong", "is not right", False),
        ("layer/a.py", "two words", "three other words", False),
        ("layer/a.py", "'rows'", "'columns'", False),
        ("layer/b.py", "x = 1", "# why\nx  =  1", False),
    ],
)
def test_what_changes_a_digest(package, file, old, new, counts):
    before = digest_of()
    path = package / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (digest_of() != before) is counts


def test_words_count_where_they_are_the_result(package):
    before, words = digest_of(), digest_of(("layer",))
    (package / "layer/a.py").write_text((package / "layer/a.py").read_text().replace("two words", "other words"))
    assert digest_of() == before
    assert digest_of(("layer",)) != words


@pytest.mark.parametrize(
    ("stage", "inside", "outside"),
    [
        ("capture", {"calibration.capture", "layer.gram"}, {"layer.criteria", "layer.swaps.engine"}),
        ("warmstart", {"layer.criteria", "layer.baselines.sparsegpt"}, {"layer.refinement", "report.tables"}),
        (
            "refine",
            {"layer.swaps.engine", "layer.swaps.cpu"},
            {"layer.criteria", "layer.reconstruction", "base.errors"},
        ),
        ("reconstruct", {"layer.least_squares"}, {"layer.criteria"}),
        ("masks", {"layer.masks", "workflow.artifacts", "workflow.context"}, {"layer.criteria"}),
        ("figures", {"report.figures"}, {"report.page", "layer.gram"}),
    ],
)
def test_the_code_of_a_stage_is_what_its_job_computes_with(stage, inside, outside):
    files = reachable(f"workflow.jobs.{stage}", (*STAGES[stage].code, *ALWAYS))
    names = {file.relative_to(code.ROOT).with_suffix("").as_posix().replace("/", ".") for file in files}
    assert inside | {f"workflow.jobs.{stage}"} <= names
    assert not outside & names


def test_every_stage_knows_all_stages_above_it():
    assert names_above("model") == []
    assert names_above("capture") == ["model", "samples"]
    assert names_above("tables")[:4] == ["model", "samples", "capture", "allocation"]


def test_settings_are_read_back_from_parameters_whose_digest_does_not_depend_on_the_order():
    params = ['criterion="wanda"', "threads=1", "torch=2.13.0", "code=1a2b", "upstream capture=3c4d", "from=null"]
    assert settings_of(params, "warmstart") == {"criterion": "wanda", "threads": 1, "from": None}
    assert digest(["a", "b"]) == digest(["b", "a"]) != digest(["a"])


def test_the_lock_and_the_conda_environment_fit_the_ranges_of_the_project():
    project = tomllib.loads(read_document("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    lines = read_document("envs/lock.txt").splitlines()[1:]
    lock = dict(line.split("==") for line in lines)
    environment = yaml.safe_load(read_document("envs/sparseswaps.yaml"))
    pins = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert set(pins) <= set(lines)
    for requirement in map(Requirement, chain(project["dependencies"], *extras.values())):
        if requirement.name != "sparseswaps":
            assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), requirement
    for requirement in map(Requirement, [*project["dependencies"], *extras["workflow"]]):
        name = canonicalize_name(requirement.name)
        assert f"{name}=={lock[name]}" in pins
