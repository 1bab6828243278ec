import pytest
import torch
from families import families, tiny
from helpers import mask_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from sparseswaps.evaluation import scores
from sparseswaps.evaluation.perplexity import perplexity
from sparseswaps.evaluation.scores import score
from sparseswaps.model.checkpoint import Checkpoint, write_pruned
from sparseswaps.model.description import describe
from sparseswaps.model.mask_file import read_mask_file
from sparseswaps.model.masked import load_pruned
from sparseswaps.model.weights import WeightsInMemory, WeightsOnDisk

LENGTHS = [(12, 11), (3, 1), (7, 7), (3, 3), (1, 1), (9, 4)]  # of inputs and targets
LLAMA = dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)


def items():
    """Return inputs and targets of many lengths; some inputs are there twice, with other targets."""
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randint(64, (length,), generator=draw).tolist() for length, _ in LENGTHS]
    targets = [torch.randint(64, (count,), generator=draw).tolist() for _, count in LENGTHS]
    return [*inputs, inputs[0], inputs[5]], [*targets, [5], [1, 2, 3, 4, 5, 6]]


@torch.no_grad()
def direct(model, inputs, targets):
    """Return the log-probabilities of targets from plain forward passes, a sequence at a time."""
    rows = []
    for ids, wanted in zip(inputs, targets, strict=True):
        logprobs = model(input_ids=torch.tensor([ids])).logits[0, -len(wanted) :].float().log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(wanted)[:, None])[:, 0]
        rows.append((chosen, logprobs.argmax(-1) == torch.tensor(wanted)))
    return rows


def assert_same(scored, expected):
    for (logprobs, likeliest), (other, same) in zip(scored, expected, strict=True):
        torch.testing.assert_close(logprobs, other, rtol=1e-4, atol=1e-4)
        assert torch.equal(likeliest, same)


@families
def test_blocks_from_files_score_as_the_whole_pruned_model(config, tmp_path):
    tiny(config).save_pretrained(tmp_path / "base", max_shard_size="5KB")
    described = describe(tmp_path / "base")
    pruned = mask_file(tmp_path / "base", tmp_path / "masks.safetensors")
    masks, _ = read_mask_file(tmp_path / "masks.safetensors")
    whole = load_pruned(described, masks, "cpu")
    assert any((tensor == 0).float().mean() == 0.5 for tensor in whole.state_dict().values())
    expected = direct(whole, *items())
    assert_same(score(WeightsOnDisk(described, "cpu"), *items(), batch_size=3, masks=masks), expected)
    assert_same(score(whole, *items(), batch_size=2), expected)
    write_pruned(Checkpoint(tmp_path / "base"), pruned, tmp_path / "pruned", {})
    assert_same(score(WeightsOnDisk(describe(tmp_path / "pruned"), "cpu"), *items(), batch_size=8), expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_perplexity_is_the_same_in_memory_and_from_files(family, tied, tmp_path):
    small = LlamaConfig(**LLAMA) if family == "llama" else GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)
    small.tie_word_embeddings = tied
    tiny(small).bfloat16().save_pretrained(tmp_path)
    cut = torch.randint(64, (7, 20), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    measured = perplexity(WeightsOnDisk(describe(tmp_path), "cpu"), cut, 3)
    assert measured == perplexity(WeightsInMemory(model), cut, 3) == perplexity(model, cut, 3)  # bit by bit
    losses = [model(input_ids=window[None], labels=window[None]).loss.item() for window in cut]
    assert measured.nll == pytest.approx(sum(losses) / 7, rel=1e-6)


def test_files_that_hold_the_head_alone_serve_for_the_embeddings(tmp_path):
    model = tiny(LlamaConfig(**LLAMA, tie_word_embeddings=True))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    assert "lm_head.weight" in Checkpoint(tmp_path).files
    scored = score(WeightsOnDisk(describe(tmp_path), "cpu"), *items(), batch_size=3)
    assert_same(scored, direct(model, *items()))


def test_logits_are_made_for_a_few_tokens_at_a_time(monkeypatch):
    model, sizes = tiny(LlamaConfig(**LLAMA)), []
    expected = score(model, *items(), batch_size=4)
    model.lm_head.register_forward_hook(lambda _module, args, _output: sizes.append(args[0].shape[1]))
    monkeypatch.setattr(scores, "LOGITS", 3 * 64)
    assert_same(score(model, *items(), batch_size=4), expected)
    assert max(sizes) == 3
    assert sum(sizes) == sum(map(len, items()[1]))


def test_equal_inputs_are_run_once_and_hidden_states_may_be_kept_elsewhere(reports):
    model, stored = tiny(LlamaConfig(**LLAMA)), []

    def keep(tensor):
        stored.append(tensor.clone())
        return stored[-1].clone

    scored = score(model, *items(), batch_size=2, keep=keep, progress=reports)
    assert_same(scored, direct(model, *items()))
    assert sum(map(len, stored)) == 3 * len(LENGTHS)  # before each of two blocks, and after them
    assert reports[-1] == (len(LENGTHS), 2 * len(LENGTHS))


def test_a_long_text_goes_through_the_blocks_in_parts(monkeypatch, reports):
    model = tiny(LlamaConfig(**LLAMA))
    expected = score(model, *items(), batch_size=2)
    monkeypatch.setattr(scores, "TOKENS", 24)
    assert_same(score(model, *items(), batch_size=2, progress=reports), expected)
    assert sorted({done for done, _ in reports}) == [0, 2, 5, 6]  # of lengths 12 9, 7 3 3, 1
    assert reports[-1] == (len(LENGTHS), 2 * len(LENGTHS))
