"""The time that a run has left, in the bars of progress that `snakemake --logger rich` draws on a terminal."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from sparseswaps.workflow.plan.plan import duration

_ALL = "Total Progress"  # the bar of all jobs
_TRUST = 0.1  # the plan's pace counts as much as the run's, once this share of the work is done


def show_time_left(workflow: Any, threads: int, gpu: bool) -> None:
    """Add the time left to the progress bars of a workflow of Snakemake, if its logger draws any.

    `threads` are those of a job, and `gpu` says whether jobs run on a GPU, one at a time.
    """
    limits = workflow.resource_settings  # `nodes` is set on a cluster, else `cores`
    side_by_side = 1 if gpu else max(1, (limits.nodes or limits.cores or 1) // threads)
    for handler in workflow.logger_manager.get_log_handlers():
        progress = getattr(handler, "progress", None)
        if isinstance(progress, Progress):
            estimates = {job: job.resources.get("estimate_ms", 0) / 1000 for job in workflow.dag.needrun_jobs()}
            progress.columns = (*progress.columns, TimeLeft(estimates, workflow.dag.finished, side_by_side))


class TimeLeft(ProgressColumn):
    """The time until all jobs are done, in the bar of all jobs.

    The jobs left take as long for a second of the plan's estimate as the finished jobs took. At the beginning, when few
    have finished, the plan's own pace counts too. Between the ends of two jobs the time runs down.

    Args:
        estimates: the plan's seconds for each job.
        finished: tells whether a job is done.
        side_by_side: how many jobs can run at a time.
        clock: returns seconds.
    """

    max_refresh = 1  # seconds between two looks at the jobs

    def __init__(
        self,
        estimates: Mapping[Any, float],
        finished: Callable[[Any], bool],
        side_by_side: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.estimates, self.finished, self.side_by_side, self.clock = estimates, finished, side_by_side, clock
        self.all, self.began = sum(estimates.values()), clock()
        self.done, self.seen = 0.0, self.began  # the work that was done at the last end of a job, and when

    def render(self, task: Task) -> Text:
        """Return the time left as text, for the bar of all jobs; nothing for other bars."""
        return Text(f"about {duration(self.seconds())} left" if _ALL in task.description and not task.finished else "")

    def seconds(self) -> float:
        """Return the seconds that are left."""
        now, done = self.clock(), sum(estimate for job, estimate in self.estimates.items() if self.finished(job))
        if done != self.done:
            self.done, self.seen = done, now
        trust = _TRUST * self.all
        pace = (self.seen - self.began + trust / self.side_by_side) / ((self.done + trust) or 1)
        return max(0, (self.all - self.done) * pace - (now - self.seen))
