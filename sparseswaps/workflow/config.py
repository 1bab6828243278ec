"""The configuration of a study: the type, bounds, default and description of each key, and the checks before a run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_serializer, model_validator
from pydantic.json_schema import GenerateJsonSchema

from sparseswaps.base.errors import InputError, prefix_errors
from sparseswaps.base.settings import Settings, input_error, unknown, wrong
from sparseswaps.calibration import documents
from sparseswaps.calibration.settings import BatchSize, Calibration, NonEmpty, Seed, TextSource
from sparseswaps.embedded.tasks import TASKS
from sparseswaps.evaluation.settings import EvaluationText
from sparseswaps.layer.pattern import PerRow, parse_pattern
from sparseswaps.layer.settings import Criterion, Reconstruction, RefinementSettings
from sparseswaps.model import hub
from sparseswaps.model.directory import (
    HUB_ID,
    check_files,
    context_length,
    depth,
    is_hub_id,
    locate,
    mask_files,
    read_config,
)
from sparseswaps.workflow import grid
from sparseswaps.workflow.plan.sizes import sizes_of


def _check_pattern(value: str | int | float) -> str | int | float:
    parse_pattern(value)
    return value


def _check_task(name: str) -> str:
    if name.startswith("embedded_") and name not in TASKS:
        raise ValueError(f"{name!r} is {unknown(name, TASKS)}")
    return name


def _distinct(label: Callable[[Any], object] = repr) -> AfterValidator:
    """Make a validator that refuses a list with two entries of the same label."""

    def check(entries: list[Any]) -> list[Any]:
        labels = list(map(label, entries))
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is there twice; leave one out")
        return entries

    return AfterValidator(check)


def _name_of(warmstart: "str | ImportedMasks") -> str:
    return warmstart if isinstance(warmstart, str) else warmstart.name


Name = Annotated[str, Field(max_length=80, pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]
PatternName = Annotated[str, Field(max_length=80, pattern="^[A-Za-z0-9][A-Za-z0-9._%-]*$")]
PatternValue = Annotated[str | int | float, AfterValidator(_check_pattern)]
Names = str | list[str] | None
Positive = Annotated[int, Field(ge=1)]


class _Brief(Settings):
    """Settings whose dump has no null."""

    @model_serializer(mode="wrap")
    def _leave_out_nulls(self, write: Any) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if value is not None}


class ModelSource(Settings):
    """Where a model is; configuration key `models`."""

    source: NonEmpty = Field(
        description="`embedded`, a local directory in the layout of Hugging Face, or the id of a model on the hub."
    )
    revision: NonEmpty | None = Field(
        None,
        description="Branch, tag or commit of a model on the hub. null: what the local cache has of `main`, or the "
        "current `main`.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Whether Python code beside the weights may run; models that transformers does not know need it.",
    )

    @property
    def folder(self) -> Path:
        """Return the model's directory; `revision` must be a commit hash or null. Raises InputError when it is gone."""
        return locate(self.source, self.revision)


class Owl(Settings):
    """How OWL divides a sparsity among the blocks (Yin et al., ICML 2024); key `owl` of a pattern."""

    threshold: float = Field(5.0, gt=1, description="A score of this many times the block's mean is an outlier.")
    spread: float = Field(
        0.08, ge=0, lt=0.5, description="Half of the largest difference in density between two blocks."
    )


class PatternEntry(_Brief):
    """A sparsity that is divided unequally among the layers; an entry of configuration key `patterns`."""

    name: PatternName = Field(description="The entry's name in tables and folders.")
    sparsity: PatternValue = Field(description="Of the layers that `layers` does not name, or of all layers together.")
    layers: Annotated[dict[str, PatternValue], Field(min_length=1)] | None = Field(
        None,
        description="Patterns by the name of a block (block03), of a layer in every block (mlp.down_proj), or of one "
        "layer (block03.mlp.down_proj). The last goes before the second, the second before the first.",
    )
    owl: Owl | None = Field(
        None, description="Blocks whose inputs have more outliers keep more (OWL); only for a sparsity per row."
    )

    @model_validator(mode="after")
    def _check_division(self) -> Self:
        """Check that the entry says in one way how its sparsity is divided."""
        if (self.layers is None) == (self.owl is None):
            raise ValueError("needs either `layers` or `owl`")
        if self.owl is not None and not isinstance(grid.budget(self).pattern, PerRow):
            raise wrong("owl", f"divides a sparsity per row, which {self.sparsity} is not")
        return self


class ImportedMasks(Settings):
    """Masks that another program or study made; an entry of configuration key `warmstarts`."""

    name: Name = Field(description="The warm start's name in tables and folders.")
    path: NonEmpty = Field(
        alias="from",
        description="A local directory in the layout of Hugging Face with the same layers as the model, whose pruned "
        "weights are zero (Wanda, SparseGPT, llm-compressor without compression), or a masks.safetensors that this "
        "workflow wrote for the same model. Only masks are taken from there: weights are the model's.",
    )

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        """Check that no criterion has the name."""
        if self.name in get_args(Criterion):
            raise wrong("name", f"{self.name!r} is a criterion's; take another name")
        return self


class Exclusion(_Brief):
    """Cells to leave out: the cells that match every key; an entry of configuration key `exclude`."""

    model: Names = Field(None, description="A model by name, or several.")
    calibration: Names = Field(None, description="A calibration by name, or several.")
    seed: int | list[int] | None = Field(None, description="A seed, or several.")
    pattern: str | int | float | list[str | int | float] | None = Field(
        None, description="A pattern as an entry of `patterns` writes it or names it, or several."
    )
    warmstart: Names = Field(None, description="A warm start by name, or several.")
    refinement: Names = Field(None, description="A refinement by name, or several.")
    reconstruction: Names = Field(None, description="A reconstruction by name or `none`, or several.")

    def choices(self) -> dict[str, list[Any]]:
        """Return the values of each coordinate that is named."""
        return {key: value if isinstance(value, list) else [value] for key, value in self if value is not None}

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        """Check that the entry does not leave out all cells."""
        if not self.choices():
            raise ValueError("names nothing; say which cells to leave out")
        return self


class LmEval(Settings):
    """Tasks of lm-eval; configuration key `evaluation.lm_eval`."""

    tasks: Annotated[list[Annotated[str, AfterValidator(_check_task)]], _distinct()] = Field(
        [], description="`embedded_cloze`, `embedded_choice`, or any task that lm-eval knows or finds in `include`."
    )
    include: str | None = Field(None, description="A folder with task definitions of your own.")
    limit: Positive | None = Field(None, description="Most items per task. null: all.")
    batch_size: Positive = Field(16, description="Sequences per forward pass of lm-eval.")


class Evaluation(Settings):
    """What every model and cell is evaluated on; configuration key `evaluation`."""

    perplexity: dict[Name, EvaluationText] = Field({}, description="The evaluation texts by name.")
    lm_eval: LmEval = Field(LmEval(), description="Tasks of lm-eval.")


class Figures(Settings):
    """How figures are drawn; configuration key `figures`."""

    width: float = Field(
        6.9,
        ge=5,
        description="Width of the widest figures in inches: 6.9 is the text width of a two-column paper, 5.5 of a "
        "one-column paper.",
    )
    dpi: Positive = Field(150, description="Pixels per inch of the PNG files, which the report shows.")


class Study(Settings):
    """A study: everything that its configuration file says, with all defaults."""

    name: Name = Field(description="The study's name, a folder below results/reports/.")
    models: Annotated[dict[Name, ModelSource], Field(min_length=1)] = Field(
        description="The models of the study by name. The name is a folder below results/."
    )
    calibrations: Annotated[dict[Name, Calibration], Field(min_length=1)] = Field(
        description="The calibration texts by name. Numbers of samples named as `c4-16` and `c4-64` make one family, "
        "with a curve."
    )
    seeds: Annotated[list[Seed], Field(min_length=1), _distinct()] = Field(
        [0], description="Seeds of the calibration draw. Each seed is a study of its own."
    )
    patterns: Annotated[
        list[PatternValue | PatternEntry], Field(min_length=1), _distinct(lambda entry: grid.budget(entry).slug)
    ] = Field(
        description='Sparsity per row ("60%" or 0.6), or N:M ("2:4", in quotes: N kept of every M). An entry with a '
        "name divides a sparsity unequally among the layers, by a table or by the outliers of their inputs."
    )
    warmstarts: Annotated[list[Criterion | ImportedMasks], Field(min_length=1), _distinct(_name_of)] = Field(
        description="The criteria that make the first masks, or masks that another program made, by a name of their "
        "own. Imported masks are taken as they are, but must be about as sparse as the pattern says."
    )
    refinements: Annotated[dict[Name, RefinementSettings], Field(min_length=1)] = Field(
        description="The refinements of masks by name. Budgets named as `swaps-5` beside `swaps` make one family, "
        "with a curve."
    )
    reconstructions: dict[Name, Reconstruction] = Field(
        {},
        description="Ways to fit the kept weights to a mask, by name. `none`, the weights as they are, is always "
        "there too.",
    )
    exclude: list[Exclusion] = Field([], description="Cells of the grid to leave out.")
    evaluation: Evaluation = Field(Evaluation(), description="What every model and cell is evaluated on.")
    published: NonEmpty | None = Field(
        None,
        description="A CSV file of published numbers to put beside the measured ones, with columns model, pattern, "
        "warmstart, refinement, measure, value, source.",
    )
    figures: Figures = Field(Figures(), description="How figures are drawn.")
    checkpoints: bool = Field(
        True,
        description="Whether a checkpoint is written for every cell. Without checkpoints, cells are evaluated as the "
        "base model with their mask file; only reconstructed cells have a checkpoint.",
    )
    batch_size: BatchSize
    activations: Literal["memory", "disk"] = Field(
        "memory",
        description="Where the hidden states of the calibration text are kept between two blocks: in host memory or "
        "on disk.",
    )
    threads: Positive = Field(
        1, description="CPU threads of a job. Floating-point sums depend on it, so that the machine does not decide it."
    )
    gpu: bool = Field(False, description="Whether capture, refine and evaluation jobs ask for one GPU each.")

    def dump(self) -> dict[str, Any]:
        """Return the study as plain JSON values, of which `Study(**...)` makes an equal one."""
        return self.model_dump(mode="json", by_alias=True)

    def texts(self) -> dict[str, TextSource]:
        """Return the calibration and evaluation texts by the path of their key."""
        texts = {f"calibrations.{name}": text for name, text in self.calibrations.items()}
        return texts | {f"evaluation.perplexity.{name}": text for name, text in self.evaluation.perplexity.items()}

    @model_validator(mode="after")
    def _check_idle(self) -> Self:
        """Check that only the unrefined warm start has the name `none`, which tables give it."""
        idle = [name for name, settings in self.refinements.items() if settings.max_swaps == 0]
        if len(idle) > 1:
            raise wrong("refinements", f"{', '.join(idle)} are all the warm start as it is; keep one")
        if "none" in self.refinements and idle != ["none"]:
            raise wrong("refinements.none", "means the warm start; give it max_swaps: 0 or another name")
        if "none" in self.reconstructions:
            raise wrong("reconstructions.none", "is always there; leave it out")
        return self

    @model_validator(mode="after")
    def _check_exclusions(self) -> Self:
        """Check that the study has what `exclude` names."""
        known = grid.coordinates(self)
        labels = [entry.label for entry in grid.patterns(self).values()]
        for index, entry in enumerate(self.exclude):
            for key, values in entry.choices().items():
                for value in values:
                    if (grid.pattern_slug(self, value) if key == "pattern" else value) not in known[key]:
                        message = unknown(value, labels if key == "pattern" else known[key])
                        raise wrong(f"exclude[{index}].{key}", f"{value!r} is {message}")
        return self

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        """Check that the settings of every cell go together."""
        budgets = grid.patterns(self)
        for cell in grid.cells(self):
            budget, refinement = budgets[cell.pattern], self.refinements[cell.refinement]
            calibration = self.calibrations[cell.calibration]
            if refinement.between_rows and not isinstance(budget.pattern, PerRow):
                raise wrong(
                    f"refinements.{cell.refinement}.between_rows",
                    f"pattern {budget.label} says what each block keeps; "
                    f"exclude {{refinement: {cell.refinement}, pattern: {budget.label!r}}}",
                )
            if refinement.stop == "held_out" and not calibration.held_out:
                raise wrong(
                    f"calibrations.{cell.calibration}.held_out", f"is 0, but refinement {cell.refinement} stops by it"
                )
            if budget.owl is not None and calibration.propagate == "pruned":
                raise wrong(
                    "patterns",
                    f"{budget.label} looks at all blocks before any is pruned, calibration {cell.calibration} prunes "
                    "one after the other; exclude one with the other, or take `layers`",
                )
        return self


def load_study(config: Mapping[str, Any]) -> Study:
    """Read a configuration, fill in its defaults, and check everything that can be checked before the first job.

    Looks at the files that the configuration names, and at the hub for the commit hash of a model's revision, which the
    study then holds.

    Raises:
        InputError: a key or value is wrong, a model or a text is missing, or a pattern does not divide a width of a
            model; one line with the key's path and what is allowed.
    """
    try:
        study = Study.model_validate(config)
    except ValidationError as error:
        raise input_error(error, config, "config key ") from None
    for key, text in study.texts().items():
        _check_text(f"config key {key}.text", text.text)
    for index, entry in enumerate(study.warmstarts):
        if not isinstance(entry, str):
            with prefix_errors(f"config key warmstarts[{index}].from"):
                if Path(entry.path).resolve().is_relative_to(Path("results").resolve()):
                    raise InputError(
                        f"{entry.path!r} is a result, which snakemake may replace; copy it to another folder"
                    )
                mask_files(entry.path)
    if study.published is not None and not Path(study.published).is_file():
        raise InputError(f"config key published: {study.published!r} is not a file")
    include = study.evaluation.lm_eval.include
    if include is not None and not Path(include).is_dir():
        raise InputError(f"config key evaluation.lm_eval.include: {include!r} is not a folder")
    return study.model_copy(update={"models": {name: _resolve(study, name) for name in study.models}})


def _check_text(key: str, text: str) -> None:
    """Raise InputError when a text is neither known by its name nor a file that exists nor may be on the hub."""
    if text in ("embedded", *documents.PRESETS) or (documents.is_file(text) and Path(text).is_file()):
        return
    if documents.is_file(text) or not HUB_ID.fullmatch(text) or Path(text).exists():
        presets = ", ".join(documents.PRESETS)
        raise InputError(
            f"{key}: {text!r} is neither `embedded`, {presets}, the id of a data set on the hub, nor a "
            f"{', '.join(documents.FILES)} file that exists"
        )


def _resolve(study: Study, name: str) -> ModelSource:
    """Check that a model exists and suits the study, and return its entry with the commit hash of its revision."""
    model = study.models[name]
    with prefix_errors(f"config key models.{name}.source"):
        if is_hub_id(model.source):
            model = model.model_copy(update={"revision": hub.resolve(model.source, model.revision)})
        elif model.revision is not None:
            raise InputError(f"{model.source!r} is no hub id, so it has no revision; leave that key out")
        config = read_config(model.folder)
        depth(config)
        if model.revision is None:
            check_files(model.folder)
        sizes = sizes_of(config)
    for key, text in study.texts().items():
        if (most := context_length(config)) is not None and text.seqlen > most:
            raise InputError(f"config key {key}.seqlen: {text.seqlen} tokens, but model {name} takes {most}")
    for d_in in sorted(sizes.widths):  # a layer of another width is checked when it is masked
        for index, entry in enumerate(study.patterns):
            with prefix_errors(f"config key patterns[{index}], model {name}"):
                grid.budget(entry).pattern.blocks(d_in)
    return model


class _Schema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # it would repeat the key


def json_schema() -> str:
    """Return the JSON schema of a configuration as YAML. Editors check and complete a configuration by the schema."""
    schema = Study.model_json_schema(schema_generator=_Schema)
    classes = schema.pop("$defs")
    return yaml.safe_dump(
        {"$schema": _Schema.schema_dialect, **schema, "$defs": classes}, sort_keys=False, width=120, allow_unicode=True
    )


if __name__ == "__main__":
    print(json_schema(), end="")
