"""Run a pruned model from its kept weights alone, on the CPU: one bit a weight, and the kept values.

A row's bits say which weights are kept; its values follow those of the row before. The kernel takes eight columns at a
time. The byte of their bits looks up a shuffle that moves the next values to their columns and sets the others to zero
(AVX2: vpshufb for two bytes a value, vpermps for four). Products and sums are in float32.
"""

import ctypes
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from torch import Tensor, nn

_FEW = 8  # tokens up to which the kernel is faster than the dense weight made for a call
_SPARE = 8  # values that a load may read behind the last one
_PART = 2**20  # weights from which another thread gains more than it costs

# A byte of bits, for each value [256, 8]: whether it is kept, and its number among the kept ones.
_KEPT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(bool)
_NUMBER = _KEPT.cumsum(1) - 1


def processor_can_run() -> bool:
    """Tell whether this is an x86 processor with AVX2 and FMA, which the kernel needs."""
    features = get_host_cpu_features()
    return features.get("avx2", False) and features.get("fma", False)


def leave_zeros_out(model: nn.Module) -> None:
    """Replace the linear layers of a model that take less memory without their zeros or in two bytes a value."""
    _replace_layers(model)
    model.requires_grad_(False)
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)  # returns the memory of the dense weights to the system, which the C library would keep


def _replace_layers(model: nn.Module) -> None:
    """Replace the layers. No reference to a dense weight is left when this returns."""
    owners = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), Tensor):
            owners[id(module.weight)].append((name, module))
    for modules in owners.values():
        if not _can_be_replaced([type(module) for _, module in modules]):
            continue
        kept = KeptWeights(modules[0][1].weight.detach())
        if kept.nbytes < modules[0][1].weight.nbytes:
            for name, module in modules:  # two of them if the embedding is the head as well
                part = SparseLinear(kept, module.bias) if type(module) is nn.Linear else _Embedding(kept)
                model.set_submodule(name, part)


def _can_be_replaced(kinds: list[type]) -> bool:
    """Return whether modules of these types, which share a weight, are linear layers, or one and an embedding."""
    return nn.Linear in kinds and set(kinds) <= {nn.Linear, nn.Embedding}


class KeptWeights:
    """The weights [rows, columns] of a matrix that are not zero."""

    def __init__(self, weight: Tensor) -> None:
        kept = weight != 0
        self.rows, self.columns = weight.shape
        self.dtype = weight.dtype
        self.positions = np.packbits(kept.numpy(), axis=1)  # [rows, columns / 8], with zeros up to a whole byte
        self.starts = np.concatenate([[0], kept.sum(1).cumsum(0).numpy()])[:-1]  # of each row in the values
        values = nn.functional.pad(weight[kept], (0, _SPARE))
        short = values.bfloat16()
        exact = torch.equal(short.to(values.dtype), values)
        self.values = short.view(torch.uint16).numpy() if exact else values.float().numpy()
        self.table = _table(self.values.itemsize)

    @property
    def nbytes(self) -> int:
        return self.positions.nbytes + self.starts.nbytes + self.values.nbytes

    def dense(self, rows: Any = ...) -> Tensor:
        """Return rows with their zeros: [rows, columns]."""
        positions = self.positions[rows]
        dense = np.empty((len(positions), 8 * positions.shape[1]), np.float32)
        _expand(positions, self.values, self.starts[rows], self.table, dense)
        return torch.from_numpy(dense)[:, : self.columns].to(self.dtype)

    def multiply(self, inputs: Tensor) -> Tensor:
        """Return the products of all rows and a few inputs: [tokens, columns] to float32 [tokens, rows]."""
        x, outputs = inputs.float(), np.empty((len(inputs), self.rows), np.float32)
        if self.columns % 8:
            x = nn.functional.pad(x, (0, -self.columns % 8))
        x = x.contiguous().numpy()
        parts = min(torch.get_num_threads(), self.rows * self.columns // _PART)
        if parts < 2:
            _multiply(self.positions, self.values, self.starts, self.table, x, outputs, 0, self.rows)
        else:
            ends = [self.rows * part // parts for part in range(parts + 1)]
            arrays = self.positions, self.values, self.starts, self.table, x, outputs
            list(_pool().map(partial(_multiply, *arrays), ends[:-1], ends[1:]))
        return torch.from_numpy(outputs)


class SparseLinear(nn.Module):
    """A linear layer that holds kept weights."""

    def __init__(self, kept: KeptWeights, bias: Tensor | None) -> None:
        super().__init__()
        self.kept, self.bias = kept, bias
        self.out_features, self.in_features = kept.rows, kept.columns

    @property
    def weight(self) -> Tensor:
        """The dense weight, made for this call: [out_features, in_features]."""
        return self.kept.dense()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs [..., out_features] of inputs [..., in_features]."""
        if inputs.numel() > _FEW * self.in_features:
            return nn.functional.linear(inputs, self.weight, self.bias)
        outputs = self.kept.multiply(inputs.reshape(-1, self.in_features))
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Embedding(nn.Module):
    """An embedding that shares its weights with the head."""

    def __init__(self, kept: KeptWeights) -> None:
        super().__init__()
        self.kept = kept

    @property
    def weight(self) -> Tensor:
        return self.kept.dense()

    def forward(self, ids: Tensor) -> Tensor:
        return self.kept.dense(ids.flatten().numpy()).view(*ids.shape, self.kept.columns)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads())


@cache
def _table(itemsize: int) -> np.ndarray:
    """Return the shuffle for each byte of bits: uint8 [256, 32]. A set highest bit means zero."""
    if itemsize == 4:  # for each of eight columns the number of its value, as vpermps reads it
        table = np.where(_KEPT, _NUMBER, -1).astype(np.int32).view(np.uint8)
    else:  # for each byte of eight float32 the number of its byte; a bfloat16 is the upper half of a float32
        table = np.full((256, 8, 4), 0x80, np.uint8)
        table[..., 2] = np.where(_KEPT, 2 * _NUMBER, 0x80)
        table[..., 3] = np.where(_KEPT, 2 * _NUMBER + 1, 0x80)
    return torch.from_numpy(table.reshape(256, 32)).clone().numpy()  # torch aligns memory to 64 bytes


# ---- the kernel: eight float32 in one register are a value of type `_eight` ------------------------------------------

_FLOATS = ir.VectorType(ir.FloatType(), 8)
_INTEGERS = ir.VectorType(ir.IntType(32), 8)
_BYTES, _HALF = ir.VectorType(ir.IntType(8), 32), ir.VectorType(ir.IntType(8), 16)
_compiled = njit(cache=True, nogil=True)


class _Eight(types.Type):
    def __init__(self) -> None:
        super().__init__(name="EightFloats")


@register_model(_Eight)
class _EightModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, _FLOATS)


_eight = _Eight()


def _call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _pointer(context: Any, builder: Any, kind: types.Array, array: Any, index: Any, result: ir.Type) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), result.as_pointer())


def _load(context: Any, builder: Any, kind: types.Array, array: Any, index: Any, result: ir.Type) -> Any:
    return builder.load(_pointer(context, builder, kind, array, index, result), align=1)


@intrinsic
def _zero(context):
    return _eight(), lambda context, builder, signature, arguments: ir.Constant(_FLOATS, [0.0] * 8)


@intrinsic
def _weights(context, table, bits, values, start):
    """Return the weights of eight columns, from their byte of bits and the number of their first value."""

    def code(context, builder, signature, arguments):
        table, bits, values, start = arguments
        kinds, row = signature.args, builder.mul(bits, ir.Constant(bits.type, 32))
        if kinds[2].dtype == types.uint16:
            shuffle = _load(context, builder, kinds[0], table, row, _BYTES)
            half = _load(context, builder, kinds[2], values, start, _HALF)
            twice = ir.Constant(ir.VectorType(ir.IntType(32), 32), [*range(16)] * 2)
            both = builder.shuffle_vector(half, half, twice)  # vpshufb moves bytes within each half of a register
            return builder.bitcast(_call(builder, "llvm.x86.avx2.pshuf.b", _BYTES, both, shuffle), _FLOATS)
        shuffle = _load(context, builder, kinds[0], table, row, _INTEGERS)
        eight = _load(context, builder, kinds[2], values, start, _FLOATS)
        moved = _call(builder, "llvm.x86.avx2.permps", _FLOATS, eight, shuffle)
        pruned = builder.icmp_signed("<", shuffle, ir.Constant(_INTEGERS, [0] * 8))
        return builder.select(pruned, ir.Constant(_FLOATS, [0.0] * 8), moved)

    return _eight(table, types.int64, values, types.int64), code


@intrinsic
def _multiply_add(context, total, weights, x, column):
    """Return total + weights x, with the eight inputs from `column` on."""

    def code(context, builder, signature, arguments):
        total, weights, x, column = arguments
        inputs = _load(context, builder, signature.args[2], x, column, _FLOATS)
        return _call(builder, "llvm.fma.v8f32", _FLOATS, weights, inputs, total)

    return _eight(_eight, _eight, x, types.int64), code


@intrinsic
def _store(context, weights, out, column):
    def code(context, builder, signature, arguments):
        weights, out, column = arguments
        builder.store(weights, _pointer(context, builder, signature.args[1], out, column, _FLOATS), align=1)
        return context.get_dummy_value()

    return types.none(_eight, out, types.int64), code


@intrinsic
def _add(context, first, second):
    return _eight(_eight, _eight), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def _sum(context, eight):
    def code(context, builder, signature, arguments):
        total = builder.extract_element(arguments[0], ir.Constant(ir.IntType(32), 0))
        for lane in range(1, 8):
            total = builder.fadd(total, builder.extract_element(arguments[0], ir.Constant(ir.IntType(32), lane)))
        return total

    return types.float32(_eight), code


@intrinsic
def _ones(context, bits):
    """Return the number of set bits."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@_compiled
def _dot(bits, values, start, table, x):
    """Return the product of one row and one token's inputs. Four sums in turns hide the latency of an addition."""
    first, second, third, fourth = _zero(), _zero(), _zero(), _zero()
    whole = len(bits) // 4 * 4
    for i in range(0, whole, 4):
        a, b, c, d = np.int64(bits[i]), np.int64(bits[i + 1]), np.int64(bits[i + 2]), np.int64(bits[i + 3])
        first = _multiply_add(first, _weights(table, a, values, start), x, 8 * i)
        start += _ones(a)
        second = _multiply_add(second, _weights(table, b, values, start), x, 8 * i + 8)
        start += _ones(b)
        third = _multiply_add(third, _weights(table, c, values, start), x, 8 * i + 16)
        start += _ones(c)
        fourth = _multiply_add(fourth, _weights(table, d, values, start), x, 8 * i + 24)
        start += _ones(d)
    for i in range(whole, len(bits)):
        a = np.int64(bits[i])
        first = _multiply_add(first, _weights(table, a, values, start), x, 8 * i)
        start += _ones(a)
    return _sum(_add(_add(first, second), _add(third, fourth)))


@_compiled
def _multiply(positions, values, starts, table, x, out, first, last):
    for row in range(first, last):
        for token in range(len(x)):
            out[token, row] = _dot(positions[row], values, starts[row], table, x[token])


@_compiled
def _expand(positions, values, starts, table, out):
    for row in range(len(positions)):
        start = starts[row]
        for i in range(positions.shape[1]):
            bits = np.int64(positions[row, i])
            _store(_weights(table, bits, values, start), out[row], 8 * i)
            start += _ones(bits)
