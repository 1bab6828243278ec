"""The memory, disk and time that a job of each stage needs, by arithmetic from the model's sizes.

`snakemake plan` prints the needs, and every rule's `resources` ask for them. Memory is an upper bound, time an estimate
within a factor of three. A GPU holds the tensors that the CPU would hold. The host then keeps the hidden states and the
tensors that are read and written.
"""

from typing import NamedTuple

from sparseswaps.calibration.settings import PrunedInputs
from sparseswaps.layer.settings import Reconstruction
from sparseswaps.pruning.progress import SWAPS
from sparseswaps.workflow.plan.sizes import Matrices, Sizes

_LIBRARIES = 1e9  # an interpreter with torch, transformers and lm-eval; 300 to 720 MB were measured
_CUDA = 2e9  # CUDA's libraries on the host, beside the others
_CONTEXT = 1e9  # CUDA and its kernels on the GPU

# Seconds of Snakemake and of the fork until a job begins: measured in runs of config.yaml on two cores, and assumed for
# a job that starts CUDA. A job that is not forked imports its libraries, which takes 2 to 12 s more.
_START, _START_ON_GPU = 0.4, 3.0
_DISK = 5e8  # bytes a second, read and hashed or written; assumed
_CACHED = 0.1  # the time to read a file that the system has cached, of the time to read it from disk; assumed
ITEMS = 2000  # items of an lm-eval task without a limit; this and the next two numbers are assumed
# Tokens of an item with all its answers (70 in the tasks of configs/smollm2-zeroshot.yaml, 350 where answers are
# sentences), and of the longest sequence.
_ITEM, _LONGEST = 200, 400
TEXT = 300_000  # tokens of an evaluation text without a limit of windows: about as many as WikiText-2 has
_TOKENISING = 2.0  # seconds; assumed
_TOGETHER, _LOGITS = 1 << 18, 1 << 25  # TOKENS and LOGITS of evaluation/scores.py
_AGAIN = 6  # the last searches of a row, which make no swap, take as long as this many swaps
_UPDATING = {"sparsegpt": 1, "admm": 20}  # products of weights and Gram matrices in these warm starts
# ALPS' eigendecomposition takes as long as 4 d_in^3 operations of Cholesky factors (3 to 5 on one core, d_in 512 to
# 2048), and holds 40 bytes for each entry of a Gram matrix (38 at d_in 2048). Layers of the embedded model took 30 to
# 39 rounds.
_ALPS_ROUNDS, _EIGEN, _ALPS_GRAM = 36, 4, 40
_CHECK = 20  # bytes for each entry of a Gram matrix: one copy in float32, and two in float64 where rounding is in doubt
# The steps of swaps and of elimination with refit read whole tables, so memory limits them: the share of the rate of
# products in float64 (benchmarks/results/refit-cpu.json).
_STREAMED = 0.1
_SLICE_ON_CPU, _SLICE = 1 << 20, 1 << 28  # float64 numbers of the rows of layer/swaps/refit.py that share a search
_PASSES = 4  # correlations of all rows in a call of refine_mask(), with the held-out error before and after it
# Bytes for each trained weight: five copies in float32 (values, gradients, two of Adam, the best epoch) and two masks.
_TRAINED = 22
_MEASURED = 12  # correlations of all rows in a refinement that is measured on its way


class Rates(NamedTuple):
    """Operations a second; `search` is how many times faster than one CPU core the rows are searched."""

    single: float  # matrix products in float32, on a GPU in bfloat16
    double: float  # matrix products in float64
    cholesky: float
    search: float
    sort: float  # weights a second


# One core. `single` is from captures of the embedded model, whose small products reach half the rate of large ones.
# `double`, `cholesky` and `search` are from benchmarks/results/engine-cpu.json (`correlation_s`, `check_s` for
# d_in^3 / 3, and the searches), `sort` is from one measurement at d_in 4096.
_CORE = Rates(single=5e10, double=4e10, cholesky=2e10, search=1, sort=1e7)
# A data-centre GPU, estimated and not measured: a third of the tensor cores' rate in bfloat16, the rate in float64, and
# for the search the bandwidth of its memory compared with that of one core's cache.
_CARD = Rates(single=1e14, double=1e13, cholesky=5e12, search=100, sort=1e9)
_FULL = 2e13  # matrix products in float32, without tensor cores: a third of the rate of an H100


class Machine(NamedTuple):
    """The device and the threads that a job computes with, and where it keeps hidden states."""

    gpu: bool
    threads: int
    dtype: str  # what models run in: "float32", or "checkpoint"
    on_disk: bool = False  # whether hidden states are kept on disk, not in host memory

    @property
    def rates(self) -> Rates:
        return _CARD if self.gpu else Rates(*(self.threads * rate for rate in _CORE))

    def value(self, sizes: Sizes) -> int:
        """Return the bytes of a parameter or an activation on the device."""
        return 4 if self.dtype == "float32" else sizes.bytes

    def products(self, sizes: Sizes) -> float:
        """Return the operations a second of matrix products, in the dtype that the model runs in."""
        return _FULL if self.gpu and self.value(sizes) > 2 else self.rates.single


class Draw(NamedTuple):
    """The sequences of a calibration."""

    samples: int
    held_out: int
    seqlen: int

    @property
    def tokens(self) -> int:
        return (self.samples + self.held_out) * self.seqlen

    @property
    def splits(self) -> int:
        """The number of Gram matrices of an input."""
        return 2 if self.held_out else 1

    def gram_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of a block's Gram matrices in float32."""
        return self.splits * 4 * sizes.gram


class Mask(NamedTuple):
    """The facts about a mask that its time depends on."""

    whole_rows: bool  # whether the pattern is a sparsity per row
    sparsity: float  # the share of weights that are pruned
    criterion: str | None  # of the warm start; None: imported masks
    max_swaps: int | None  # most swaps of a row; None: to the optimum
    refit: bool = False  # whether swaps are judged with all kept weights refitted


class Needs(NamedTuple):
    """The needs of one job: bytes on the host, on the GPU (0: no GPU) and on disk for artifacts; seconds of work."""

    host: float
    gpu: float
    disk: float
    seconds: float
    scratch: float = 0  # bytes on disk that are deleted after the job, or after the next block's job

    @property
    def start(self) -> float:
        """The seconds until the job begins, which are not in `seconds`."""
        return _START_ON_GPU if self.gpu else _START


def _split_by_device(machine: Machine, computing: float, host: float, disk: float, seconds: float) -> Needs:
    """Return the needs of a stage that holds `computing` bytes on its device, and `host` bytes on the host."""
    if machine.gpu:
        return Needs(_LIBRARIES + _CUDA + host, _CONTEXT + computing, disk, seconds)
    return Needs(_LIBRARIES + host + computing, 0, disk, seconds)


def small() -> Needs:
    """Return the needs of tables, figures and the report, which do not grow with the model."""
    return Needs(_LIBRARIES, 0, 0, 2)


def model(sizes: Sizes) -> Needs:
    """Return the needs of stage model, which reads and hashes one tensor at a time: three times the largest tensor."""
    return Needs(_LIBRARIES + 3 * sizes.largest * sizes.bytes, 0, 0, sizes.checkpoint / _DISK)


def samples(draw: Draw) -> Needs:
    """Return the needs of stage samples, which reads and tokenises a text; token ids are int64."""
    return Needs(_LIBRARIES, 0, 8 * draw.tokens, _TOKENISING)


def _bytes_per_token(sizes: Sizes, seqlen: int, value: int) -> int:
    """Return the bytes of a token within a block: norms, queries, keys, values, and three in the MLP; and attention's
    scores, two copies in float32, for the few families that lack fused attention."""
    return (4 * sizes.hidden + 3 * sizes.attention + 4 * sizes.mlp) * value + 8 * sizes.unfused * seqlen


def _forward(sizes: Sizes, seqlen: int) -> float:
    """Return the operations of a token in a block: for its weights, and for its attention to its sequence."""
    return 2 * sizes.used + 4 * seqlen * sizes.attention


def capture_terms(sizes: Sizes, draw: Draw, batch_size: int, machine: Machine) -> dict[str, int]:
    """Return the bytes that capture holds at once, by term, beside its libraries."""
    value, batch = machine.value(sizes), min(batch_size, draw.samples + draw.held_out) * draw.seqlen
    grams = draw.gram_bytes(sizes)
    kept = 4 * max(sizes.hidden, sizes.attention, sizes.mlp)  # the inputs in float32, for their Gram matrices
    return {
        "blocks": 3 * sizes.block * value,
        "embeddings": sizes.embedding * value,  # while the pass starts
        # in float64, and the greater of a float32 copy of them all, as they are written, and the check of the largest
        "gram": 2 * grams + max(grams, _CHECK * sizes.widest**2),
        "batch": batch * (_bytes_per_token(sizes, draw.seqlen, value) + kept),
        "hidden": draw.tokens * sizes.hidden * value,  # states of all sequences, on the host or on its disk
    }


def _capture_seconds(sizes: Sizes, draw: Draw, machine: Machine, passes: int) -> float:
    """Return the seconds to pass through a block, and to sum and check its Gram matrices."""
    forward = draw.tokens * _forward(sizes, draw.seqlen) * passes
    gram = 2 * draw.tokens * sum(m.used * m.count * m.d_in**2 for m in sizes.inputs)
    checks = draw.splits * sum(m.count * m.d_in**3 / 3 for m in sizes.inputs)
    return (forward + gram) / machine.products(sizes) + checks / machine.rates.cholesky


def capture(sizes: Sizes, draw: Draw, batch_size: int, machine: Machine) -> Needs:
    """Return the needs of stage capture (`capture_terms`), which writes Gram matrices in float32."""
    terms = capture_terms(sizes, draw, batch_size, machine)
    hidden = terms.pop("hidden")
    host = 0 if machine.on_disk else hidden
    if machine.gpu:  # a block as it is read, and its Gram matrices as they are written
        host += sizes.block * sizes.bytes + draw.gram_bytes(sizes)
    disk, scratch = draw.gram_bytes(sizes) * sizes.blocks, hidden if machine.on_disk else 0
    passes = 2 if sizes.experts else 1  # an expert that saw too few tokens is given others the second time
    computing = sizes.blocks * _capture_seconds(sizes, draw, machine, passes)
    seconds = computing + (sizes.checkpoint + disk + scratch) / _DISK
    return _split_by_device(machine, sum(terms.values()), host, disk, seconds)._replace(scratch=scratch)


def _working_bytes(sizes: Sizes) -> int:
    """Return the bytes that a warm start or refine_mask() holds for a block's largest layer, without Gram matrices."""
    # As stored, in float32, in five masks, and three times the state of the search: the correlation in float64, the
    # weight and the mask. The same memory is enough for a sort and a reconstruction.
    weight = sizes.bytes + 4 + 5 + 3 * (8 + 4 + 1)
    return max(m.d_out * m.d_in * weight + m.d_in**2 * _CHECK for m in sizes.matrices)


def _refit_bytes(sizes: Sizes, weights: float, machine: Machine) -> float:
    """Return the bytes of a search with refit: twice the rows that are searched together, or one row.

    A row takes two times `weights` x d_in numbers in float64, where `weights` is a share of d_in: of the kept weights
    for swaps, of half the pruned weights for elimination.
    """
    return 2 * 8 * max(_SLICE if machine.gpu else _SLICE_ON_CPU, max(2 * weights * m.d_in**2 for m in sizes.matrices))


def _start_bytes(sizes: Sizes, mask: Mask, machine: Machine) -> float:
    """Return the bytes that a warm start holds beside `_working_bytes`."""
    if mask.criterion == "alps":
        return (_ALPS_GRAM - _CHECK) * sizes.widest**2
    if mask.criterion != "obc":
        return 0
    return _refit_bytes(sizes, mask.sparsity / 2, machine) + 16 * sizes.widest**2  # a Cholesky factor and an inverse


def _search_bytes(sizes: Sizes, mask: Mask, machine: Machine) -> float:
    """Return the bytes that a refinement holds beside `_working_bytes`."""
    return _refit_bytes(sizes, 1 - mask.sparsity, machine) if mask.refit else 0


def _block_needs(sizes: Sizes, draw: Draw, machine: Machine, seconds: float, further: float = 0) -> Needs:
    """Return the needs of a job that reads a block's Gram matrices and one weight at a time, and writes masks.

    `further` is the bytes that the job computes with beside `_working_bytes`.
    """
    grams, masks = draw.gram_bytes(sizes), sizes.prunable  # a mask has a byte a weight in memory, a bit on disk
    copied = draw.splits * 4 * sizes.widest**2 if machine.gpu else 0  # the largest layer's Gram matrices
    read = (grams + sizes.prunable * sizes.bytes) / _DISK
    return _split_by_device(machine, _working_bytes(sizes) + further + copied, grams + masks, masks / 8, read + seconds)


def _start_seconds(sizes: Sizes, mask: Mask, rates: Rates) -> float:
    """Return the seconds of a block's warm start."""
    if mask.criterion is None:  # imported masks are read
        return sizes.prunable * sizes.bytes / _DISK
    if mask.criterion in _UPDATING:
        return _update_seconds(sizes, _UPDATING[mask.criterion], rates)
    if mask.criterion == "alps":
        return alps_seconds(sizes, rates)
    if mask.criterion == "obc":  # n^2 d_in operations for a row that prunes n weights, and one inversion
        operations = sum(m.entries * (mask.sparsity * m.d_in) ** 2 for m in sizes.matrices)
        return _update_seconds(sizes, 0, rates) + operations / (_STREAMED * rates.double)
    if mask.criterion != "greedy":  # a score is sorted row by row
        return sizes.prunable / rates.sort
    checks = sum(m.count * m.d_in**3 / 3 for m in sizes.matrices) / rates.cholesky
    # greedy elimination takes 0.8 ns for each pruned weight and column
    steps = sum(m.entries * (2e-7 + 8e-10 * m.d_in) for m in sizes.matrices)
    return checks + mask.sparsity * steps / rates.search


def _product_seconds(sizes: Sizes, rates: Rates) -> float:
    """Return the seconds of one product of a block's weights with their Gram matrices."""
    return sum(2 * m.entries * m.d_in for m in sizes.matrices) / rates.double


def _update_seconds(sizes: Sizes, products: int, rates: Rates) -> float:
    """Return the seconds of some products of weights and Gram matrices, and of one inversion of each Gram matrix."""
    inversions = sum(m.count * m.d_in**3 for m in sizes.matrices) / rates.cholesky
    return products * _product_seconds(sizes, rates) + inversions


def alps_seconds(sizes: Sizes, rates: Rates) -> float:
    """Return the seconds of ALPS: one eigendecomposition of each Gram matrix, and rounds of one product.

    Every third round also takes the product of d_in x d_in matrices that gives the inverse for a new rho.
    """
    cubes = sum(m.count * m.d_in**3 for m in sizes.matrices)
    inverses = _ALPS_ROUNDS / 3 * 2 * cubes / rates.double
    return _ALPS_ROUNDS * _product_seconds(sizes, rates) + inverses + _EIGEN * cubes / rates.cholesky


def reconstruct(sizes: Sizes, draw: Draw, iterations: int, machine: Machine) -> Needs:
    """Return the needs of stage reconstruct, which holds and writes a block's new weights (`_block_needs`)."""
    weights = sizes.prunable * sizes.bytes
    needs = _block_needs(sizes, draw, machine, _update_seconds(sizes, iterations, machine.rates))
    return Needs(needs.host + weights, needs.gpu, weights, needs.seconds + weights / _DISK)


def allocation(sizes: Sizes, draw: Draw) -> Needs:
    """Return the needs of stage allocation: Gram matrices and Wanda scores in float32, one block at a time."""
    grams = draw.gram_bytes(sizes)
    read = (grams + sizes.prunable * sizes.bytes) * sizes.blocks
    return Needs(_LIBRARIES + grams + 8 * sizes.prunable, 0, 0, read / _DISK)


def warmstart(sizes: Sizes, draw: Draw, mask: Mask, machine: Machine) -> Needs:
    """Return the needs of stage warmstart (`_block_needs`)."""
    further = _start_bytes(sizes, mask, machine)
    needs = _block_needs(sizes, draw, machine, _start_seconds(sizes, mask, machine.rates), further)
    return needs._replace(host=needs.host + _imported_mask_bytes(sizes, mask))


def _imported_mask_bytes(sizes: Sizes, mask: Mask) -> float:
    """Return the bytes of imported masks, which a warm start holds to its end: they may be one file of all masks."""
    return _all_masks(sizes) if mask.criterion is None else 0


def layer_seconds(layer: Matrices, mask: Mask, rates: Rates) -> float:
    """Return the seconds of a layer's refinement: the check of its Gram matrix, correlations, and swaps.

    On one core a swap takes 2 us + 1.17 ns d_in^1.3 over whole rows (16 us at d_in 1536, 58 us at 4096), and
    2 us + 1.3 ns d_in within groups of N:M (`engine_us` of benchmarks/results/engine-cpu.json). Swaps with refit take
    far longer (`_refit_seconds`).
    """
    d_in, swaps = layer.d_in, SWAPS * layer.d_in
    if mask.max_swaps is not None:
        swaps = min(swaps, mask.max_swaps)
    products = _PASSES * 2 * layer.d_out * d_in**2 / rates.double
    fixed = d_in**3 / 3 / rates.cholesky + products
    if mask.refit:
        return fixed + layer.d_out * _refit_seconds(d_in, mask, swaps, rates)
    each = 2e-6 + (1.17e-9 * d_in**1.3 if mask.whole_rows else 1.3e-9 * d_in)
    return fixed + layer.d_out * (swaps + _AGAIN) * each / rates.search


def _refit_seconds(d_in: int, mask: Mask, swaps: float, rates: Rates) -> float:
    """Return the seconds of a row's swaps with refit: two tableaus of k kept weights, and the swaps.

    The search of a swap over whole rows takes two thirds of its operations.
    """
    k = (1 - mask.sparsity) * d_in
    each = (15 if mask.whole_rows else 5) * k * d_in
    return 2 * 2 * (k**3 + k**2 * d_in) / rates.cholesky + (swaps + 2) * each / (_STREAMED * rates.double)


def _refine_seconds(sizes: Sizes, mask: Mask, rates: Rates) -> float:
    """Return the seconds of the refinement of a block's layers."""
    measuring = _MEASURED * _product_seconds(sizes, rates)
    return measuring + sum(layer.count * layer_seconds(layer, mask, rates) for layer in sizes.matrices)


def refine(sizes: Sizes, draw: Draw, mask: Mask, machine: Machine) -> Needs:
    """Return the needs of stage refine (`_block_needs`)."""
    further = _search_bytes(sizes, mask, machine)
    return _block_needs(sizes, draw, machine, _refine_seconds(sizes, mask, machine.rates), further)


def chain(
    sizes: Sizes,
    draw: Draw,
    mask: Mask,
    inputs: PrunedInputs,
    reconstruction: Reconstruction | None,
    batch_size: int,
    machine: Machine,
) -> Needs:
    """Return the needs of stage chain: those of capture, refine and reconstruct together, for one block.

    The block is run for its inputs, and for its outputs. The hidden states that it hands on are on disk until the next
    block has read them.
    """
    training = reconstruction.block if reconstruction else None
    of_dense = bool(training or inputs.dense_target)
    size = min(batch_size, training.sequences) if training else batch_size
    terms, rates = capture_terms(sizes, draw, size, machine), machine.rates
    hidden, weights = terms.pop("hidden") * (1 + of_dense), sizes.prunable * sizes.bytes
    host = sizes.prunable + _imported_mask_bytes(sizes, mask) + (0 if machine.on_disk else hidden)
    if machine.gpu:
        host += sizes.block * sizes.bytes
    computing = sum(terms.values()) + _working_bytes(sizes) + draw.splits * 4 * sizes.widest**2 + weights
    computing += max(_start_bytes(sizes, mask, machine), _search_bytes(sizes, mask, machine))
    disk, scratch = sizes.prunable / 8, hidden * (2 if machine.on_disk else 1)
    masking = _start_seconds(sizes, mask, rates) + _refine_seconds(sizes, mask, rates)
    if reconstruction:
        disk += weights
        masking += _update_seconds(sizes, reconstruction.iterations, rates)
    passes = (4 if inputs.order == "sequential" else 1) * (2 if inputs.dense_target else 1) + 1 + of_dense
    seconds = _capture_seconds(sizes, draw, machine, passes)
    seconds += ((sizes.block + sizes.embedding) * sizes.bytes + 2 * hidden) / _DISK
    if inputs.dense_target:  # a copy of the block, and its products with dense inputs in float64
        computing += sizes.block * machine.value(sizes) + 8 * sizes.gram
    if training:
        # A step's activations are kept for its gradients.
        computing += _TRAINED * sizes.prunable + weights + 2 * terms["batch"]
        # The gradients take two more passes over the calibration text; held-out text has one pass an epoch.
        sequences = training.epochs * (3 * draw.samples + draw.held_out)
        seconds += sequences * draw.seqlen * _forward(sizes, draw.seqlen) / machine.products(sizes)
        seconds += (training.levels - 1) * masking
    needs = _split_by_device(machine, computing, host, disk, seconds + masking)
    return needs._replace(scratch=scratch)


def _all_masks(sizes: Sizes) -> float:
    """Return the bytes of a whole model's masks, one bit for each weight."""
    return sizes.blocks * sizes.prunable / 8


def masks(sizes: Sizes) -> Needs:
    """Return the needs of stage masks: all masks as bits, and the masks of one block as booleans."""
    held = _all_masks(sizes)
    return Needs(_LIBRARIES + held + 2 * sizes.prunable, 0, held, 8 * held / _DISK)


def assemble(sizes: Sizes) -> Needs:
    """Return the needs of stage assemble: all masks as bits, and one tensor of the model at a time with its mask."""
    host = _LIBRARIES + _all_masks(sizes) + sizes.largest * (sizes.bytes + 2)
    return Needs(host, 0, sizes.checkpoint, 2 * sizes.checkpoint / _DISK)


def _evaluation_needs(sizes: Sizes, tokens: int, batch: int, seqlen: int, machine: Machine, blocks: int = 3) -> Needs:
    """Return the needs of an evaluation: a block, a batch within it, embeddings or head, and a slice of logits.

    `blocks` is how many times the memory of a block is held: a block takes three times its memory while it is read.
    An evaluation also holds the hidden states of the sequences that go through together.
    """
    value = machine.value(sizes)
    hidden = min(tokens, _TOGETHER) * sizes.hidden * value
    # Logits are held as the model makes them, in float32, and as log-probabilities.
    logits = min(batch * seqlen * sizes.vocabulary, _LOGITS) * (value + 8)
    computing = (
        (blocks * sizes.block + sizes.embedding) * value
        + batch * seqlen * _bytes_per_token(sizes, seqlen, value)
        + logits
    )
    host = _all_masks(sizes) + (0 if machine.on_disk else hidden)
    if machine.gpu:
        host += max(sizes.block, sizes.embedding) * sizes.bytes
    operations = tokens * (sizes.blocks * _forward(sizes, seqlen) + 2 * sizes.embedding)
    again = tokens // _TOGETHER * _CACHED
    seconds = sizes.checkpoint * (1 + again) / _DISK + operations / machine.products(sizes)
    return _split_by_device(machine, computing, host, 0, seconds)._replace(scratch=hidden if machine.on_disk else 0)


def perplexity(sizes: Sizes, seqlen: int, windows: int | None, batch_size: int, machine: Machine) -> Needs:
    """Return the needs of stage perplexity (`_evaluation_needs`)."""
    count = max(1, TEXT // seqlen) if windows is None else windows
    size = min(batch_size, count)
    needs = _evaluation_needs(sizes, count * seqlen, size, seqlen, machine)
    return needs._replace(seconds=needs.seconds + _TOKENISING)


def drift(sizes: Sizes, draw: Draw, batch_size: int, machine: Machine) -> Needs:
    """Return the needs of stage drift: three runs of each block, two blocks at a time, and hidden states of two paths.

    `draw` has only the sequences that are run, as held-out text.
    """
    size = min(batch_size, draw.held_out)
    needs = _evaluation_needs(sizes, 3 * draw.tokens, size, draw.seqlen, machine._replace(on_disk=True), blocks=4)
    hidden = 2 * draw.tokens * sizes.hidden * machine.value(sizes)
    host, scratch = (0, hidden) if machine.on_disk else (hidden, 0)
    return needs._replace(host=needs.host + host, seconds=needs.seconds + sizes.checkpoint / _DISK, scratch=scratch)


def harness(sizes: Sizes, tasks: int, limit: int | None, batch_size: int, machine: Machine) -> Needs:
    """Return the needs of stage harness (`_evaluation_needs`), whose sequences are short.

    A task that generates text needs the whole model on the device; the estimate leaves this out.
    """
    tokens = tasks * (limit or ITEMS) * _ITEM
    return _evaluation_needs(sizes, tokens, batch_size, _LONGEST, machine)
