"""Train the embedded model, a small Llama, from random weights on the standard library of the running Python.

    python tools/train_embedded.py FOLDER    # about an hour on two CPU cores; writes FOLDER

Run the same command again to resume after an interruption: the training state is saved in FOLDER.state. To ship the
model, copy FOLDER to sparseswaps/embedded/model.

The optimiser is Muon for the matrices of the blocks and AdamW for the other parameters. The learning rate rises during
a warm-up, is constant, and falls linearly to zero over the last quarter. The seed and the step alone decide a batch.
"""

import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from embedded_text import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparseswaps.base.files import write_atomically

END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """All settings of the training."""

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    context: int = 256
    batch: int = 16
    steps: int = 10000
    warmup: int = 200
    decay: float = 0.25
    lr: float = 6e-3
    weight_decay: float = 0.1
    seed: int = 0


def train_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. Its one special token separates documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=recipe.context
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return all documents as one int64 vector, with an end token after each document."""
    end = tokenizer.eos_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return torch.tensor([token for document in encoded for token in (*document.ids, end)])


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the factor on `recipe.lr` at one step: warm-up, constant, linear fall to zero."""
    left = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, left)


def optimisers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for the other parameters."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    return [
        torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    recipe: Recipe, stream: torch.Tensor, state_file: Path, log: Callable[[str], None], every: int = 250
) -> tuple[LlamaForCausalLM, float]:
    """Train on a token stream (int64 [tokens]) up to `recipe.steps`, from the state in `state_file` if it exists.

    Saves the state every `every` steps. Returns the float32 model and the seconds of all runs together.
    """
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.key_value_heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    steppers = optimisers(model, recipe)
    start, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        start, seconds = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(steppers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        log(f"resumed at step {start}")
    began, running = time.time(), math.nan
    offsets = torch.arange(recipe.context)
    for step in range(start, recipe.steps):
        draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        starts = torch.randint(len(stream) - recipe.context, (recipe.batch, 1), generator=draw)
        batch = stream[starts + offsets]
        for optimiser in steppers:
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * learning_rate(step, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in steppers:
            optimiser.step()
            optimiser.zero_grad()
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        done = step + 1
        if done % every == 0 or done == recipe.steps:
            spent = seconds + time.time() - began
            state = {"step": done, "seconds": spent, "model": model.state_dict()}
            state["optimisers"] = [optimiser.state_dict() for optimiser in steppers]
            with write_atomically(state_file) as partial:
                torch.save(state, partial)
            log(f"step {done} of {recipe.steps}: loss {running:.3f}, {spent:.0f} s")
    return model, seconds + time.time() - began


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], context: int) -> float:
    """Return the cross-entropy of disjoint windows, in bits per byte of text."""
    stream = token_stream(tokenizer, texts)
    windows = stream[: len(stream) // context * context].view(-1, context)
    nats = torch.stack([model(input_ids=w[None], labels=w[None]).loss.double() for w in windows]).mean()
    tokens_per_byte = len(stream) / sum(len(text.encode()) for text in texts)
    return float(nats * tokens_per_byte / math.log(2))


def build(folder: Path, recipe: Recipe, state_file: Path, log: Callable[[str], None]) -> None:
    """Train on the training split and write tokenizer, bf16 checkpoint, recipe and model card to a new `folder`."""
    texts = [text for _, text in documents("train")]
    tokenizer = train_tokenizer(texts, recipe)
    stream = token_stream(tokenizer, texts)
    log(f"{len(texts)} modules, {len(stream)} tokens")
    model, seconds = train(recipe, stream, state_file, log)
    model = model.eval().to(torch.bfloat16).float()  # measured in the precision that is shipped
    evaluation = [text for _, text in documents("evaluation")]
    bits = bits_per_byte(model, tokenizer, evaluation, recipe.context)
    folder.mkdir()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {
        "parameters": model.num_parameters(),
        "training_modules": len(texts),
        "training_tokens_distinct": len(stream),
        "training_tokens_seen": recipe.steps * recipe.batch * recipe.context,
        "seconds": round(seconds),
        "held_out_bits_per_byte": round(bits, 4),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    (folder / "training.json").write_text(json.dumps({"recipe": asdict(recipe), "facts": facts}, indent=2) + "\n")
    (folder / "README.md").write_text(card(recipe, facts))
    log(f"held-out bits per byte {bits:.3f}")


def card(recipe: Recipe, facts: dict) -> str:
    """Return the model card, in Markdown."""
    return f"""---
license: apache-2.0
library_name: transformers
---
# The embedded model of SparseSwaps

A Llama of {facts["parameters"]:,} parameters ({recipe.layers} blocks, width {recipe.hidden_size}, feed-forward
{recipe.intermediate_size}, {recipe.heads} heads of which {recipe.key_value_heads} for keys and values, context
{recipe.context}, byte-level BPE vocabulary of {recipe.vocab_size}, tied embeddings), in bfloat16.

**Use**: to show and test pruning where no model hub can be reached. It continues Python source text, badly. It
has no other use.

**Training**: {recipe.steps:,} steps of {recipe.batch} x {recipe.context} tokens, {facts["training_tokens_seen"]:,}
tokens in all ({facts["training_tokens_seen"] / facts["parameters"]:.0f} per parameter) from
{facts["training_tokens_distinct"]:,} distinct ones: {facts["training_modules"]:,} modules of the standard library of
Python {facts["python"]}, test suite included, chosen by a hash of the module's name. Muon and AdamW, seed
{recipe.seed}, {facts["seconds"] / 60:.0f} minutes on a two-core CPU (torch {facts["torch"]}).
`training.json` holds the whole recipe. `tools/train_embedded.py` of the project trained the model.

**Held-out loss**: {facts["held_out_bits_per_byte"]:.3f} bits per byte on the evaluation split (modules that neither
training nor calibration reads), windows of {recipe.context} tokens.

**Source**: the Python standard library, PSF licence. Of its text, this folder holds the tokenizer's merges alone.
"""


if __name__ == "__main__":
    target = Path(sys.argv[1])
    state = target.with_name(f"{target.name}.state")
    with write_atomically(target) as partial:
        build(partial, Recipe(), state, print)
    state.unlink()
