import pytest
from helpers import tiny_study

from sparseswaps.workflow.grid import Cell, Grid
from sparseswaps.workflow.study import load_study


@pytest.fixture
def config(tiny_model):
    return tiny_study(tiny_model)


def test_cells_are_all_combinations_but_the_excluded(config):
    config |= {"seeds": [0, 1], "warmstarts": ["wanda", "ria"]}
    config["exclude"] = [{"pattern": 0.6, "warmstart": "ria"}, {"seed": 1, "refinement": ["swaps"]}]
    cells = Grid(load_study(config)).cells
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 2 - 4 - 4 + 1
    assert Cell("tiny", "stdlib", 1, "2of4", "ria", "none") in cells
    assert Cell("tiny", "stdlib", 0, "60pct", "ria", "none") not in cells
    assert Cell("tiny", "stdlib", 1, "2of4", "ria", "swaps") not in cells


def test_reconstructions_are_a_coordinate_that_folders_name_after_the_refinement(config):
    config |= {"reconstructions": {"ls": {}, "admm": {"method": "admm"}}, "warmstarts": ["wanda", "sparsegpt"]}
    config["exclude"] = [{"reconstruction": "none", "warmstart": "sparsegpt"}, {"reconstruction": "admm"}]
    cells = Grid(load_study(config)).cells
    assert len(cells) == 2 * 2 * 2 + 2 * 2
    assert {cell.method for cell in cells if cell.warmstart == "sparsegpt"} == {"none+ls", "swaps+ls"}
    assert cells[0].folder == "tiny/stdlib/seed0/60pct/wanda/none"
    assert cells[1].folder == "tiny/stdlib/seed0/60pct/wanda/none+ls"


def test_named_patterns_are_taken_by_their_name(config):
    owl = {"name": "60%-owl", "sparsity": "60%", "owl": {}}
    exclude = [{"pattern": "60%-owl", "refinement": "none"}]
    grid = Grid(load_study(config | {"patterns": ["60%", owl], "exclude": exclude}))
    assert [cell.pattern for cell in grid.cells] == ["60pct", "60pct", "60pct-owl"]
    budget = grid.patterns["60pct-owl"]
    assert (budget.label, budget.uniform, budget.owl) == ("60%-owl", False, {"threshold": 5, "spread": 0.08})
    assert grid.patterns["60pct"].uniform


def test_rows_differ_where_the_method_lets_them(config, tiny_model):
    config["refinements"]["matrix"] = {"between_rows": True}
    theirs = {"name": "theirs", "from": str(tiny_model)}
    grid = Grid(load_study(config | {"patterns": ["60%"], "warmstarts": ["wanda", "sparsegpt", theirs]}))
    assert grid.imported == {"wanda": None, "sparsegpt": None, "theirs": str(tiny_model)}
    methods = [("wanda", "swaps"), ("wanda", "matrix"), ("sparsegpt",), ("theirs",)]
    assert [grid.counting_rule(*method) for method in methods] == ["rows", "matrix", "matrix", "roughly"]
    assert grid.blocks == {"tiny": ["block00", "block01"]}
