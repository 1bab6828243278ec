"""A model of lm-eval whose log-likelihoods are computed block after block. Importing this module imports lm-eval."""

import logging
from collections.abc import Callable

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import halve_until_it_fits
from sparseswaps.calibration.activations import Keep
from sparseswaps.evaluation.scores import score
from sparseswaps.model.mask_file import Masks
from sparseswaps.model.weights import Weights, WeightsInMemory

_ALL = 1 << 60  # lm-eval hands over all requests together; `score` makes the batches


class BlockwiseLM(HFLM):
    """Takes tokens, contexts and windows of text from lm-eval's own class, and scores them by `score`.

    The arguments are those of `harness.evaluate`.
    """

    def __init__(
        self,
        model: PreTrainedModel | Weights,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        masks: Masks | None,
        whole: Callable[[], PreTrainedModel] | None,
        keep: Keep,
    ) -> None:
        self.weights = WeightsInMemory(model) if isinstance(model, PreTrainedModel) else model
        super().__init__(pretrained=self.weights.model, tokenizer=tokenizer, batch_size=_ALL)
        self.masks, self.whole, self.keep = masks, whole, keep
        self.sequences = batch_size  # per forward pass

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each request's continuation, and whether it is what the model would generate.

        A request is its text, and the tokens of context and continuation. A context is cut from the left where both are
        longer than the model's context, as lm-eval does.
        """
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise InputError(
                f"an answer has {longest} tokens; leave its task out, for the model's context is {self.max_length}"
            )
        inputs = [(context + answer)[-(self.max_length + 1) : -1] for _, context, answer in requests]
        answers = [answer for _, _, answer in requests]
        scores = score(self.weights, inputs, answers, self.sequences, self.masks, self.keep)
        return [(logprobs.sum().item(), bool(likeliest.all())) for logprobs, likeliest in scores]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate text as lm-eval does, with the whole model in memory."""
        logging.warning("a task generates text: the whole model is loaded into memory")
        model = self.weights.model if self.whole is None else self.whole()

        def generate(size: int) -> list[str]:
            return HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=size).generate_until(requests)

        return halve_until_it_fits(generate, self.sequences, "requests")[0]
