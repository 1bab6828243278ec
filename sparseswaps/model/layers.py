"""The prunable matrices of a model: where each is in the checkpoint's files, and where in the loaded model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Matrix = tuple[str, int | None]  # a matrix of a model's block: the name of its parameter, and the expert's slice


@dataclass(frozen=True)
class Layer:
    """A prunable matrix of a decoder block, [d_out, d_in]: the weight of a linear layer or of one expert.

    In a file, a matrix is a tensor, or one slice of a tensor of all experts. In a loaded model, it is a parameter, or
    rows of a parameter, or rows of one expert's slice of a parameter of all experts.
    """

    name: str  # within the block, as in the file
    tensor: str  # the name of the file's tensor
    parameter: str  # the name of the model's parameter within the block
    d_out: int
    d_in: int
    transposed: bool = False  # whether file and model both hold [d_in, d_out], as GPT-2's Conv1D does
    expert: int | None = None  # the slice of a parameter of three dimensions; None if the parameter has two
    row: int = 0  # the matrix's first row in the parameter or slice
    fused: bool = False  # whether the file's tensor has three dimensions, too

    @property
    def matrix(self) -> Matrix:
        """The matrix of the model that this layer is, or is rows of."""
        return self.parameter, self.expert

    def view_in(self, parameter: Tensor) -> Tensor:
        """Return this matrix, [d_out, d_in], as a view of the model's parameter."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        return (matrix.T if self.transposed else matrix)[self.row : self.row + self.d_out]

    def read_with(self, read: Callable[[str, int | None], Tensor]) -> Tensor:
        """Return this matrix, [d_out, d_in], where `read` returns a file's tensor, or one expert's slice of it."""
        matrix = read(self.tensor, self.expert if self.fused else None)
        return matrix.T.contiguous() if self.transposed else matrix


def file_tensors(layers: list[Layer], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a block's masks or weights, [d_out, d_in] by layer name, as the files hold them: by tensor name."""
    tensors: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for layer in layers:
        matrix = matrices[layer.name].T.contiguous() if layer.transposed else matrices[layer.name]
        if layer.fused:
            experts.setdefault(layer.tensor, []).append(matrix)
        else:
            tensors[layer.tensor] = matrix
    return tensors | {name: torch.stack(slices) for name, slices in experts.items()}
