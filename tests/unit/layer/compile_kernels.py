"""Compile the Triton kernels for a Hopper GPU, without such a GPU; test_swaps.py runs this without the interpreter."""

from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparseswaps.layer.swaps import cuda
from sparseswaps.layer.swaps.bounds import LAMBDA

TYPES = dict.fromkeys(["correlation", "norm", "unit", "low"], "*fp64") | {"strongest": "*fp32"}
TYPES |= {"mask": "*i8", "certified": "*i8", "listed": "*i32", "budget": "*i64", "swaps": "*i64", "d_in": "i32"}
KERNELS = [
    (cuda._swap_row, {"lam": LAMBDA, "chunk": cuda._CHUNK, "few": cuda._FEW}, cuda._WARPS),
    (cuda._swap_groups, {"size": 4, "groups": cuda._CHUNK // 4, "padded": 4}, cuda._WARPS),
    (cuda._swap_groups, {"size": 20, "groups": cuda._CHUNK // 32, "padded": 32}, cuda._WARPS),
    (cuda._eliminate, {"size": 4096, "kept": 1638, "width": 4096}, 4),
    (cuda._eliminate, {"size": 4, "kept": 2, "width": 32768}, 32),  # d_in 28672
]

if __name__ == "__main__":
    for (kernel, constants, warps), real in product(KERNELS, ["*fp32", "*fp64"]):
        types = TYPES | dict.fromkeys(["weight", "gram", "inside"], real)
        signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
        indexed = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=indexed)
        options = {"num_warps": warps, "enable_fp_fusion": cuda._FUSED}
        options["maxnreg"] = min(255, 2048 // warps) if kernel is cuda._eliminate else cuda._REGISTERS
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert ".target sm_90" in compiled.asm["ptx"]
        print(kernel.__name__, real, constants, f"{len(compiled.asm['cubin'])} bytes")
