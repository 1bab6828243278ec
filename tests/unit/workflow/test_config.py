import json
import re
import runpy
from collections import OrderedDict

import pytest
import yaml
from helpers import REPOSITORY, read_document, tiny_study

from sparseswaps.base.errors import InputError
from sparseswaps.layer.settings import RefinementSettings
from sparseswaps.workflow.config import Study, json_schema
from sparseswaps.workflow.study import load_study


@pytest.fixture
def config(tiny_model):
    return tiny_study(tiny_model)


def change(config, path, value):
    """Set one nested key of a configuration; list indices are digits."""
    *parents, last = path.split(".")
    for key in parents:
        config = config[int(key) if isinstance(config, list) else key]
    config[last] = value


def refused(config):
    with pytest.raises(InputError) as error:
        load_study(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_are_filled_in(config):
    study = load_study(config)
    assert study.seeds == [0]
    assert study.refinements["swaps"] == RefinementSettings()
    assert study.reconstructions == {}
    assert study.evaluation.perplexity["held_out"].join == "\n\n"
    assert study.calibrations["stdlib"].field == "text"
    del config["evaluation"]
    assert load_study(config).evaluation.lm_eval.tasks == []


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("modles", {}, "modles"),
        ("calibrations.stdlib.sample", 3, "calibrations.stdlib.sample"),
        ("calibrations.stdlib.samples", 0, "calibrations.stdlib.samples"),
        ("calibrations.stdlib.text", "no/such.txt", "calibrations.stdlib.text"),
        ("calibrations.stdlib.text", "/data", "calibrations.stdlib.text"),
        ("calibrations.stdlib.subset", "en", "calibrations.stdlib.subset"),
        ("calibrations.stdlib.sha256", "abc", "calibrations.stdlib.sha256"),
        ("calibrations.stdlib.seqlen", 65, "calibrations.stdlib.seqlen"),  # more than the model takes
        ("calibrations.stdlib", {"text": "org/name", "subset": "a", "files": "b.json"}, "calibrations.stdlib.files"),
        ("evaluation.perplexity.held_out.text", "x.txt", "evaluation.perplexity.held_out.text"),
        ("evaluation.perplexity.held_out.seqlen", 512, "evaluation.perplexity.held_out.seqlen"),
        ("evaluation.lm_eval.tasks", ["arc_easy", "arc_easy"], "evaluation.lm_eval.tasks"),
        ("evaluation.lm_eval.include", "/no/such", "evaluation.lm_eval.include"),
        ("models", {}, "models"),
        ("models", {1: {"source": "embedded"}}, "models[1]"),
        ("models.tiny.revision", "main", "models.tiny.source"),
        ("models.tiny.source", "/no/such", "models.tiny.source"),
        ("patterns", [], "patterns"),
        ("patterns", ["60%", 1.0], "patterns[1]"),
        ("patterns", ["-10%"], "patterns[0]"),
        ("patterns", ["60%", 0.6], "patterns"),  # the same
        ("patterns", ["60%", "2:3"], "patterns[1]"),  # does not divide a width of the model
        ("patterns", [{"name": "x", "sparsity": "60%"}], "patterns[0]"),
        ("patterns", [{"name": "x", "sparsity": "2:4", "owl": {}}], "patterns[0].owl"),
        ("patterns", [{"name": "x", "sparsity": "60%", "layers": {"a": "x"}}], "patterns[0].layers.a"),
        ("warmstarts", [3], "warmstarts[0]"),
        ("warmstarts", ["wanda", "wanda"], "warmstarts"),
        ("warmstarts", [{"name": "theirs"}], "warmstarts[0].from"),
        ("warmstarts", [{"name": "theirs", "from": "/no/such"}], "warmstarts[0].from"),
        ("warmstarts", [{"name": "theirs", "from": "results/a"}], "warmstarts[0].from"),
        ("warmstarts", [{"name": "wanda", "from": "x"}], "warmstarts[0].name"),
        ("warmstarts", [{"name": "a/b", "from": "x"}], "warmstarts[0].name"),
        ("seeds", [1.0], "seeds[0]"),
        ("seeds", [2**70], "seeds[0]"),
        ("seeds", [1, 1], "seeds"),
        ("refinements.swaps.max_swaps", -1, "refinements.swaps.max_swaps"),
        ("refinements.swaps", {"freeze": 1}, "refinements.swaps.freeze"),
        ("refinements.swaps", {"method": "dsnot", "freeze": 0.1}, "refinements.swaps.freeze"),
        ("refinements.swaps", {"between_rows": True}, "refinements.swaps.between_rows"),  # with 2:4
        ("refinements.swaps", {"method": "dsnot", "refit": True}, "refinements.swaps.refit"),
        ("refinements.swaps", {"refit": True, "stop": "held_out"}, "refinements.swaps.stop"),
        ("refinements.swaps", {"refit": True, "freeze": 0.1}, "refinements.swaps.freeze"),
        ("refinements.swaps", {"refit": True, "shrinkage": 0.1}, "refinements.swaps.shrinkage"),
        ("refinements.swaps", {"refit": True, "between_rows": True}, "refinements.swaps.between_rows"),
        ("refinements.none", {}, "refinements.none"),
        ("refinements.start", {"max_swaps": 0}, "refinements"),  # as well as none
        ("reconstructions", {"none": {}}, "reconstructions.none"),
        ("reconstructions", {"ls": {"damping": -1}}, "reconstructions.ls.damping"),
        ("reconstructions", {"x": {"method": "sparsegpt", "iterations": 2}}, "reconstructions.x.iterations"),
        ("reconstructions", {"x": {"method": "none"}}, "reconstructions.x.method"),
        ("reconstructions", {"x": {"block": {"levels": 0}}}, "reconstructions.x.block.levels"),
        ("reconstructions", {"x": {"block": {}}}, "reconstructions.x.block"),  # with dense inputs
        ("calibrations.stdlib.dense_target", 0.5, "calibrations.stdlib.dense_target"),  # with dense inputs
        ("calibrations.stdlib.order", "sequential", "calibrations.stdlib.order"),  # with dense inputs
        ("exclude", [{"reconstruction": "ls"}], "exclude[0].reconstruction"),
        ("exclude", [{"pattern": ["60%", "nothing"]}], "exclude[0].pattern"),
        ("exclude", [{"seed": 0}, {"seed": [0, 7]}], "exclude[1].seed"),
        ("exclude", [{"warmstarts": "ria"}], "exclude[0].warmstarts"),
        ("exclude", [{}], "exclude[0]"),
        ("published", "no/such.csv", "published"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(config, path, value, key):
    change(config, path, value)
    assert refused(config).replace(",", ":").startswith(f"config key {key}:")


@pytest.mark.parametrize(
    ("path", "value", "key", "choice"),
    [
        ("refinements.swaps", {"max_swap": 3}, "refinements.swaps.max_swap", "max_swaps"),
        ("warmstarts", ["wandb"], "warmstarts[0]", "wanda"),
        ("warmstarts", [{"name": "x", "from": "x", "form": "y"}], "warmstarts[0].form", "from"),
        ("refinements.swaps", {"method": "swap"}, "refinements.swaps.method", "swaps"),
        ("evaluation.lm_eval.tasks", ["arc_easy", "embedded_close"], "evaluation.lm_eval.tasks[1]", "embedded_cloze"),
        ("exclude", [{"refinement": "swap"}], "exclude[0].refinement", "swaps"),
        ("exclude", [{"pattern": "61%"}], "exclude[0].pattern", "60%"),
    ],
)
def test_a_misspelt_key_or_value_gets_a_suggestion(config, path, value, key, choice):
    change(config, path, value)
    line = refused(config)
    assert line.startswith(f"config key {key}:")
    assert f"did you mean {choice}?" in line


@pytest.mark.parametrize(
    ("changes", "calibration", "key"),
    [
        ({"refinements": {"early": {"stop": "held_out"}}}, {"held_out": 0}, "calibrations.stdlib.held_out"),
        ({"patterns": [{"name": "x", "sparsity": 0.6, "owl": {}}]}, {"propagate": "pruned"}, "patterns"),
        ({}, {"propagate": "pruned", "dense_target": 0.5}, "calibrations.stdlib.dense_target"),
        ({"evaluation": {"drift": 1}}, {"held_out": 0}, "evaluation.drift"),
        ({"evaluation": {"drift": 3}}, {"held_out": 2}, "evaluation.drift"),
    ],
)
def test_what_does_not_go_together_is_named_unless_it_is_excluded(config, changes, calibration, key):
    config |= changes
    config["calibrations"]["other"] = config["calibrations"]["stdlib"] | {"propagate": "pruned", "held_out": 3}
    config["calibrations"]["stdlib"] |= calibration
    assert refused(config).startswith(f"config key {key}: ")
    pattern = {"pattern": "x"} if "patterns" in changes else {}
    config["exclude"] = [{"calibration": ["stdlib", "other"] if pattern else "stdlib", **pattern}]
    load_study(config)


def test_imported_masks_do_not_tighten(config):
    theirs = {"name": "theirs", "from": config["models"]["tiny"]["source"]}
    config |= {"warmstarts": [theirs], "reconstructions": {"x": {"block": {"levels": 2}}}}
    config["calibrations"]["stdlib"] |= {"propagate": "pruned"}
    assert refused(config).startswith("config key reconstructions.x.block.levels: ")
    config["reconstructions"]["x"]["block"]["levels"] = 1
    load_study(config)


def test_presets_are_the_protocols_of_the_literature_where_nothing_else_is_said(config):
    short = {"seqlen": 64}
    config["calibrations"] = {name: {"text": name} | short for name in ("c4", "wikitext2")}
    other = {"text": "c4", "windows": None, "join": "\n", "files": "en/other.json.gz"}
    config["evaluation"]["perplexity"] = config["calibrations"] | {"mine": other | short}
    study = load_study(config)
    c4, wikitext = study.calibrations.values()
    assert (c4.field, c4.revision, c4.subset, c4.split, c4.samples) == ("text", None, None, "train", 128)
    assert c4.files == "en/c4-train.00000-of-01024.json.gz"
    assert (wikitext.subset, wikitext.split, wikitext.files) == ("wikitext-2-raw-v1", "train", None)
    assert (c4.join, wikitext.join) == (None, "\n\n")  # whole documents; lines of one long text
    c4, wikitext, mine = study.evaluation.perplexity.values()
    assert (c4.subset, c4.split, c4.documents, c4.join, c4.windows) == (None, "validation", 1100, " ", 256)
    assert c4.files == "en/c4-validation.00000-of-00008.json.gz"
    assert (wikitext.subset, wikitext.split, wikitext.files) == ("wikitext-2-raw-v1", "test", None)
    assert (wikitext.join, wikitext.documents, wikitext.windows) == ("\n\n", None, None)
    assert (mine.windows, mine.join, mine.documents, mine.files) == (None, "\n", 1100, "en/other.json.gz")


def test_a_study_is_made_again_from_its_dump(config, tiny_model):
    config |= {
        "calibrations": {"c4": {"text": "c4", "seqlen": 64}} | config["calibrations"],
        "patterns": ["60%", 0.7, "2:4", {"name": "owl", "sparsity": 0.5, "owl": {}}],
        "warmstarts": ["wanda", {"name": "theirs", "from": str(tiny_model)}],
        "reconstructions": {"admm": {"method": "admm"}},
        "exclude": [{"pattern": 0.7, "seed": 0}],
    }
    study = load_study(config)
    dump = json.loads(json.dumps(study.dump()))
    assert dump == study.dump()
    assert Study(**dump) == Study.model_validate(dump) == study
    assert dump["warmstarts"][1] == config["warmstarts"][1]
    assert dump["exclude"] == config["exclude"]
    assert load_study(OrderedDict(dump)) == study  # Snakemake hands over classes of its own
    with_revision = study.models["tiny"].model_copy(update={"revision": "0" * 40})
    study = study.model_copy(update={"models": {"tiny": with_revision}})
    assert Study(**study.dump()) == study


BLOCKS = '{"num_hidden_layers": %s}'


@pytest.mark.parametrize("text", ["[]", "{}", "{", BLOCKS % "null", BLOCKS % '"2"', BLOCKS % 2])
def test_a_broken_model_configuration_and_missing_weights_are_named(config, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    config["models"]["tiny"]["source"] = str(tmp_path)
    file = r"model\.safetensors" if text == BLOCKS % 2 else r"config\.json"
    assert re.match(rf"config key models\.tiny\.source: .*{file}", refused(config))


def test_the_schema_of_the_repository_is_the_studys_and_describes_every_key():
    stored = read_document("schemas/config.schema.yaml")
    assert stored == json_schema(), "the schema is stale: run `make docs`, commit it"
    schema = yaml.safe_load(json_schema())
    keys = [(name, key) for name, part in schema["$defs"].items() for key in part["properties"].items()]
    keys += [("Study", key) for key in schema["properties"].items()]
    assert len(keys) > 60
    assert [(name, key) for name, (key, about) in keys if not about.get("description")] == []


def test_the_page_of_the_configuration_has_every_key():
    page = runpy.run_path(str(REPOSITORY / ".ci" / "configuration.py"))["write_page"]()
    assert read_document("docs/configuration.md") == page, "the page is stale: run `make docs`, commit it"
    schema = yaml.safe_load(json_schema())
    for table in (schema, *schema["$defs"].values()):
        assert all(f"| `{key}` | " in page for key in table["properties"])


NAMES = ["../x", "a/b", "..", ".hidden", "", "x" * 81, "x\n", "x\0", "-x", "x y"]
TEXTS = ["calibrations", "evaluation.perplexity"]
PLACES = [("models", name) for name in NAMES]
PLACES += [(table, "../x") for table in ("refinements", "reconstructions", *TEXTS)]


@pytest.mark.parametrize(("table", "name"), PLACES)
def test_a_name_that_becomes_a_folder_stays_in_its_place(config, table, name):
    entry = {"source": "embedded"} if table == "models" else {"text": "embedded"} if table in TEXTS else {}
    change(config, table, {name: entry})
    line = refused(config)
    assert line.startswith(f"config key {table}")
    assert repr(name)[:70] in line
