"""The model and the text that come with the project, for machines that reach no hub."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
