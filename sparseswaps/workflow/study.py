"""Reading a study: its configuration, checked against its grid, the files that it names, and the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparseswaps.base.errors import InputError, prefix_errors
from sparseswaps.base.settings import input_error, unknown
from sparseswaps.calibration.documents import PRESETS
from sparseswaps.calibration.settings import FILES, is_file
from sparseswaps.layer.pattern import PerRow
from sparseswaps.model import hub
from sparseswaps.model.directory import HUB_ID, check_files, context_length, depth, is_hub_id, mask_files, read_config
from sparseswaps.workflow.config import ModelSource, Study
from sparseswaps.workflow.grid import Grid, read_budget
from sparseswaps.workflow.plan.sizes import sizes_of


def load_study(config: Mapping[str, Any]) -> Study:
    """Read a configuration, fill in its defaults, and check everything that can be checked before the first job.

    Looks at the files that the configuration names, and at the hub for the commit hash of a model's revision, which the
    study then holds. Raises InputError in one line with the key's path and what is allowed.
    """
    try:
        study = Study.model_validate(config)
    except ValidationError as error:
        raise input_error(error, config, "config key ") from None
    grid = Grid(study)
    _check_exclusions(grid)
    _check_cells(grid)
    for key, text in study.texts().items():
        _check_text(f"config key {key}.text", text.text)
    for index, entry in enumerate(study.warmstarts):
        if not isinstance(entry, str):
            with prefix_errors(f"config key warmstarts[{index}].from"):
                if Path(entry.path).resolve().is_relative_to(Path("results").resolve()):
                    message = "is a result, which snakemake may replace; copy it to another folder"
                    raise InputError(f"{entry.path!r} {message}")
                mask_files(entry.path)
    if study.published is not None and not Path(study.published).is_file():
        raise InputError(f"config key published: {study.published!r} is not a file")
    include = study.evaluation.lm_eval.include
    if include is not None and not Path(include).is_dir():
        raise InputError(f"config key evaluation.lm_eval.include: {include!r} is not a folder")
    return study.model_copy(update={"models": {name: _resolve(study, name) for name in study.models}})


def _check_exclusions(grid: Grid) -> None:
    """Check that the grid has every value that `exclude` names."""
    for index, entry in enumerate(grid.study.exclude):
        for key, values in entry.choices().items():
            for value in values:
                if (grid.pattern_slug(value) if key == "pattern" else value) not in grid.coordinates[key]:
                    patterns = [budget.label for budget in grid.patterns.values()]
                    message = unknown(value, patterns if key == "pattern" else grid.coordinates[key])
                    raise InputError(f"config key exclude[{index}].{key}: {value!r} is {message}")


def _check_cells(grid: Grid) -> None:
    """Check that the settings of every cell go together."""
    for cell in grid.cells:
        entry, refinement = grid.patterns[cell.pattern], grid.study.refinements[cell.refinement]
        calibration = grid.study.calibrations[cell.calibration]
        if refinement.between_rows and not isinstance(entry.pattern, PerRow):
            raise InputError(
                f"config key refinements.{cell.refinement}.between_rows: pattern {entry.label} says what each block "
                f"keeps; exclude {{refinement: {cell.refinement}, pattern: {entry.label!r}}}"
            )
        if refinement.stop == "held_out" and not calibration.held_out:
            key = f"config key calibrations.{cell.calibration}.held_out"
            raise InputError(f"{key}: is 0, but refinement {cell.refinement} stops by it; set 1 or more")
        if calibration.held_out < (sequences := grid.study.evaluation.drift):
            raise InputError(
                f"config key evaluation.drift: {sequences} sequences, but calibrations.{cell.calibration}.held_out is "
                f"{calibration.held_out}; raise held_out, or lower evaluation.drift (0: off)"
            )
        reconstruction = grid.study.reconstructions.get(cell.reconstruction)
        if calibration.dense_target and reconstruction is None:
            raise InputError(
                f"config key calibrations.{cell.calibration}.dense_target: is for new weights, but some cells have "
                f"none; exclude {{reconstruction: none, calibration: {cell.calibration}}}"
            )
        if reconstruction is not None and (block := reconstruction.block) is not None:
            key = f"config key reconstructions.{cell.reconstruction}.block"
            if calibration.propagate != "pruned":
                raise InputError(
                    f"{key}: blocks are trained on pruned inputs, but calibration {cell.calibration} has dense inputs; "
                    f"give it propagate: pruned, or exclude {{reconstruction: {cell.reconstruction}, calibration: "
                    f"{cell.calibration}}}"
                )
            if block.levels > 1 and grid.imported[cell.warmstart] is not None:
                raise InputError(
                    f"{key}.levels: the imported masks {cell.warmstart} have their final sparsity from the start; "
                    f"set levels: 1, or exclude {{reconstruction: {cell.reconstruction}, warmstart: {cell.warmstart}}}"
                )
        if entry.owl is not None and calibration.propagate == "pruned":
            raise InputError(
                f"config key patterns: {entry.label} looks at all blocks before any is pruned, calibration "
                f"{cell.calibration} prunes one after the other; exclude one with the other, or take `layers`"
            )


def _check_text(key: str, text: str) -> None:
    """Raise InputError when a text is neither known by its name nor a file that exists nor may be on the hub."""
    if text in ("embedded", *PRESETS) or (is_file(text) and Path(text).is_file()):
        return
    if is_file(text) or not HUB_ID.fullmatch(text) or Path(text).exists():
        names, endings = ", ".join(["`embedded`", *PRESETS]), ", ".join(FILES)
        raise InputError(
            f"{key}: {text!r} is neither {names}, the id of a data set on the hub, nor a {endings} file that exists"
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
            raise InputError(f"config key {key}.seqlen: {text.seqlen} tokens, but model {name} takes {most}; lower it")
    for d_in in sorted(sizes.widths):  # a layer of another width is checked when it is masked
        for index, entry in enumerate(study.patterns):
            with prefix_errors(f"config key patterns[{index}], model {name}"):
                read_budget(entry).pattern.groups(d_in)
    return model
