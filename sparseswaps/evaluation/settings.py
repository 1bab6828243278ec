"""The settings of evaluation, with their defaults. Importing this module does not import torch."""

from pydantic import Field

from sparseswaps.calibration.settings import TextSource


class EvaluationText(TextSource):
    """A text to measure perplexity on; configuration key `evaluation.perplexity`."""

    PRESETS = (
        "text",
        {
            "c4": {
                "files": "en/c4-validation.00000-of-00008.json.gz",
                "split": "validation",
                "documents": 1100,
                "join": " ",
                "windows": 256,
            },
            "wikitext2": {"subset": "wikitext-2-raw-v1"},
        },
    )

    split: str = Field(default="test", description="The split of a data set of the hub.")
    documents: int | None = Field(default=None, ge=1, description="Most documents, from the beginning. null: all.")
    join: str = Field(default="\n\n", description="What stands between two documents.")
    seqlen: int = Field(default=2048, ge=2, description="Tokens per window.")
    windows: int | None = Field(default=None, ge=1, description="Most windows. null: all.")
