import inspect
import pkgutil
import re
from copy import deepcopy

import pandas
import pytest
import torch
from helpers import read_document
from transformers import AutoModelForCausalLM, LlamaConfig

import sparseswaps
from sparseswaps.base.errors import InputError
from sparseswaps.base.files import read_csv
from sparseswaps.calibration.capture import capture
from sparseswaps.calibration.documents import load
from sparseswaps.calibration.sampling import draw
from sparseswaps.calibration.settings import Calibration
from sparseswaps.layer.settings import RefinementSettings
from sparseswaps.model.loading import load_model, load_tokenizer
from sparseswaps.model.weights import WeightsInMemory
from sparseswaps.pruning import model as pruning
from sparseswaps.workflow.config import Study

SIZES = {"samples": 8, "held_out": 4, "seqlen": 32}
with torch.device("meta"):
    ON_META = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=8, hidden_size=8, num_attention_heads=1))


@pytest.fixture
def loaded(tiny_model):
    return load_model(str(tiny_model), "cpu"), load_tokenizer(str(tiny_model))


@pytest.mark.parametrize(("pattern", "slug"), [("60%", "60pct"), ("2:4", "2of4")])
def test_masks_and_losses_are_the_workflows(finished, loaded, tiny_model, pattern, slug):
    folder = finished[0].folder / "results" / "tiny" / "stdlib" / "seed0" / slug / "wanda" / "swaps"
    model, tokenizer = loaded
    result = sparseswaps.prune(model, tokenizer, pattern, **SIZES)
    by_workflow = load_model(str(tiny_model), "cpu")
    masks = sparseswaps.apply_masks(by_workflow, folder / "masks.safetensors")
    assert result.masks.keys() == masks.keys()
    assert all(torch.equal(result.masks[name], mask) for name, mask in masks.items())
    pruned = by_workflow.state_dict()
    assert all(torch.equal(tensor, pruned[name]) for name, tensor in model.state_dict().items())
    for name in ("losses", "curves"):
        table = pandas.concat([pandas.DataFrame(read_csv(folder / name / f"block0{block}.csv")) for block in range(2)])
        mine = pandas.DataFrame(getattr(result, name))
        assert list(mine) == list(table)
        for column in set(table) - {"seconds"}:
            assert list(mine[column]) == list(table[column]), column


def test_arguments_are_keys_of_the_configuration_with_its_defaults():
    fields = Calibration.model_fields | RefinementSettings.model_fields | Study.model_fields
    arguments = inspect.signature(sparseswaps.prune).parameters
    names = arguments.keys() & fields.keys()
    assert len(names) == 13
    assert {name: arguments[name].default for name in names} == {name: fields[name].default for name in names}
    assert [arguments["seed"].default] == fields["seeds"].default


def test_a_text_its_documents_and_its_token_ids_give_the_same_masks(loaded, tiny_model):
    _, tokenizer = loaded
    documents = load("embedded", "calibration")
    ids, _ = draw(documents, tokenizer, samples=8, held_out=0, seqlen=32, seed=3)
    sizes, masks = SIZES | {"held_out": 0, "seed": 3}, []
    for calibration, arguments in (("embedded", sizes), (documents, sizes), (ids, {})):
        model = load_model(str(tiny_model), "cpu")
        arguments = {"tokenizer": tokenizer if arguments else None, "max_swaps": 2} | arguments
        pruned = sparseswaps.prune(model, pattern="50%", calibration=calibration, **arguments)
        assert {row["held_out_after"] for row in pruned.losses} == {None}
        assert max(row["max_row_swaps"] for row in pruned.losses) == 2
        masks.append(pruned.masks)
    for other in masks[1:]:
        assert all(torch.equal(mask, other[name]) for name, mask in masks[0].items())


def test_a_text_of_the_literature_has_its_protocol(loaded, monkeypatch):
    def load(source, use):
        assert (source.text, source.subset, use) == ("wikitext2", "wikitext-2-raw-v1", "calibration")
        return ["a line of a long text"] * 100  # each too short for a sample

    monkeypatch.setattr(pruning, "load", load)
    pruned = sparseswaps.prune(*loaded, "50%", calibration="wikitext2", samples=4, held_out=2, seqlen=32, max_swaps=0)
    assert {row["tokens"] for row in pruned.losses} == {4 * 32}


def test_pruned_inputs_with_rows_that_differ_in_sparsity_and_new_weights_of_a_model_in_training(loaded):
    model, tokenizer = loaded
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = {"warmstart": "sparsegpt", "propagate": "pruned", "stop": "held_out", "between_rows": True}
    settings |= SIZES | {"reconstruction": sparseswaps.Reconstruction()}
    result = sparseswaps.prune(model.train(), tokenizer, 0.5, **settings)
    assert model.training
    assert all(row["loss_after"] < row["loss_before"] for row in result.losses)
    for name, parameter in model.named_parameters():
        if (mask := result.masks.get(name)) is None:
            assert torch.equal(parameter, before[name])
        else:
            assert mask.sum() == mask.numel() / 2
            assert not parameter[~mask].any()
            assert not torch.equal(parameter[mask], before[name][mask])


def test_swaps_with_refit_lower_the_error_of_the_new_weights_further(loaded):
    model, tokenizer = loaded
    settings = SIZES | {"reconstruction": sparseswaps.Reconstruction()}
    errors = {}
    for refit in (False, True):
        result = sparseswaps.prune(deepcopy(model), tokenizer, "2:4", refit=refit, **settings)
        assert all(row["rows_certified"] == row["rows"] for row in result.losses)
        errors[refit] = sum(row["loss_after"] for row in result.losses)
    assert errors[True] < errors[False]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"refit": True, "freeze": 0.5}, "freeze: "),
        ({"pattern": "60"}, "pattern"),
        ({"pattern": "2:3"}, r"block 0, self_attn\.q_proj: .*2:3 .*32"),
        ({"pattern": "2:4", "between_rows": True}, r"block 0, self_attn\.q_proj: .*2:4"),
        ({"warmstart": "wnada"}, "warmstart: .*did you mean wanda"),
        ({"propagate": "both"}, "propagate: .*dense, pruned"),
        ({"samples": 0}, "samples: "),
        ({"seed": -1}, "seed: "),
        ({"batch_size": 1.0}, "batch_size: "),
        ({"freeze": 1}, "freeze: "),
        ({"shrinkage": -0.5}, "shrinkage: "),
        ({"max_swaps": "5"}, "max_swaps: "),
        ({"reconstruction": True}, "reconstruction: "),
        ({"reconstruction": sparseswaps.Reconstruction(block={})}, "reconstruction.block: .*propagate"),
        ({"propagate": "pruned", "dense_target": 0.5}, "dense_target: .*reconstruction"),
        ({"dense_target": 0.5}, "dense_target: .*propagate"),
        ({"seqlen": 65}, "calibration: .*65 .*seqlen.* 64"),
        ({"calibration": ["too short"]}, "calibration: "),
        ({"calibration": "none.txt"}, r"calibration: .*none\.txt"),
        ({"calibration": [1, 2]}, "calibration: "),
        ({"calibration": torch.ones(2, 8)}, r"calibration: .*torch\.float32"),
        ({"calibration": torch.full((2, 8), -1)}, "calibration: -1"),
        ({"calibration": torch.full((2, 8), 2048)}, "calibration: .* 2048"),
        ({"calibration": torch.ones(2, 8).long(), "stop": "held_out"}, "stop: "),
        ({"tokenizer": None}, "calibration: .*tokenizer"),
        ({"model": torch.nn.Linear(2, 2)}, "model: .*Linear"),
        ({"model": ON_META}, r"model: model\.embed_tokens\.weight .*torch\.float32 on meta"),
    ],
)
def test_bad_input_is_one_line_and_prunes_nothing(loaded, changes, name):
    model, tokenizer = loaded
    arguments = {"model": model, "tokenizer": tokenizer, "pattern": "60%"} | SIZES | changes
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=f"^{name}") as error:
        sparseswaps.prune(**arguments)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_one_layer_from_its_activations_to_its_mask(loaded):
    (model, _), seen = loaded, []
    ids, layer = torch.arange(8 * 32).view(8, 32), model.model.layers[0].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in ids.split(3):
            model(input_ids=batch)
    hook.remove()
    captured = next(capture(WeightsInMemory(model), ids, ids[:0], batch_size=3))
    gram, pattern = sparseswaps.gram_matrix(iter(seen)), sparseswaps.parse_pattern("2:4")
    assert torch.equal(gram, captured.matrix["mlp.down_proj"])
    start = sparseswaps.warmstart(layer.weight, gram, pattern, "ria")
    result = sparseswaps.refine_mask(layer.weight, gram, start, pattern)
    assert isinstance(result, sparseswaps.Refinement)
    pruned = sparseswaps.prune(model, None, "2:4", "ria", calibration=ids, batch_size=3)
    assert torch.equal(result.mask, pruned.masks["model.layers.0.mlp.down_proj.weight"])


def test_public_names_are_there_and_none_is_a_modules():
    """A module that is imported takes its name in the package, so that a function could not have it as well."""
    modules = {module.name for module in pkgutil.iter_modules(sparseswaps.__path__)}
    assert {"layer", "pruning"} <= modules
    assert modules.isdisjoint(sparseswaps.__all__)
    assert set(sparseswaps.__all__) <= set(dir(sparseswaps))
    assert not hasattr(sparseswaps, "no_such_thing")

    from sparseswaps.layer.swaps.engine import refine_mask

    assert sparseswaps.refine_mask is refine_mask
    for name in sparseswaps.__all__:
        assert inspect.getdoc(getattr(sparseswaps, name)), name


def test_the_page_of_the_package_has_every_public_name():
    names = re.findall(r"^::: sparseswaps\.(\w+)$", read_document("docs/api.md"), re.MULTILINE)
    assert sorted(names) == sorted(sparseswaps.__all__)
