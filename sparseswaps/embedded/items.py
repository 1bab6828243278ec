"""The items of the embedded lm-eval tasks. `embedded/tasks/*.yaml` name this module, since lm-eval looks for relative
paths of data in the working directory."""

import json

from sparseswaps.embedded import TASKS_FOLDER


def read(file: str, **_metadata) -> dict:
    """Return the items of a task as lm-eval reads a data set: one split, `test`."""
    from datasets import Dataset

    lines = (TASKS_FOLDER / file).read_text(encoding="utf-8").split("\n")
    return {"test": Dataset.from_list([json.loads(line) for line in lines if line])}
