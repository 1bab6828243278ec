"""Fixtures: the tables of a small study. Tests must not change them."""

import pandas as pd
import pytest
from helpers import make_study

from sparseswaps.report import tables


@pytest.fixture(scope="session")
def study() -> list[tables.Measured]:
    return make_study()


@pytest.fixture(scope="session")
def cells(study) -> pd.DataFrame:
    return tables.cells_table(study)


@pytest.fixture(scope="session")
def layers(study) -> pd.DataFrame:
    return tables.layers_table(study)
