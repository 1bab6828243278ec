"""Models and data sets by hub id: the real workflow against a small hub on this machine, with a cache of its own."""

import gzip
import json
import shutil
import subprocess
import sys

import pandas
import pytest
import yaml
from fake_hub import Hub
from helpers import REPOSITORY, Workflow, tiny_study
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sparseswaps.calibration.documents import SETTINGS
from sparseswaps.workflow.study import load_study


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that serves, to the processes that a test starts."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with Hub().serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def published(hub, model, folder, *revisions, name="org/tiny"):
    """A model on the hub, among files that nobody needs for pruning it; its commit hash."""
    shutil.copytree(model, folder)
    for other in ("pytorch_model.bin", "consolidated.safetensors", "model.onnx", "original/params.json"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"not wanted")
    (folder / "LICENSE").write_text("as you like\n")
    return hub.add(name, folder, *revisions)


def study_of(source, **settings):
    return tiny_study(None, models={"tiny": {"source": source, **settings}})


def line(done):
    """The one line of error of a run."""
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    (found,) = [line for line in done.stdout.splitlines() if "error" in line]
    return found


def test_a_model_by_its_tag_from_the_hub_to_the_checkpoint_and_again_offline(hub, tiny_model, tmp_path, monkeypatch):
    commit = published(hub, tiny_model, tmp_path / "first", "v1")
    published(hub, tiny_model, tmp_path / "second")
    tensors = load_file(tmp_path / "second" / "model.safetensors")
    tensors["model.embed_tokens.weight"].mul_(2)
    save_file(tensors, tmp_path / "second" / "model.safetensors", metadata={"format": "pt"})
    newer = hub.add("org/tiny", tmp_path / "second", "main")
    assert newer != commit
    text = {"text": "embedded", "samples": 8, "held_out": 4, "seqlen": 32}
    chained = {"calibrations": {"stdlib": text | {"propagate": "pruned"}}}  # fewest jobs
    workflow, config = Workflow(tmp_path / "work"), study_of("org/tiny", revision="v1") | chained
    workflow.folder.mkdir()
    folder = workflow.folder / "results/tiny/stdlib/seed0/2of4/wanda/none"
    workflow.run(config, "--cores", "2", "--", str((folder / "checkpoint").relative_to(workflow.folder)))
    described = json.loads((workflow.folder / "results/tiny/model.json").read_text())
    assert (described["source"], described["revision"]) == ("org/tiny", commit)
    with safe_open(folder / "masks.safetensors", framework="pt") as file:
        base = json.loads(file.metadata()["sparseswaps"])["more"]["base"]
    assert (base["source"], base["revision"]) == ("org/tiny", commit)
    assert json.loads((folder / "checkpoint" / "sparseswaps.json").read_text())["base"] == base
    assert (folder / "checkpoint" / "LICENSE").read_text() == "as you like\n"
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == {path.name for path in tiny_model.iterdir()} | {"LICENSE"}

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    target = "results/tiny/stdlib/seed0/2of4/wanda/none/checkpoint"
    assert workflow.planned(config, target) == {}
    (workflow.folder / "results/tiny/model.json").unlink()
    workflow.run(config, "--cores", "1", "--", "results/tiny/model.json")  # from the cache
    assert json.loads((workflow.folder / "results/tiny/model.json").read_text()) == described
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached = tmp_path / "hf" / "hub" / "models--org--tiny"
    shutil.rmtree(cached / "trees")  # other programs leave the cache without a list of the files
    (workflow.folder / "results/tiny/model.json").unlink()
    workflow.run(config, "--cores", "1", "--", "results/tiny/model.json")
    (cached / "snapshots" / commit / "model.safetensors").unlink()
    (workflow.folder / "results/tiny/model.json").unlink()
    done = workflow.run(config, "--cores", "1", "--", "results/tiny/model.json", check=False)
    assert (
        f"model: error: the cache has only a part of 'org/tiny' ({commit}): run once with a connection" in done.stdout
    )
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    workflow.run(config, "--cores", "1", "--", "results/tiny/model.json")  # what is missing is fetched again
    assert workflow.planned(study_of("org/tiny") | chained, "results/tiny/model.json") == {
        "model": 1
    }  # main is another commit
    assert workflow.planned(study_of("org/tiny", revision=commit) | chained, "results/tiny/model.json") == {}


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        (
            "org/none",
            None,
            "'org/none' is neither a directory here nor a model that the hub shows you: check the spell",
        ),
        ("org/tiny", "v2", "the hub's 'org/tiny' has no revision 'v2': give a branch, a tag or a commit hash of it"),
        (
            "org/gated",
            None,
            "'org/gated' is gated: ask for access at {url}/org/gated, then log in with `hf auth login`",
        ),
        ("org/pickled", None, "'org/pickled' holds no model.safetensors or model.safetensors.index.json, only pickled"),
        ("org--tiny", None, "'org--tiny' is neither a directory here nor a hub id: Cannot have -- or .. in repo_id"),
        ("embedded", "v2", "'embedded' is no hub id, so it has no revision; leave that key out"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub, tiny_model, tmp_path, source, revision, message):
    hub.add("org/tiny", tiny_model, "main")
    hub.add("org/gated", tiny_model, "main")
    hub.gated.add("org/gated")
    pickled = published(hub, tiny_model, tmp_path / "pickled", "main", name="org/pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    assert hub.revisions["org/pickled"]["main"] == pickled
    done = Workflow(tmp_path).run(study_of(source, revision=revision), "-n", check=False)
    assert line(done).startswith(f"error: config key models.tiny.source: {message.format(url=hub.url)}")


def test_a_hub_out_of_reach_is_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = line(Workflow(tmp_path).run(study_of("org/tiny"), "-n", check=False))
    assert found.startswith("error: config key models.tiny.source: 'org/tiny' is not in the cache")
    assert "ConnectError" in found
    assert found.endswith("run once with a connection, or name a directory")


def test_a_gated_model_that_was_cached_before_its_weights(hub, tiny_model, tmp_path):
    """Its configuration is public or was: the model stage says the same as the start would."""
    hub.add("org/tiny", tiny_model, "main")
    workflow, config = Workflow(tmp_path), study_of("org/tiny")
    assert workflow.planned(config, "results/tiny/model.json") == {"model": 1}
    hub.gated.add("org/tiny")
    done = workflow.run(config, "--cores", "1", "--", "results/tiny/model.json", check=False)
    assert "model: error: 'org/tiny' is gated" in done.stdout
    assert "Traceback" not in done.stdout


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
from sparseswaps.calibration.documents import load
from sparseswaps.base.errors import InputError
for settings in json.loads(sys.argv[1]):
    try:
        print(json.dumps(list(load(**settings))))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def loaded(*settings):
    """What `load` returns for each of the settings, or its error, in a process of its own."""
    command = [sys.executable, "-c", LOAD, json.dumps(settings)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return list(map(json.loads, done.stdout.splitlines()))


def preset(text, use):
    """What the schema makes of a preset, as far as `load` takes it."""
    config = tiny_study("embedded")
    place = config["calibrations"] if use == "calibration" else config["evaluation"]["perplexity"]
    place["preset"] = {"text": text, "seqlen": 256}
    study = load_study(config)
    texts = study.calibrations if use == "calibration" else study.evaluation.perplexity
    return {name: getattr(texts["preset"], name) for name in SETTINGS} | {"use": use}


def test_data_sets_of_the_literature_with_a_connection_and_from_the_cache(hub, tmp_path, monkeypatch):
    data_sets(hub, tmp_path)
    asked = [preset(text, use) for text in ("c4", "wikitext2") for use in ("calibration", "evaluation")]
    found = loaded(*asked)
    assert found[0] == [f"c4-train.00000-of-01024 {row}" for row in range(3)]
    assert found[1] == [f"c4-validation.00000-of-00008 {row}" for row in range(3)]
    assert found[2] == ["wikitext train", "", "= Title ="]
    assert found[3] == ["wikitext test", "", "= Title ="]
    assert not any("00001-of-01024" in request for request in hub.requests)  # no other file of C4 is looked at
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert loaded(*asked) == found


def test_data_sets_that_do_not_load_are_one_line(hub, tmp_path):
    data_sets(hub, tmp_path)
    wikitext = preset("wikitext2", "evaluation")
    errors = loaded(
        wikitext | {"text": "org/none"},
        wikitext | {"split": "tst"},
        wikitext | {"subset": "wikitext-2"},
        wikitext | {"field": "body"},
        wikitext | {"revision": "v9"},
        preset("c4", "evaluation") | {"files": "en/none.json.gz"},
    )
    for error, expected in zip(
        errors,
        [
            "the data set 'org/none' cannot be loaded (DatasetNotFoundError: Dataset 'org/none' doesn't exist",
            "the data set 'Salesforce/wikitext' cannot be loaded (ValueError: Unknown split \"tst\". Should be one of",
            "the data set 'Salesforce/wikitext' cannot be loaded (ValueError: BuilderConfig 'wikitext-2' not found.",
            "the data set 'Salesforce/wikitext' has no text in a column 'body'; it has text",
            "the data set 'Salesforce/wikitext' cannot be loaded (DatasetNotFoundError: Revision 'v9' doesn't exist",
            "the data set 'allenai/c4' cannot be loaded (RemoteEntryNotFoundError: 404 Client Error.",
        ],
        strict=True,
    ):
        assert error.startswith(expected)
        assert "\n" not in error


def test_a_data_set_out_of_reach_names_its_key(finished, tmp_path):
    workflow = finished[0].copy(tmp_path / "copy")
    text = {"text": "org/none", "samples": 8, "held_out": 4, "seqlen": 32}
    config = finished[1] | {"calibrations": {"stdlib": text}}
    target = "results/tiny/stdlib/seed0/samples.safetensors"
    done = workflow.run(config, "--cores", "1", "--", target, check=False)  # HF_HUB_OFFLINE is set
    found = next(line for line in done.stdout.splitlines() if line.startswith("samples: error"))
    assert found.startswith(
        "samples: error: config key calibrations.stdlib.text, org/none: the data set 'org/none' cannot"
    )
