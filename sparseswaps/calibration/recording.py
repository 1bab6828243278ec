"""Recording of what each matrix of a block reads, while the block runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseswaps.calibration.grams import MatrixInputs
from sparseswaps.model.blocks import expert_modules, expert_parameters, linear_layers
from sparseswaps.model.layers import Matrix


@contextmanager
def record_inputs(block: nn.Module, unrouted: set[Matrix] = frozenset()) -> Iterator[MatrixInputs]:
    """Record the inputs of a block's matrices while it runs; of `unrouted` experts, over all tokens of their layer."""
    inputs: MatrixInputs = {}
    with ExitStack() as stack:
        for name, layer in linear_layers(block).items():

            def record(_module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
                inputs.setdefault((f"{name}.weight", None), []).append(args[0] if args else next(iter(kwargs.values())))

            stack.callback(layer.register_forward_pre_hook(record, with_kwargs=True).remove)
        for name, experts in expert_modules(block).items():
            stack.enter_context(replace_forward(experts, _ExpertRecorder(experts, name, unrouted, inputs).forward))
        yield inputs


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward pass for a while."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


class _ExpertRecorder:
    """Runs transformers' fused experts one at a time, and records into `inputs` what their matrices read."""

    def __init__(self, experts: nn.Module, name: str, unrouted: set[Matrix], inputs: MatrixInputs) -> None:
        self.experts, self.name, self.unrouted, self.inputs = experts, name, unrouted, inputs
        self.first, self.last = expert_parameters(experts)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Run the experts as transformers does.

        `hidden_states` is [tokens, width]; `top_k_index` and `top_k_weights` are [tokens, experts per token].
        """
        output = torch.zeros_like(hidden_states)
        for expert in range(self.experts.num_experts):
            token, slot = (top_k_index == expert).nonzero(as_tuple=True)
            routed = hidden_states[token]
            inner = self._run_first(expert, routed)
            result = self._project(self.last, expert, inner)
            if self.experts.has_post_expert_norm:
                result = self.experts.post_expert_norm(result)
            output.index_add_(0, token, (result * top_k_weights[token, slot, None]).to(output.dtype))
            matrices = (f"{self.name}.{self.first}", expert), (f"{self.name}.{self.last}", expert)
            if not self.unrouted.isdisjoint(matrices):
                routed, inner = hidden_states, self._run_first(expert, hidden_states)
            for matrix, x in zip(matrices, (routed, inner), strict=True):
                self.inputs.setdefault(matrix, []).append(x)
        return output

    def _run_first(self, expert: int, x: Tensor) -> Tensor:
        """Return the input of an expert's last matrix for the input `x` of its first."""
        up = self._project(self.first, expert, x)
        return self.experts._apply_gate(up) if self.experts.has_gate else self.experts.act_fn(up)

    def _project(self, parameter: str, expert: int, x: Tensor) -> Tensor:
        weight = getattr(self.experts, parameter)[expert]
        bias = getattr(self.experts, f"{parameter}_bias")[expert] if self.experts.has_bias else None
        return functional.linear(x, weight.T if self.experts.is_transposed else weight, bias)
