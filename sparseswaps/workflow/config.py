"""The configuration of a study: type, bounds, default and description of each key, and checks that need no file."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, Field, model_serializer, model_validator
from pydantic.json_schema import GenerateJsonSchema

from sparseswaps.base.settings import Settings, unknown, wrong
from sparseswaps.calibration.settings import BatchSize, Calibration, NonEmpty, Seed, TextSource
from sparseswaps.embedded import TASKS
from sparseswaps.evaluation.settings import EvaluationText
from sparseswaps.layer.criteria import Criterion
from sparseswaps.layer.pattern import PerRow, parse_pattern, slug_of
from sparseswaps.layer.settings import Reconstruction, RefinementSettings
from sparseswaps.model.directory import RunDtype, locate


def _check_pattern(value: str | int | float) -> str | int | float:
    parse_pattern(value)
    return value


def _check_task(name: str) -> str:
    if name.startswith("embedded_") and name not in TASKS:
        raise ValueError(f"{name!r} is {unknown(name, TASKS)}")
    return name


def _label(entry: Any) -> Any:
    """Return the name of a list's entry, or the entry itself if it has no name."""
    return getattr(entry, "name", entry)


def _slug_of(entry: "str | int | float | PatternEntry") -> str:
    return slug_of(entry.name if isinstance(entry, PatternEntry) else parse_pattern(entry).label)


def _distinct(label: Callable[[Any], Any] = _label) -> AfterValidator:
    """Make a validator that refuses a list with two entries of the same label."""

    def check(entries: list[Any]) -> list[Any]:
        labels = list(map(label, entries))
        for name in labels:
            if labels.count(name) > 1:
                raise ValueError(f"{name} is there twice; leave one out")
        return entries

    return AfterValidator(check)


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

    source: NonEmpty = Field(description="`embedded`, a local Hugging Face directory, or the id of a model on the hub.")
    revision: NonEmpty | None = Field(
        default=None,
        description="Branch, tag or commit of a model on the hub. null: the cached `main`, else the current one.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether code beside the weights may run; some models need it."
    )

    @property
    def folder(self) -> Path:
        """Return the model's directory; `revision` must be a commit hash or null. Raises InputError when it is gone."""
        return locate(self.source, self.revision)


class Owl(Settings):
    """How OWL divides a sparsity among the blocks (Yin et al., ICML 2024); key `owl` of a pattern."""

    threshold: float = Field(
        default=5.0, gt=1, description="A score of this many times the block's mean is an outlier."
    )
    spread: float = Field(
        default=0.08, ge=0, lt=0.5, description="Half the largest difference in density between two blocks."
    )


class PatternEntry(_Brief):
    """A sparsity that is divided unequally among the layers; an entry of configuration key `patterns`."""

    name: PatternName = Field(description="The entry's name in tables and folders.")
    sparsity: PatternValue = Field(description="Of the layers that `layers` does not name, or of all layers together.")
    layers: Annotated[dict[str, PatternValue], Field(min_length=1)] | None = Field(
        default=None,
        description="Patterns by the name of a block (block03), of a layer in every block (mlp.down_proj), or of one "
        "layer (block03.mlp.down_proj). The last goes before the second, the second before the first.",
    )
    owl: Owl | None = Field(
        default=None, description="Lets blocks with more outliers keep more (OWL); for a sparsity per row."
    )

    @model_validator(mode="after")
    def _check_division(self) -> Self:
        if (self.layers is None) == (self.owl is None):
            raise ValueError("needs either `layers` or `owl`")
        if self.owl is not None and not isinstance(parse_pattern(self.sparsity), PerRow):
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
        if self.name in get_args(Criterion):
            raise wrong("name", f"{self.name!r} is a criterion's; take another name")
        return self


class Exclusion(_Brief):
    """Cells to leave out: the cells that match every key; an entry of configuration key `exclude`."""

    model: Names = Field(default=None, description="A model by name, or several.")
    calibration: Names = Field(default=None, description="A calibration by name, or several.")
    seed: int | list[int] | None = Field(default=None, description="A seed, or several.")
    pattern: str | int | float | list[str | int | float] | None = Field(
        default=None, description="A pattern as an entry of `patterns` writes it or names it, or several."
    )
    warmstart: Names = Field(default=None, description="A warm start by name, or several.")
    refinement: Names = Field(default=None, description="A refinement by name, or several.")
    reconstruction: Names = Field(default=None, description="A reconstruction by name or `none`, or several.")

    def choices(self) -> dict[str, list[Any]]:
        """Return the values of each coordinate that is named."""
        return {key: value if isinstance(value, list) else [value] for key, value in self if value is not None}

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.choices():
            raise ValueError("names nothing; say which cells to leave out")
        return self


class LmEval(Settings):
    """Tasks of lm-eval; configuration key `evaluation.lm_eval`."""

    tasks: Annotated[list[Annotated[str, AfterValidator(_check_task)]], _distinct()] = Field(
        default=[],
        description="`embedded_cloze`, `embedded_choice`, or any task that lm-eval knows or finds in `include`.",
    )
    include: str | None = Field(default=None, description="A folder with task definitions of your own.")
    limit: Positive | None = Field(default=None, description="Most items per task. null: all.")
    batch_size: Positive = Field(default=16, description="Sequences per forward pass of lm-eval.")


class Evaluation(Settings):
    """The texts and tasks that every model and cell is evaluated on; configuration key `evaluation`."""

    perplexity: dict[Name, EvaluationText] = Field(default={}, description="The evaluation texts by name.")
    lm_eval: LmEval = Field(default=LmEval(), description="Tasks of lm-eval.")
    drift: int = Field(
        default=0,
        ge=0,
        description="Held-out calibration sequences on which the error of every block's output is measured. 0: none.",
    )


class Figures(Settings):
    """How figures are drawn; configuration key `figures`."""

    width: float = Field(
        default=6.9, ge=5, description="Inches of the widest figures: 6.9 for two columns, 5.5 for one."
    )
    dpi: Positive = Field(default=150, description="Pixels per inch of the PNG files, which the report shows.")


class Study(Settings):
    """A study: everything that its configuration file says, with all defaults."""

    name: Name = Field(description="The study's name, a folder below results/reports/.")
    models: dict[Name, ModelSource] = Field(
        min_length=1, description="Models by name. The name is a folder in results/."
    )
    calibrations: dict[Name, Calibration] = Field(
        min_length=1,
        description="Texts by name. Texts named `c4-16` and `c4-64` for their samples make one family, with a curve.",
    )
    seeds: Annotated[list[Seed], Field(min_length=1), _distinct()] = Field(
        default=[0], description="Seeds of the calibration draw. Each seed is a study of its own."
    )
    patterns: Annotated[list[PatternValue | PatternEntry], Field(min_length=1), _distinct(_slug_of)] = Field(
        description='Sparsity per row ("60%" or 0.6), or N:M ("2:4", in quotes: N kept of every M). An entry with a '
        "name divides a sparsity unequally among the layers, by a table or by the outliers of their inputs."
    )
    warmstarts: Annotated[list[Criterion | ImportedMasks], Field(min_length=1), _distinct()] = Field(
        description="The criteria that make the first masks, or masks that another program made, by a name of their "
        "own. Imported masks are taken as they are, but must be about as sparse as the pattern says."
    )
    refinements: dict[Name, RefinementSettings] = Field(
        min_length=1,
        description="Refinements by name. Refinements named `swaps-5` and `swaps` make one family, with a curve.",
    )
    reconstructions: dict[Name, Reconstruction] = Field(
        default={},
        description="Ways to fit the kept weights to a mask, by name. `none`, no new weights, is always there too.",
    )
    exclude: list[Exclusion] = Field(default=[], description="Cells of the grid to leave out.")
    evaluation: Evaluation = Field(default=Evaluation(), description="What every model and cell is evaluated on.")
    published: NonEmpty | None = Field(
        default=None,
        description="A CSV file of published numbers to put beside the measured ones, with columns model, pattern, "
        "warmstart, refinement, measure, value, source.",
    )
    figures: Figures = Field(default=Figures(), description="How figures are drawn.")
    checkpoints: bool = Field(
        default=True,
        description="Whether a checkpoint is written for every cell. Without checkpoints, cells are evaluated as the "
        "base model with their mask file; only reconstructed cells have a checkpoint.",
    )
    batch_size: BatchSize
    activations: Literal["memory", "disk"] = Field(
        default="memory",
        description="Where hidden states of the text are kept between two blocks: in host memory or on disk.",
    )
    threads: Positive = Field(
        default=1, description="CPU threads of a job: fixed, since floating-point sums depend on it."
    )
    dtype: Literal["auto", "float32", "checkpoint"] = Field(
        default="auto",
        description="What models run in: float32, or the dtype of their checkpoint. `auto` is float32 on the CPU, and "
        "the checkpoint's dtype on a GPU. bfloat16 is faster than float32 on a CPU with instructions for it (AVX-512 "
        "BF16, AMX), and several times slower on other CPUs.",
    )
    gpu: bool = Field(default=False, description="Whether capture, refine and evaluation jobs ask for one GPU each.")

    @property
    def run_dtype(self) -> RunDtype:
        if self.dtype == "auto":
            return "checkpoint" if self.gpu else "float32"
        return self.dtype

    def dump(self) -> dict[str, Any]:
        """Return the study as plain JSON values; `Study(**values)` is equal to it."""
        return self.model_dump(mode="json", by_alias=True)

    def texts(self) -> dict[str, TextSource]:
        """Return the calibration and evaluation texts by the path of their key."""
        texts = {f"calibrations.{name}": text for name, text in self.calibrations.items()}
        return texts | {f"evaluation.perplexity.{name}": text for name, text in self.evaluation.perplexity.items()}

    @model_validator(mode="after")
    def _check_idle(self) -> Self:
        idle = [name for name, settings in self.refinements.items() if settings.max_swaps == 0]
        if len(idle) > 1:
            raise wrong("refinements", f"{', '.join(idle)} are all the warm start as it is; keep one")
        if "none" in self.refinements and idle != ["none"]:
            raise wrong("refinements.none", "means the warm start; give it max_swaps: 0 or another name")
        if "none" in self.reconstructions:
            raise wrong("reconstructions.none", "is always there; leave it out")
        return self


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
