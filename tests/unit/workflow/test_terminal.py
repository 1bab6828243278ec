"""The time left in the terminal."""

from io import StringIO
from unittest.mock import Mock

import pytest
from rich.console import Console
from rich.progress import Progress

from sparseswaps.workflow.terminal import TimeLeft, show_time_left

ESTIMATES = {"a": 10.0, "b": 30.0, "c": 60.0}


class Run:
    """Jobs that end by hand, and a clock that is set."""

    def __init__(self):
        self.now, self.ended = 5.0, set()
        self.left = TimeLeft(ESTIMATES, self.ended.__contains__, 2, lambda: self.now)

    def until(self, now, *ended):
        self.now = now
        self.ended.update(ended)
        return self.left.seconds()


def test_it_begins_with_the_plans_time_and_runs_down():
    run = Run()
    assert run.until(5) == 50
    assert run.until(15) == 40
    assert run.until(99) == 0


def test_the_pace_is_the_plans_and_more_and_more_the_runs():
    run = Run()
    assert run.until(45, "a") == pytest.approx(90 * (40 + 5) / (10 + 10))  # a tenth of the work: both count as much
    assert run.until(50) == pytest.approx(90 * (40 + 5) / (10 + 10) - 5)
    assert run.until(165, "b") == pytest.approx(60 * (160 + 5) / (40 + 10))
    assert run.until(400, "c") == 0


def test_a_run_without_estimates():
    assert TimeLeft({}, bool, 2).seconds() == 0


@pytest.mark.parametrize("limit", ["cores", "nodes"], ids=["one machine", "cluster"])
@pytest.mark.parametrize(("seconds", "said"), [(42, "42 s"), (600, "10 min"), (7500, "2.1 h")])
def test_the_bar_of_all_jobs_says_it(seconds, said, limit):
    output = StringIO()
    progress = Progress(console=Console(file=output, width=120))
    workflow = Mock()
    workflow.logger_manager.get_log_handlers.return_value = [Mock(progress=progress), Mock()]  # one has no bars
    workflow.dag.needrun_jobs.return_value = [Mock(resources={"estimate_ms": 2 * 1000 * seconds})]
    workflow.dag.finished.return_value = False
    workflow.resource_settings = Mock(**{"nodes": None, "cores": None, limit: 4})
    show_time_left(workflow, threads=2, gpu=False)
    for name in ("Total Progress", "refine"):
        progress.add_task(name, total=2)
    progress.console.print(progress.get_renderable())
    both, of_rule = output.getvalue().splitlines()
    assert both.rstrip().endswith(f"about {said} left")
    assert "left" not in of_rule
