"""What a job of each stage needs, by arithmetic from the model's sizes: memory, disk, time.

`snakemake plan` prints it and every rule's `resources` ask for it. Memory is meant as an upper bound, time as an
estimate within a factor of three. A GPU that computes holds what the CPU otherwise would, in the checkpoint's dtype
instead of float32; the host then keeps hidden states and whatever is read and written.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from sparseswaps.pruning.progress import SWAPS
from sparseswaps.workflow.plan.sizes import Matrices, Sizes

_LIBRARIES = 1e9  # an interpreter with torch, transformers and lm-eval; 300 to 720 MB were measured
_CUDA = 2e9  # what CUDA's libraries add to it on the host
_CONTEXT = 1e9  # and what CUDA and its kernels take on the GPU

# Seconds until a script begins, in runs of config.yaml on two shared cores, by the largest library that it imports.
_START = {"torch": 1.5, "numba": 2.5, "transformers": 4.5, "lm_eval": 12.0}
_DISK = 5e8  # bytes a second that are read and hashed, or written; assumed
ITEMS = 2000  # items of an lm-eval task where no limit is set; assumed, as the next two are
_ANSWERS = 4  # answers to an item, each of which is a sequence
_ITEM = 200  # tokens of one
TEXT = 300_000  # tokens of an evaluation text whose windows are not limited: about those of WikiText-2
_TOKENISING = 2.0  # seconds; assumed
_AGAIN = 6  # swaps that a row's last searches, which find nothing, take as long as
_UPDATING = {"sparsegpt": 1, "admm": 20}  # products of weights and Gram matrices of these warm starts
_CHECK = 20  # bytes for each entry of a Gram matrix: a float32 copy, and where rounding is in doubt two in float64
_PASSES = 4  # correlations of all rows in a call of refine(), with the held-out error before and after
_MEASURED = 12  # and those of a refinement that is measured on its way


class Rates(NamedTuple):
    """Operations a second, and how much faster than one CPU core rows are searched."""

    single: float  # of matrix products in float32, on a GPU in bfloat16
    double: float  # and in float64
    cholesky: float
    search: float
    sort: float  # weights


# A core: products in float32 by captures of the embedded model (its small ones reach half of what large ones do), the
# others by `correlation_s`, `check_s` (d_in^3 / 3) and the searches in benchmarks/results/engine-cpu.json; sorting by
# one measurement at d_in 4096.
_CORE = Rates(single=5e10, double=4e10, cholesky=2e10, search=1, sort=1e7)
# A data-centre GPU, estimated and not measured: a third of the tensor cores' rate in bfloat16, its float64, and for the
# search what its memory moves compared with what one core's cache does.
_CARD = Rates(single=1e14, double=1e13, cholesky=5e12, search=100, sort=1e9)
_FULL = 2e13  # and of products in float32, which have no tensor cores: a third of what one has besides (H100)


@dataclass(frozen=True)
class Machine:
    """What a job computes with."""

    gpu: bool
    threads: int

    @property
    def rates(self) -> Rates:
        return _CARD if self.gpu else Rates(*(self.threads * rate for rate in _CORE))

    def value(self, sizes: Sizes) -> int:
        """Bytes of a parameter or an activation where it computes."""
        return sizes.bytes if self.gpu else 4

    def products(self, sizes: Sizes) -> float:
        """Operations a second of matrix products in the dtype that the model runs in."""
        return _FULL if self.gpu and sizes.bytes > 2 else self.rates.single


@dataclass(frozen=True)
class Draw:
    """A calibration's sequences."""

    samples: int
    held_out: int
    seqlen: int
    on_disk: bool = False
    """Whether hidden states wait there."""

    @property
    def sequences(self) -> int:
        return self.samples + self.held_out

    @property
    def tokens(self) -> int:
        return self.sequences * self.seqlen

    @property
    def splits(self) -> int:
        """How many Gram matrices there are of an input."""
        return 2 if self.held_out else 1


@dataclass(frozen=True)
class Mask:
    """What the time of a mask depends on: its blocks, the sparsity, the warm start (None: it was made elsewhere), and
    the most swaps of a row."""

    whole_rows: bool
    sparsity: float
    criterion: str | None
    max_swaps: int | None


@dataclass(frozen=True)
class Needs:
    """What one job needs, in bytes and seconds: memory on the host and on the GPU (0: none), disk for its artifacts."""

    host: float
    gpu: float
    disk: float
    seconds: float


def _placed(machine: Machine, computing: float, host: float, disk: float, seconds: float) -> Needs:
    """Put what a computing stage holds where it computes; the host has its libraries and `host` besides."""
    if machine.gpu:
        return Needs(_LIBRARIES + _CUDA + host, _CONTEXT + computing, disk, seconds)
    return Needs(_LIBRARIES + host + computing, 0, disk, seconds)


@cache
def small() -> Needs:
    """Tables, figures and the report: nothing that grows with the model."""
    return Needs(_LIBRARIES, 0, 0, 1 + _START["torch"])


@cache
def model(sizes: Sizes) -> Needs:
    """Every tensor is read, checked and hashed by itself: memory for three times the largest."""
    return Needs(_LIBRARIES + 3 * sizes.largest * sizes.bytes, 0, 0, _START["transformers"] + sizes.checkpoint / _DISK)


@cache
def samples(draw: Draw) -> Needs:
    """A text is read and tokenised; token ids are int64."""
    return Needs(_LIBRARIES, 0, 8 * draw.tokens, _START["transformers"] + _TOKENISING)


def _states(sizes: Sizes) -> int:
    """Values of a token within a block: its norms, queries, keys and values, the MLP's two sides and their product."""
    return 4 * sizes.hidden + 3 * sizes.attention + 4 * sizes.mlp


def _scores(sizes: Sizes, seqlen: int) -> int:
    """Bytes of a token's attention scores where they are formed: twice in float32, as they are scaled and capped."""
    return 8 * sizes.unfused * seqlen


def _forward(sizes: Sizes, seqlen: int) -> float:
    """Operations of a token in a block: its weights, and its attention to all of its sequence."""
    return 2 * sizes.used + 4 * seqlen * sizes.attention


def capture_terms(sizes: Sizes, draw: Draw, batch_size: int, machine: Machine) -> dict[str, int]:
    """Bytes that capture holds at once, by term, beside its libraries.

    - blocks: three decoder blocks' parameters.
    - embeddings: while the pass starts.
    - gram: a block's Gram matrices in float64, twice with held-out text, and beside them the greater of a float32 copy
      of them all, as they are written, and of what a check of the largest takes (see `_working`).
    - batch: what one batch holds within a block: its inputs, which are kept for their Gram matrices, in float32 once
      more, the results between them, and attention's scores for the few families that lack fused attention.
    - hidden: the hidden states of all sequences; on the host, or on its disk.
    """
    value, tokens = machine.value(sizes), min(batch_size, draw.sequences) * draw.seqlen
    scores = _scores(sizes, draw.seqlen)
    return {
        "blocks": 3 * sizes.block * value,
        "embeddings": sizes.embedding * value,
        "gram": draw.splits * 8 * sizes.gram + max(draw.splits * 4 * sizes.gram, _CHECK * sizes.widest**2),
        "batch": tokens * (_states(sizes) * value + 4 * max(sizes.hidden, sizes.attention, sizes.mlp) + scores),
        "hidden": draw.tokens * sizes.hidden * value,
    }


def _capture_seconds(sizes: Sizes, draw: Draw, machine: Machine, passes: int) -> float:
    """Reading the model, so many passes through its blocks, a Gram matrix for every input, and the check of each."""
    forward = draw.tokens * _forward(sizes, draw.seqlen) * passes
    gram = 2 * draw.tokens * sum(m.used * m.count * m.d_in**2 for m in sizes.inputs)
    checks = draw.splits * sum(m.count * m.d_in**3 / 3 for m in sizes.inputs)
    computing = (forward + gram) / machine.products(sizes) + checks / machine.rates.cholesky
    return sizes.checkpoint / _DISK + sizes.blocks * computing


@cache
def capture(sizes: Sizes, draw: Draw, batch_size: int, machine: Machine) -> Needs:
    """See `capture_terms`; of each block Gram matrices in float32 are written, twice with held-out text."""
    terms = capture_terms(sizes, draw, batch_size, machine)
    hidden = terms.pop("hidden")
    host = 0 if draw.on_disk else hidden
    if machine.gpu:  # a block as it is read, and its Gram matrices as they are written
        host += sizes.block * sizes.bytes + draw.splits * 4 * sizes.gram
    disk = draw.splits * 4 * sizes.gram * sizes.blocks + (hidden if draw.on_disk else 0)
    passes = 2 if sizes.experts else 1  # an expert that saw too few tokens is given others the second time
    seconds = _START["transformers"] + _capture_seconds(sizes, draw, machine, passes) + disk / _DISK
    return _placed(machine, sum(terms.values()), host, disk, seconds)


def _working(sizes: Sizes) -> int:
    """Bytes that refine() or a warm start holds for a block's largest layer.

    A weight: as stored, in float32, in five masks, and three times the search's state of it, the correlation in
    float64, the weight and the mask (which also covers a sort and a reconstruction). A Gram entry, beside the matrix
    itself and the held-out one: the check's.
    """
    return max(m.d_out * m.d_in * (sizes.bytes + 4 + 5 + 3 * (8 + 4 + 1)) + m.d_in**2 * _CHECK for m in sizes.matrices)


def _masked(sizes: Sizes, draw: Draw, machine: Machine, start: str, seconds: float) -> Needs:
    """A job that reads a block's Gram matrices, in float32, and one weight at a time, and writes the block's masks.

    On a GPU the largest layer's Gram matrices are there once more.
    """
    grams, largest = draw.splits * 4 * sizes.gram, draw.splits * 4 * sizes.widest**2
    read = (grams + sizes.prunable * sizes.bytes) / _DISK
    masks = sizes.prunable  # a byte a weight in memory, a bit on disk
    computing = _working(sizes) + (largest if machine.gpu else 0)
    return _placed(machine, computing, grams + masks, masks / 8, _START[start] + read + seconds)


def _start_seconds(sizes: Sizes, mask: Mask, machine: Machine) -> float:
    """A warm start of a block: a sort of every row, greedy's elimination, 0.8 ns a pruned weight and column, or one of
    those that update weights as they go; one that was made elsewhere is read."""
    rates = machine.rates
    if mask.criterion is None:
        return sizes.prunable * sizes.bytes / _DISK
    if mask.criterion in _UPDATING:
        return _update_seconds(sizes, _UPDATING[mask.criterion], rates)
    if mask.criterion != "greedy":
        return sizes.prunable / rates.sort
    checks = sum(m.count * m.d_in**3 / 3 for m in sizes.matrices) / rates.cholesky
    steps = sum(m.count * m.d_out * m.d_in * (2e-7 + 8e-10 * m.d_in) for m in sizes.matrices)
    return checks + mask.sparsity * steps / rates.search


def _product_seconds(sizes: Sizes, rates: Rates) -> float:
    """A product of a block's weights with their Gram matrices."""
    return sum(m.count * 2 * m.d_out * m.d_in**2 for m in sizes.matrices) / rates.double


def _update_seconds(sizes: Sizes, products: int, rates: Rates) -> float:
    """So many such products, and one inversion of the Gram matrices."""
    inversions = sum(m.count * m.d_in**3 for m in sizes.matrices) / rates.cholesky
    return products * _product_seconds(sizes, rates) + inversions


@cache
def reconstruct(sizes: Sizes, draw: Draw, iterations: int, machine: Machine) -> Needs:
    """The new weights of a block; see `_masked`. They are all held, and written."""
    weights = sizes.prunable * sizes.bytes
    needs = _masked(sizes, draw, machine, "numba", _update_seconds(sizes, iterations, machine.rates))
    return Needs(needs.host + weights, needs.gpu, weights, needs.seconds + weights / _DISK)


@cache
def allocation(sizes: Sizes, draw: Draw) -> Needs:
    """A block's Gram matrices and Wanda scores in float32, one block after the other."""
    grams = draw.splits * 4 * sizes.gram
    read = (grams + sizes.prunable * sizes.bytes) * sizes.blocks
    return Needs(_LIBRARIES + grams + 8 * sizes.prunable, 0, 0, _START["torch"] + read / _DISK)


@cache
def warmstart(sizes: Sizes, draw: Draw, mask: Mask, machine: Machine) -> Needs:
    """The first masks of a block; see `_masked`."""
    needs = _masked(sizes, draw, machine, "torch", _start_seconds(sizes, mask, machine))
    return replace(needs, host=needs.host + _held(sizes, mask))


def _held(sizes: Sizes, mask: Mask) -> float:
    """Bytes that a warm start holds all along: one that was made elsewhere may be a file of all masks."""
    return _all_masks(sizes) if mask.criterion is None else 0


def layer_seconds(layer: Matrices, mask: Mask, rates: Rates) -> float:
    """A layer's refinement: the check of its Gram matrix, the correlations of all rows, and their swaps.

    A swap takes a core, by `engine_us`, 2 us + 1.17 ns d_in^1.3 over whole rows (16 at d_in 1536, 58 at 4096), and
    2 us + 1.3 ns d_in within N:M blocks.
    """
    d_in, swaps = layer.d_in, SWAPS * layer.d_in
    if mask.max_swaps is not None:
        swaps = min(swaps, mask.max_swaps)
    each = 2e-6 + (1.17e-9 * d_in**1.3 if mask.whole_rows else 1.3e-9 * d_in)
    products = _PASSES * 2 * layer.d_out * d_in**2 / rates.double
    return d_in**3 / 3 / rates.cholesky + products + layer.d_out * (swaps + _AGAIN) * each / rates.search


def _refine_seconds(sizes: Sizes, mask: Mask, machine: Machine) -> float:
    """The refinement of a block's layers."""
    measuring = _MEASURED * _product_seconds(sizes, machine.rates)
    return measuring + sum(layer.count * layer_seconds(layer, mask, machine.rates) for layer in sizes.matrices)


@cache
def refine(sizes: Sizes, draw: Draw, mask: Mask, machine: Machine) -> Needs:
    """The refined masks of a block; see `_masked`."""
    return _masked(sizes, draw, machine, "numba", _refine_seconds(sizes, mask, machine))


@cache
def chain(sizes: Sizes, draw: Draw, mask: Mask, iterations: int, batch_size: int, machine: Machine) -> Needs:
    """What capture, refine and reconstruct, in so many iterations, hold together; every block is run twice, its masks
    and new weights are written."""
    terms = capture_terms(sizes, draw, batch_size, machine)
    hidden = terms.pop("hidden")
    host = sizes.prunable + _held(sizes, mask) + (0 if draw.on_disk else hidden)
    if machine.gpu:
        host += sizes.block * sizes.bytes
    largest = draw.splits * 4 * sizes.widest**2
    seconds = _START["transformers"] + _capture_seconds(sizes, draw, machine, passes=2)
    seconds += sizes.blocks * (_start_seconds(sizes, mask, machine) + _refine_seconds(sizes, mask, machine))
    computing = sum(terms.values()) + _working(sizes) + largest + sizes.prunable * sizes.bytes
    disk = sizes.blocks * sizes.prunable / 8 + (hidden if draw.on_disk else 0)
    if iterations:
        disk += sizes.blocks * sizes.prunable * sizes.bytes
        seconds += sizes.blocks * _update_seconds(sizes, iterations, machine.rates)
    return _placed(machine, computing, host, disk, seconds)


def _all_masks(sizes: Sizes) -> float:
    """Bytes of a whole model's masks, a bit a weight."""
    return sizes.blocks * sizes.prunable / 8


@cache
def masks(sizes: Sizes) -> Needs:
    """All masks as bits, and those of a block as booleans."""
    held = _all_masks(sizes)
    return Needs(_LIBRARIES + held + 2 * sizes.prunable, 0, held, _START["torch"] + 8 * held / _DISK)


@cache
def assemble(sizes: Sizes) -> Needs:
    """All masks as bits, and a copy of the model, of which one tensor is in memory at a time with its mask."""
    host = _LIBRARIES + _all_masks(sizes) + sizes.largest * (sizes.bytes + 2)
    return Needs(host, 0, sizes.checkpoint, _START["torch"] + 2 * sizes.checkpoint / _DISK)


def _evaluated(
    sizes: Sizes, masked: bool, tokens: int, batch: int, seqlen: int, scored: int, machine: Machine, start: str
) -> Needs:
    """The whole model, the masks that are put on it, if any, what a batch of so many sequences holds within a block,
    and its logits; besides the greater of their copy, where a family scales them, and those of the sequences that are
    scored at a time in float32 and as log-probabilities. A GPU's host reads the model."""
    value, logits = machine.value(sizes), batch * seqlen * sizes.vocabulary
    computing = sizes.parameters * value + batch * seqlen * (_states(sizes) * value + _scores(sizes, seqlen))
    computing += logits * value + max(logits * value, 8 * scored * seqlen * sizes.vocabulary)
    computing += 16 * _all_masks(sizes) if masked else 0
    operations = tokens * (sizes.blocks * _forward(sizes, seqlen) + 2 * sizes.embedding)
    seconds = _START[start] + sizes.checkpoint / _DISK + operations / machine.products(sizes)
    return _placed(machine, computing, sizes.checkpoint if machine.gpu else 0, 0, seconds)


@cache
def perplexity(
    sizes: Sizes, masked: bool, seqlen: int, windows: int | None, batch_size: int, machine: Machine
) -> Needs:
    """See `_evaluated`; windows are scored one by one, and a text that is not limited counts as long as WikiText-2."""
    count = max(1, TEXT // seqlen) if windows is None else windows
    batch = min(batch_size, count)
    needs = _evaluated(sizes, masked, count * seqlen, batch, seqlen, 1, machine, "transformers")
    return Needs(needs.host, needs.gpu, 0, needs.seconds + _TOKENISING)


@cache
def harness(sizes: Sizes, masked: bool, tasks: int, limit: int | None, batch_size: int, machine: Machine) -> Needs:
    """See `_evaluated`; items are assumed to be short and to have four answers."""
    tokens = tasks * (limit or ITEMS) * _ANSWERS * _ITEM
    longest = 2 * _ITEM  # which comes first
    return _evaluated(sizes, masked, tokens, batch_size, longest, batch_size, machine, "lm_eval")
