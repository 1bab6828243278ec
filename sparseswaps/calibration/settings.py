"""The settings of texts, with their defaults. Importing this module does not import torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparseswaps.base.settings import Settings, wrong

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
NonEmpty = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
BatchSize = Annotated[int, Field(default=8, ge=1, description="Sequences per forward pass.")]
_C4 = {"files": "en/c4-train.00000-of-01024.json.gz"}
_WIKITEXT2 = {"subset": "wikitext-2-raw-v1", "join": "\n\n"}
FILES = (".txt", ".jsonl", ".jsonl.gz", ".json.gz", ".parquet")


def is_file(text: str) -> bool:
    """Return whether the name of a text means a local file, which need not exist."""
    return text.endswith(FILES)


class TextSource(Settings):
    """Where documents come from."""

    text: NonEmpty = Field(
        description="`embedded`; a .txt, .jsonl, .jsonl.gz, .json.gz or .parquet file; `c4` or `wikitext2`, the data "
        "sets of the literature with its protocols; or the id of a data set on the hub."
    )
    field: str = Field(default="text", description="The field of a row, or the column, that holds the text.")
    subset: NonEmpty | None = Field(default=None, description="The configuration of a data set of the hub.")
    split: str = Field(default="train", description="The split of a data set of the hub.")
    files: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1)] | None = Field(
        default=None,
        description="Names of files of a data set of the hub to take for the split, instead of a subset's.",
    )
    revision: NonEmpty | None = Field(default=None, description="Branch, tag or commit of a data set of the hub.")

    @model_validator(mode="after")
    def _check_hub_keys(self) -> Self:
        for key in ("subset", "files", "revision") if self.text == "embedded" or is_file(self.text) else ():
            if getattr(self, key) is not None:
                raise wrong(key, f"is for data sets of the hub, which {self.text!r} is not; leave it out")
        if self.subset is not None and self.files is not None:
            raise wrong("files", "takes the place of `subset`; leave one of them out")
        return self


class PrunedInputs(Settings):
    """How the layers of a block are pruned where the blocks before it are pruned; a part of key `calibrations`."""

    order: Literal["together", "sequential"] = Field(
        default="together",
        description="`sequential` prunes the layers of a block one after the other, each on what the pruned layers "
        "before it give. For `propagate: pruned`.",
    )
    dense_target: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="How much weights are fitted to the dense model's outputs: 0 to the outputs of the dense layer on "
        "the pruned model's inputs, 1 to its outputs on the dense model's inputs. For `propagate: pruned`, and for "
        "cells with a reconstruction.",
    )


class Calibration(TextSource, PrunedInputs):
    """A calibration text, how it is drawn, and the inputs of layers; configuration key `calibrations`."""

    PRESETS = ("text", {"c4": _C4, "wikitext2": _WIKITEXT2})

    join: str | None = Field(
        default=None,
        description="What stands between two documents where all are one text to draw from. null: each document is a "
        "text of its own.",
    )
    samples: int = Field(default=128, ge=1, description="Calibration sequences.")
    held_out: int = Field(default=16, ge=0, description="Further sequences whose Gram matrix refinement never sees.")
    seqlen: int = Field(default=2048, ge=2, description="Tokens per sequence.")
    propagate: Literal["dense", "pruned"] = Field(
        default="dense",
        description="`dense` calibrates every block on the inputs that the dense model gives it; blocks are then "
        "independent. `pruned` calibrates every block on the outputs of the pruned blocks before it, as the paper "
        "does; each cell is then one job.",
    )
    sha256: Digest | Annotated[list[Digest], Field(min_length=1)] | None = Field(
        default=None,
        description="The SHA-256 of the token ids that must be drawn: it is in the log of rule samples and in the "
        "report. A list where models or seeds differ. null accepts any. The token ids are drawn again when this key "
        "changes.",
    )

    @model_validator(mode="after")
    def _check_pruned_inputs(self) -> Self:
        for key in PrunedInputs.model_fields:
            if self.propagate == "dense" and getattr(self, key) != PrunedInputs.model_fields[key].default:
                raise wrong(key, "is for pruned inputs; set propagate: pruned, or leave it out")
        return self
