"""The settings of `prune` and of the command line, with their defaults. Importing this module does not import torch."""

from sparseswaps.calibration.settings import BatchSize, Calibration, Seed
from sparseswaps.layer.criteria import Criterion
from sparseswaps.layer.settings import Reconstruction, RefinementSettings


class PruneSettings(Calibration, RefinementSettings):
    """The arguments of `prune` that are keys of the workflow's configuration."""

    text: str = "embedded"
    warmstart: Criterion = "wanda"
    seed: Seed = 0
    reconstruction: Reconstruction | None = None
    batch_size: BatchSize


DEFAULTS = PruneSettings()
