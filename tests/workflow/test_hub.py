"""Models and data sets by hub id: the real workflow against a small hub on this machine, with a cache of its own."""

import gzip
import json
import re
import shutil
import subprocess
import sys

import pandas
import pytest
import yaml
from fake_hub import Hub
from helpers import DRAW, REPOSITORY, TEXT, Workflow, tiny_study
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sparseswaps.calibration.documents import PRESETS
from sparseswaps.calibration.settings import Calibration, TextSource
from sparseswaps.evaluation.settings import EvaluationText

MODEL = "results/tiny/model.json"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that serves, to the processes that a test starts."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with Hub().serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def publish(hub, model, folder, *revisions, name="org/tiny"):
    """Publish a model among files that pruning does not need; return its commit hash."""
    shutil.copytree(model, folder)
    for other in ("pytorch_model.bin", "consolidated.safetensors", "model.onnx", "original/params.json"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"not wanted")
    (folder / "LICENSE").write_text("as you like\n")
    return hub.add(name, folder, *revisions)


def study_of(source, **settings):
    return tiny_study(None, models={"tiny": {"source": source, **settings}})


def refusal(folder, source, **settings):
    """Return the one line with which the start of the workflow refuses a model."""
    said = Workflow(folder).fail(study_of(source, **settings), "-n")
    (line,) = [line for line in said.splitlines() if "config key" in line]
    assert re.search(f"config key models.tiny.source: .*'{source}'", line)
    return line


@pytest.mark.slow
def test_a_model_by_its_tag_from_the_hub_to_the_checkpoint_and_again_offline(hub, tiny_model, tmp_path, monkeypatch):
    commit = publish(hub, tiny_model, tmp_path / "first", "v1")
    publish(hub, tiny_model, tmp_path / "second")
    tensors = load_file(tmp_path / "second" / "model.safetensors")
    tensors["model.embed_tokens.weight"].mul_(2)
    save_file(tensors, tmp_path / "second" / "model.safetensors", metadata={"format": "pt"})
    newer = hub.add("org/tiny", tmp_path / "second", "main")
    assert newer != commit
    chained = {"calibrations": {"stdlib": TEXT | {"propagate": "pruned"}}}  # fewest jobs
    workflow, config = Workflow(tmp_path / "work"), study_of("org/tiny", revision="v1") | chained
    workflow.folder.mkdir()
    target = DRAW / "2of4/wanda/none/checkpoint"
    workflow.run(config, "--cores", "2", "--", target)
    folder, description = workflow.folder / target.parent, workflow.folder / "results/tiny/model.json"
    described = json.loads(description.read_text())
    assert (described["source"], described["revision"]) == ("org/tiny", commit)
    with safe_open(folder / "masks.safetensors", framework="pt") as file:
        base = json.loads(file.metadata()["sparseswaps"])["more"]["base"]
    assert (base["source"], base["revision"]) == ("org/tiny", commit)
    assert json.loads((folder / "checkpoint" / "sparseswaps.json").read_text())["base"] == base
    assert (folder / "checkpoint" / "LICENSE").read_text() == "as you like\n"
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == {path.name for path in tiny_model.iterdir()} | {"LICENSE"}

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    assert workflow.planned(config, target) == {}
    describe = (config, "--cores", "1", "--", MODEL)
    description.unlink()
    workflow.run(*describe)  # from the cache
    assert json.loads(description.read_text()) == described
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = tmp_path / "hf" / "hub" / "models--org--tiny"
    shutil.rmtree(cached / "trees")  # other programs leave the cache without a list of the files
    description.unlink()
    workflow.run(*describe)
    (cached / "snapshots" / commit / "model.safetensors").unlink()
    description.unlink()
    assert re.search(f"model: error: .*'org/tiny' .*{commit}", workflow.fail(*describe))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    workflow.run(*describe)  # what is missing is fetched again
    for revision, jobs in ((None, {"model": 1}), (commit, {})):  # main is another commit
        assert workflow.planned(study_of("org/tiny", revision=revision) | chained, MODEL) == jobs


@pytest.mark.parametrize(
    ("source", "revision", "remedy"),
    [
        ("org/none", None, "hf auth login"),
        ("org/tiny", "v2", "'v2'"),
        ("org/gated", None, "/org/gated"),
        ("org/pickled", None, "save_pretrained"),
        ("org--tiny", None, "--"),
        ("embedded", "v2", "revision"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub, tiny_model, tmp_path, source, revision, remedy):
    hub.add("org/tiny", tiny_model, "main")
    hub.add("org/gated", tiny_model, "main")
    hub.gated.add("org/gated")
    publish(hub, tiny_model, tmp_path / "pickled", "main", name="org/pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    assert remedy in refusal(tmp_path, source, revision=revision)


def test_a_hub_out_of_reach_is_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "ConnectError" in refusal(tmp_path, "org/tiny")


def test_a_gated_model_that_was_cached_before_its_weights(hub, tiny_model, tmp_path):
    """Its configuration is public or was: the model stage refuses it as the start would."""
    hub.add("org/tiny", tiny_model, "main")
    workflow, config = Workflow(tmp_path), study_of("org/tiny")
    assert workflow.planned(config, MODEL) == {"model": 1}
    hub.gated.add("org/tiny")
    said = workflow.fail(config, "--cores", "1", "--", MODEL)
    assert re.search("model: error: .*'org/tiny'.*gated", said)


def data_sets(hub, folder):
    """C4 and WikiText-2 as they lie on the hub, with few documents that say where they come from."""
    c4, wikitext = folder / "c4", folder / "wikitext"
    (c4 / "en").mkdir(parents=True)
    for name in ("c4-train.00000-of-01024", "c4-train.00001-of-01024", "c4-validation.00000-of-00008"):
        lines = [json.dumps({"text": f"{name} {row}", "url": "https://"}) for row in range(3)]
        (c4 / "en" / f"{name}.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (wikitext / "wikitext-2-raw-v1").mkdir(parents=True)
    for split in ("train", "test"):
        table = pandas.DataFrame({"text": [f"wikitext {split}", "", "= Title ="]})
        table.to_parquet(wikitext / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet")
    listed = {split: f"wikitext-2-raw-v1/{split}-*" for split in ("train", "test")}
    configs = [{"config_name": "wikitext-2-raw-v1", "data_files": [{"split": s, "path": p} for s, p in listed.items()]}]
    (wikitext / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    hub.add("datasets/allenai/c4", c4, "main")
    hub.add("datasets/Salesforce/wikitext", wikitext, "main")


LOAD = """
import json, sys
from sparseswaps.base.errors import InputError
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.settings import TextSource
for settings in json.loads(sys.argv[1]):
    try:
        print(json.dumps(list(load(TextSource(**settings), "calibration"))))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def load_texts(*settings):
    """Return what `load` returns for each of the settings, or its error. A process of its own has the fake hub."""
    command = [sys.executable, "-c", LOAD, json.dumps(settings)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return list(map(json.loads, done.stdout.splitlines()))


def preset(kind, text):
    """Return the source of a preset text."""
    return TextSource.of(kind(text=text).model_dump()).model_dump()


def test_data_sets_of_the_literature_with_a_connection_and_from_the_cache(hub, tmp_path, monkeypatch):
    data_sets(hub, tmp_path)
    texts = [preset(kind, text) for text in ("c4", "wikitext2") for kind in (Calibration, EvaluationText)]
    expected = [
        [f"c4-{part} {row}" for row in range(3)] for part in ("train.00000-of-01024", "validation.00000-of-00008")
    ]
    expected += [[f"wikitext {split}", "", "= Title ="] for split in ("train", "test")]
    assert load_texts(*texts) == expected
    assert not any("00001-of-01024" in request for request in hub.requests)  # no other file of C4 is fetched
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_texts(*texts) == expected


def test_data_sets_that_do_not_load_are_one_line(hub, tmp_path):
    data_sets(hub, tmp_path)
    wikitext, c4 = preset(EvaluationText, "wikitext2"), preset(EvaluationText, "c4")
    wrong = {"org/none": wikitext | {"text": "org/none"}, "tst": wikitext | {"split": "tst"}}
    wrong |= {"wikitext-2'": wikitext | {"subset": "wikitext-2"}, "body": wikitext | {"field": "body"}}
    wrong |= {"v9": wikitext | {"revision": "v9"}, "none.json.gz": c4 | {"files": "en/none.json.gz"}}
    for (name, settings), error in zip(wrong.items(), load_texts(*wrong.values()), strict=True):
        assert name in error
        assert PRESETS.get(settings["text"], settings["text"]) in error
        assert "\n" not in error
