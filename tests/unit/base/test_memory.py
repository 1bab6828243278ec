import weakref

import pytest
import torch

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import halve_until_it_fits, map_slices


def step_of_rows(rows):
    """Return the bounds of a slice; there is memory for 3 rows from row 12 on."""
    if rows.stop - rows.start > (3 if rows.start >= 12 else 100):
        raise torch.OutOfMemoryError("CUDA out of memory")
    return rows.start, rows.stop


@pytest.mark.parametrize(
    ("count", "size", "slices", "halved"),
    [
        (20, 6, [(0, 6), (6, 12), (12, 15), (15, 18), (18, 20)], [(6, "rows", 3)]),
        (5, 64, [(0, 5)], []),
        (0, 64, [], []),
    ],
)
def test_slices_are_halved_from_the_one_that_does_not_fit(caplog, reports, count, size, slices, halved):
    assert map_slices(step_of_rows, count, size, "rows", progress=reports) == slices
    assert [record.args for record in caplog.records] == halved
    assert reports == [(stop, 0) for _, stop in slices]


def test_a_failed_step_is_freed_before_the_next_attempt():
    held = []

    def step(size):
        assert all(tensor() is None for tensor in held)
        tensor = torch.ones(size)
        held.append(weakref.ref(tensor))
        cycle = [tensor]
        cycle.append(cycle)
        if size > 3:
            raise torch.OutOfMemoryError
        return size

    assert halve_until_it_fits(step, 13, "rows") == (3, 3)
    assert len(held) == 3


@pytest.mark.parametrize("lower", [None, "seqlen"])
def test_the_error_at_size_one_names_the_settings_to_change(lower):
    def step(rows):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")

    with pytest.raises(InputError, match=f"windows.*{lower or ''}.*gpu: false") as error:
        map_slices(step, 4, 4, "windows", lower)
    assert "\n" not in str(error.value)
    assert error.value.__context__ is None  # so the error does not hold the failed tensors
