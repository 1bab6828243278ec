"""Compile the Triton kernels for a Hopper GPU, which need not be there; run by test_refine without the interpreter."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparseswaps.refine import cuda
from sparseswaps.refine.bounds import LAMBDA

TYPES = dict.fromkeys(["weight", "gram", "strongest", "inside"], "*fp32")
TYPES |= dict.fromkeys(["correlation", "norm", "unit", "low"], "*fp64")
TYPES |= {"mask": "*i8", "certified": "*i8", "listed": "*i32", "budget": "*i64", "swaps": "*i64", "d_in": "i32"}
KERNELS = [
    (cuda._swap_row, {"lam": LAMBDA, "chunk": cuda._CHUNK, "few": cuda._FEW}, cuda._WARPS),
    (cuda._swap_blocks, {"size": 4, "blocks": cuda._CHUNK // 4, "padded": 4}, cuda._WARPS),
    (cuda._swap_blocks, {"size": 20, "blocks": cuda._CHUNK // 32, "padded": 32}, cuda._WARPS),
    (cuda._eliminate, {"size": 4096, "kept": 1638, "width": 4096}, 4),
    (cuda._eliminate, {"size": 4, "kept": 2, "width": 32768}, 32),  # d_in 28672
]

if __name__ == "__main__":
    for kernel, constants, warps in KERNELS:
        signature = {name: "constexpr" if name in constants else TYPES[name] for name in kernel.arg_names}
        indexed = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=indexed)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        assert ".target sm_90" in compiled.asm["ptx"]
        print(kernel.__name__, constants, f"{len(compiled.asm['cubin'])} bytes")
