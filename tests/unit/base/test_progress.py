import io
import logging

import pytest

from sparseswaps.base import progress
from sparseswaps.base.progress import Part, show_progress


def test_time_left_follows_costs_and_the_things_made_before_a_unit_is_done(monkeypatch, caplog):
    monkeypatch.setattr(progress.time, "monotonic", iter([100.0, 110.0, 140.0, 200.0, 201.0]).__next__)
    caplog.set_level(logging.INFO)
    with show_progress("job", "rows", "swaps", [Part(10, 1.0, 400), Part(1000, 0.09, 4000)]) as (first, second):
        first(0, 0)  # after 10 seconds: not yet a line
        first(0, 100)  # after 40 seconds: a quarter of the first part, which is a tenth of all
        first(10, 2000)
        second(100, 500)  # one second later: not yet a line
    early = "0 of 1,010 rows, 100 swaps, 2.5 swaps/s, 0:26:00 left"
    assert caplog.messages == [early, "10 of 1,010 rows, 2,000 swaps, 20 swaps/s, 0:15:00 left"]
    caplog.clear()
    monkeypatch.setattr(progress, "EVERY", 0)
    monkeypatch.setattr(progress.time, "monotonic", iter([100.0, 110.0, 120.0]).__next__)
    # Work that makes nothing shows its units alone.
    with show_progress("job", "blocks", "", [Part(2)]) as (report,):
        report(0, 0)
        report(1, 0)
    assert caplog.messages == ["0 of 2 blocks, unknown time left", "1 of 2 blocks, 0:00:20 left"]


def test_a_terminal_has_a_bar_until_the_work_is_done(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "_DRAWN", 0)
    with show_progress("job", "rows", "swaps", [Part(4)]) as (report,):
        report(1, 10)
        assert "1 of 4 rows" in terminal.getvalue()
    assert not terminal.getvalue().split("\r")[-2].strip()


@pytest.mark.parametrize(
    ("part", "done", "made", "share"),
    [(Part(4), 1, 9, 0.25), (Part(4, likely=10), 1, 5, 0.5), (Part(4, likely=10), 3, 99, 1.0), (Part(4), 0, 9, 0)],
)
def test_the_share_of_a_part_is_by_units_or_things_made(part, done, made, share):
    assert part.share(done, made) == share
