from typing import get_args

import pytest
import yaml
from helpers import tiny_study

from sparseswaps.base.errors import InputError
from sparseswaps.layer.reconstruction import Reconstruction
from sparseswaps.layer.refinement import RefinementSettings
from sparseswaps.layer.settings import Criterion
from sparseswaps.workflow import config as study


@pytest.fixture
def config(tiny_model):
    return tiny_study(tiny_model)


def changed(config, path, value):
    """A copy of a configuration with one nested key set; list indices are digits."""
    copy = yaml.safe_load(yaml.safe_dump(config))
    *parents, last = path.split(".")
    place = copy
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return copy


def test_defaults_are_filled_in(config):
    checked = study.check(config)
    assert checked["seeds"] == [0]
    swaps = {"method": "swaps", "max_swaps": None, "stop": "optimum"}
    assert checked["refinements"]["swaps"] == swaps | {"freeze": 0, "shrinkage": 0, "between_rows": False}
    assert checked["reconstructions"] == {}
    assert checked["evaluation"]["perplexity"]["held_out"]["join"] == "\n\n"
    assert checked["calibrations"]["stdlib"]["field"] == "text"


def test_no_evaluation_is_a_choice(config):
    del config["evaluation"]
    assert study.check(config)["evaluation"]["lm_eval"]["tasks"] == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("modles", {}, "config key modles: unknown; allowed here: activations, batch_size, calibrations"),
        ("calibrations.stdlib.sample", 3, "config key calibrations.stdlib.sample: unknown; allowed here: field"),
        ("calibrations.stdlib.samples", 0, "config key calibrations.stdlib.samples: 0 is less than the minimum of 1"),
        (
            "calibrations.stdlib.samples",
            "all",
            "config key calibrations.stdlib.samples: 'all' is not of type",
        ),
        ("calibrations.stdlib.text", "no/such.txt", "config key calibrations.stdlib.text: 'no/such.txt' is neither"),
        ("evaluation.perplexity.held_out.text", "x.txt", "config key evaluation.perplexity.held_out.text: 'x.txt'"),
        (
            "calibrations.stdlib.text",
            "/data",
            "config key calibrations.stdlib.text: '/data' is neither `embedded`",
        ),
        (
            "calibrations.stdlib.subset",
            "en",
            "config key calibrations.stdlib.subset: is for data sets of the",
        ),
        ("calibrations.stdlib.sha256", "abc", "config key calibrations.stdlib.sha256: 'abc' does not match"),
        ("models.tiny.revision", "main", "config key models.tiny.source: "),
        ("models.tiny.source", "/no/such", "config key models.tiny.source: '/no/such' is not a model directory"),
        ("patterns", ["60%", 1.0], "config key patterns: pattern '1.0': the sparsity 1 is outside [0, 1)"),
        ("patterns", ["-10%"], "config key patterns: pattern '-10%': the sparsity -0.1 is outside [0, 1)"),
        ("patterns", ["60%", 0.6], "config key patterns: one is there twice: 60%, 0.6"),
        ("patterns", ["2:3"], "config key patterns, model tiny: pattern 2:3 does not divide d_in = 32"),
        ("patterns", [], "config key patterns: [] should be non-empty"),
        ("warmstarts", ["wandb"], "config key warmstarts.0: 'wandb' is not one of magnitude, wanda, ria, greedy"),
        ("warmstarts", [3], "config key warmstarts.0: 3 is not of type 'string', 'object'"),
        ("warmstarts", [{"name": "theirs"}], "config key warmstarts.0.from: missing"),
        ("warmstarts", [{"name": "a/b", "from": "x"}], "config key warmstarts.0.name: 'a/b' does not match"),
        (
            "warmstarts",
            [{"name": "x", "from": "x", "form": "y"}],
            "config key warmstarts.0.form: unknown; allowed here: from, name",
        ),
        ("refinements.swaps.max_swaps", -1, "config key refinements.swaps.max_swaps: -1 is less than the minimum of 0"),
        ("calibrations.stdlib.samples", 8.0, "config key calibrations.stdlib.samples: 8.0 is not of type 'integer'"),
        ("calibrations.stdlib.seqlen", 65, "config key calibrations.stdlib.seqlen: 65 tokens, but model tiny takes 64"),
        ("evaluation.perplexity.held_out.seqlen", 512, "config key evaluation.perplexity.held_out.seqlen: 512 tokens"),
        (
            "evaluation.lm_eval.tasks",
            ["embedded_close"],
            "config key evaluation.lm_eval.tasks: no task 'emb",
        ),
        ("evaluation.lm_eval.include", "/no/such", "config key evaluation.lm_eval.include: '/no/such' is no directory"),
        ("refinements.swaps", {"freeze": 1}, "config key refinements.swaps.freeze: 1 is greater than or equal to"),
        (
            "refinements.swaps",
            {"method": "dsnot", "freeze": 0.1},
            "config key refinements.swaps: method dsnot has no oth",
        ),
        (
            "refinements.swaps",
            {"between_rows": True},
            "config key refinements.swaps.between_rows: pattern 2:4 says what",
        ),
        ("reconstructions", {"none": {}}, "config key reconstructions.none: is always there"),
        ("reconstructions", {"ls": {"damping": -1}}, "config key reconstructions.ls.damping: -1 is less than"),
        (
            "reconstructions",
            {"x": {"method": "sparsegpt", "iterations": 2}},
            "config key reconstructions.x.iterations: 1",
        ),
        ("exclude", [{"reconstruction": "ls"}], "config key exclude.0.reconstruction: 'ls' is not one of none"),
        ("published", "no/such.csv", "config key published: 'no/such.csv' is no file"),
        ("patterns", [{"name": "x", "sparsity": "60%"}], "config key patterns.0: "),
        ("patterns", [{"name": "x", "sparsity": "2:4", "owl": {}}], "config key patterns: x: owl divides a sparsity"),
        ("patterns", [{"name": "x", "sparsity": "60%", "layers": {"a": "x"}}], "config key patterns: x, layers.a: "),
        ("seeds", [1.0], "config key seeds.0: 1.0 is not of type 'integer'"),
        ("seeds", [2**70], "config key seeds.0: 1180591620717411303424 is greater than the maximum"),
        ("models", {}, "config key models: {} should be non-empty"),
        ("models", {1: {"source": "embedded"}}, "config key models: 1 is not of type 'string'"),
        ("refinements.none", {}, "config key refinements.none: means the warm start"),
        ("refinements.start", {"max_swaps": 0}, "config key refinements: none, start are all the warm start"),
        ("exclude", [{"pattern": "70%"}], "config key exclude.0.pattern: '70%' is not one of 60%, 2:4"),
        ("exclude", [{"warmstarts": "ria"}], "config key exclude.0.warmstarts: unknown; allowed here: calibration"),
        ("exclude", [{"seed": [0, 7]}], "config key exclude.0.seed: 7 is not one of 0"),
    ],
)
def test_mistakes_are_named_in_one_line(config, path, value, message):
    with pytest.raises(InputError) as error:
        study.check(changed(config, path, value))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_presets_are_the_protocols_of_the_literature_where_nothing_else_is_said(config):
    config["calibrations"] = {"c4": {"text": "c4", "seqlen": 64}, "wikitext": {"text": "wikitext2", "seqlen": 64}}
    config["evaluation"]["perplexity"] = {
        "c4": {"text": "c4", "seqlen": 64},
        "wikitext": {"text": "wikitext2", "seqlen": 64},
        "mine": {
            "text": "c4",
            "seqlen": 64,
            "windows": None,
            "join": "\n",
            "files": "en/other.json.gz",
        },
    }
    checked = study.check(config)
    c4, wikitext = checked["calibrations"].values()
    whole = {"field": "text", "revision": None}
    assert c4.items() >= (whole | {"subset": None, "split": "train", "samples": 128}).items()
    assert c4["files"] == "en/c4-train.00000-of-01024.json.gz"
    assert wikitext.items() >= (whole | {"subset": "wikitext-2-raw-v1", "split": "train", "files": None}).items()
    assert (c4["join"], wikitext["join"]) == (None, "\n\n")  # whole documents; lines of one long text
    c4, wikitext, mine = checked["evaluation"]["perplexity"].values()
    assert c4.items() >= (whole | {"subset": None, "split": "validation", "documents": 1100, "join": " "}).items()
    assert (c4["files"], c4["windows"]) == ("en/c4-validation.00000-of-00008.json.gz", 256)
    assert wikitext.items() >= (whole | {"subset": "wikitext-2-raw-v1", "split": "test", "files": None}).items()
    assert (wikitext["join"], wikitext["documents"], wikitext["windows"]) == ("\n\n", None, None)
    assert (mine["windows"], mine["join"], mine["documents"]) == (None, "\n", 1100)
    assert mine["files"] == "en/other.json.gz"


def test_a_data_set_takes_files_or_a_subset(config):
    config["calibrations"]["stdlib"] = {"text": "org/name", "subset": "a", "files": "b.json", "seqlen": 32}
    with pytest.raises(InputError, match=r"calibrations\.stdlib\.files: takes the place of `subset`; leave one"):
        study.check(config)


def test_a_missing_key_is_named(config):
    del config["patterns"]
    with pytest.raises(InputError, match="config key patterns: missing"):
        study.check(config)


def test_the_grid_and_what_it_leaves_out(config):
    config |= {"seeds": [0, 1], "warmstarts": ["wanda", "ria"]}
    config["exclude"] = [{"pattern": 0.6, "warmstart": "ria"}, {"seed": 1, "refinement": ["swaps"]}]
    cells = list(study.cells(study.check(config)))
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 2 - 4 - 4 + 1
    assert study.Cell("tiny", "stdlib", 1, "2of4", "ria", "none") in cells
    assert study.Cell("tiny", "stdlib", 0, "60pct", "ria", "none") not in cells
    assert study.Cell("tiny", "stdlib", 1, "2of4", "ria", "swaps") not in cells


def test_reconstructions_are_a_coordinate_that_folders_name_after_the_refinement(config):
    config |= {"reconstructions": {"ls": {}, "admm": {"method": "admm"}}, "warmstarts": ["wanda", "sparsegpt"]}
    config["exclude"] = [{"reconstruction": "none", "warmstart": "sparsegpt"}, {"reconstruction": "admm"}]
    checked = study.check(config)
    assert checked["reconstructions"]["ls"] == {"method": "least_squares", "damping": 0.01, "iterations": 50}
    assert Reconstruction.of(checked["reconstructions"]["ls"]) == Reconstruction()
    assert RefinementSettings.of(checked["refinements"]["swaps"]) == RefinementSettings()
    assert checked["reconstructions"]["admm"] == {"method": "admm", "damping": 0.1, "iterations": 20}
    cells = list(study.cells(checked))
    assert len(cells) == 2 * 2 * 2 + 2 * 2
    assert {cell.method for cell in cells if cell.warmstart == "sparsegpt"} == {"none+ls", "swaps+ls"}
    assert cells[0].folder == "tiny/stdlib/seed0/60pct/wanda/none"
    assert cells[1].folder == "tiny/stdlib/seed0/60pct/wanda/none+ls"


def test_named_patterns_are_taken_by_their_name(config):
    owl = {"name": "60%-owl", "sparsity": "60%", "owl": {}}
    config |= {"patterns": ["60%", owl], "exclude": [{"pattern": "60%-owl", "refinement": "none"}]}
    checked = study.check(config)
    assert {cell.pattern for cell in study.cells(checked)} == {"60pct", "60pct-owl"}
    assert len(list(study.cells(checked))) == 3
    assert study.patterns(checked)["60pct-owl"].owl == {"threshold": 5, "spread": 0.08}
    config["calibrations"]["stdlib"]["propagate"] = "pruned"
    with pytest.raises(InputError, match="60%-owl looks at all blocks before any is pruned"):
        study.check(config)


def test_stopping_by_held_out_text_needs_some(config):
    config["refinements"]["early"] = {"stop": "held_out"}
    config["calibrations"]["stdlib"]["held_out"] = 0
    with pytest.raises(InputError, match=r"calibrations\.stdlib\.held_out: is 0, but refinement early stops by it"):
        study.check(config)


def test_rows_differ_where_the_method_lets_them(config):
    config["refinements"]["matrix"] = {"between_rows": True}
    config |= {"patterns": ["60%"], "warmstarts": ["wanda", "sparsegpt"]}
    checked = study.check(config)
    assert study.counted(checked, "wanda", "swaps") == "rows"
    assert study.counted(checked, "wanda", "matrix") == "matrix"
    assert study.counted(checked, "sparsegpt") == "matrix"


def test_blocks_are_named_by_their_number(config):
    assert study.blocks(study.check(config)) == {"tiny": ["block00", "block01"]}


def test_snakemakes_own_containers_are_taken(config):
    from collections import OrderedDict

    assert study.check(OrderedDict(config)) == study.check(config)


def test_every_criterion_is_a_warm_start():
    from sparseswaps.layer.criteria import WARMSTARTS

    assert get_args(Criterion) == tuple(WARMSTARTS)


def test_a_model_without_safetensors_is_named(config, tmp_path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    config["models"]["tiny"]["source"] = str(tmp_path)
    with pytest.raises(InputError, match=r"models\.tiny\.source: .* holds no model\.safetensors"):
        study.check(config)


@pytest.mark.parametrize("text", ["[]", "{}", '{"num_hidden_layers": null}', '{"num_hidden_layers": "2"}', "{"])
def test_what_is_no_model_configuration_is_named(config, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    config["models"]["tiny"]["source"] = str(tmp_path)
    with pytest.raises(InputError, match=r"config key models\.tiny\.source: .*config\.json"):
        study.check(config)
