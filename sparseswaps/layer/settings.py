"""The settings of what is done to one layer, with their defaults. Importing this module does not import torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sparseswaps.base.settings import Settings, wrong


class RefinementSettings(Settings):
    """How a mask is refined; configuration key `refinements`."""

    method: Literal["swaps", "dsnot"] = Field(
        default="swaps",
        description="`swaps` is the method of this project. `dsnot` is DSnoT, for comparison; it makes 50 swaps where "
        "`max_swaps` is null, and has no other keys.",
    )
    max_swaps: int | None = Field(
        default=None, ge=0, description="Most swaps per row. null: up to the local optimum. 0: the warm start as it is."
    )
    stop: Literal["optimum", "held_out"] = Field(
        default="optimum", description="`held_out` takes the last mask before the layer's error on held-out text rises."
    )
    freeze: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of each row's weights, those with the highest Wanda scores, that no swap prunes.",
    )
    shrinkage: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Swaps are chosen by (1 - s) G + s diag(G) instead of the Gram matrix G. Losses are those of G.",
    )
    between_rows: bool = Field(
        default=False,
        description="Whether weights are also exchanged between rows. The matrix then keeps the number of weights "
        "that the pattern says, but its rows may differ.",
    )
    refit: bool = Field(
        default=False,
        description="Whether a swap is judged with all kept weights refitted after it. For refinements that a "
        "reconstruction follows.",
    )

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        """Refuse keys beside those that method dsnot and swaps with refit have."""
        for key in ("stop", "freeze", "shrinkage", "between_rows", "refit"):
            if getattr(self, key) == type(self).model_fields[key].default:
                continue
            if self.method == "dsnot":
                raise wrong(key, "method dsnot has no other keys than max_swaps; leave it out")
            if self.refit and key != "refit":
                raise wrong(key, "a refinement with refit has no other keys than max_swaps; leave it out")
        return self


class BlockReconstruction(Settings):
    """How a pruned block is trained to give the dense block's output; key `block` of a reconstruction."""

    epochs: int = Field(
        default=8, ge=1, description="Passes over the calibration text. Held-out text decides which is kept."
    )
    levels: int = Field(
        default=1,
        ge=1,
        description="1 trains the weights of a fixed mask. With more, the sparsity rises in so many levels over the "
        "first 60 % of the steps. Each level makes a new mask of the current weights by warm start and refinement, and "
        "fits the kept weights.",
    )
    learning_rate: float = Field(
        default=0.04,
        gt=0,
        description="Of Adam, at the first step, relative to the root mean square of a layer's dense weights. It falls "
        "linearly to 0.",
    )
    sequences: int = Field(default=8, ge=1, description="Calibration sequences of a step.")


class Reconstruction(Settings):
    """How the kept weights are fitted to a mask; configuration key `reconstructions`."""

    PRESETS = ("method", {"admm": {"damping": 0.1, "iterations": 20}, "sparsegpt": {"iterations": 1}})

    method: Literal["least_squares", "sparsegpt", "admm", "none"] = Field(
        default="least_squares",
        description="How the weights of each layer are fitted. `least_squares` is masked least squares by conjugate "
        "gradients. `sparsegpt` (arXiv 2301.00774) and `admm` (arXiv 2401.02938) are their weight updates for a given "
        "mask. `none` leaves the kept weights to the training of the block.",
    )
    block: BlockReconstruction | None = Field(
        default=None,
        description="The training of each block after the weights of its layers were fitted. It needs a calibration "
        "with `propagate: pruned`. null: none.",
    )
    damping: float = Field(
        default=0.01,
        ge=0,
        description="What is added to the diagonal of the Gram matrix, as a share of the diagonal's mean. `admm` "
        "scales the diagonal to one first, and its default is 0.1.",
    )
    iterations: int = Field(
        default=50,
        ge=1,
        description="Iterations of conjugate gradients, or of ADMM, whose default is 20. `sparsegpt` is one sweep, so "
        "that only 1 is allowed.",
    )

    @model_validator(mode="after")
    def _check_sweeps(self) -> Self:
        if self.method == "sparsegpt" and self.iterations != 1:
            raise wrong("iterations", f"{self.iterations}, but method sparsegpt is one sweep; leave it out")
        if self.method == "none" and self.block is None:
            raise wrong("method", "none, but there is no block to train either; set `block`, or leave the entry out")
        return self
