"""The model, the text and the two lm-eval tasks that come with the project, for machines that reach no hub.

`tools/train_embedded.py` made the model, `tools/embedded_text.py` the text and the tasks.
May import: base.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
TEXT = Path(__file__).parent / "text"  # calibration.jsonl and evaluation.jsonl
RELEASE = "3.11.7"  # the release of Python whose standard library the text and the tasks are taken from
TASKS = ("embedded_cloze", "embedded_choice")
TASKS_FOLDER = Path(__file__).parent / "tasks"
