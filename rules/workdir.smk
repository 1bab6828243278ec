"""The working directory: who runs in it, and Snakemake's records there of what made each artifact."""

import fcntl
import os
import platform
import shutil

RECORDS = Path(".snakemake")
NO_RECORDS = (
    "results/ is here, but not Snakemake's records of what made it (.snakemake/metadata), without which changed settings "
    "go unseen. Bring .snakemake back; or, when all of results/ is current, say so with `snakemake --touch --forceall`; "
    "or delete it"
)


def drop_stale_locks():
    """Take away Snakemake's locks when whoever made them was killed, so that the same command goes on with the work.

    Each run holds a lock that ends with its process. Who is alone, on the machine that made the locks of Snakemake,
    knows them to be left over. Where it cannot be known they stay, and Snakemake says what to do.
    """
    try:
        RECORDS.mkdir(exist_ok=True)
        file = os.open(RECORDS / "host", os.O_RDWR | os.O_CREAT, 0o666)  # open until the process ends
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # others are at work
        fcntl.flock(file, fcntl.LOCK_SH)
        return
    except OSError:  # a file system without such locks, or one that cannot be written
        return
    if os.pread(file, 1000, 0).decode() == platform.node():
        shutil.rmtree(RECORDS / "locks", ignore_errors=True)
    if not any(RECORDS.glob("locks/*")):
        os.ftruncate(file, 0)
        os.pwrite(file, platform.node().encode(), 0)
    fcntl.flock(file, fcntl.LOCK_SH)


if workflow.is_main_process:
    drop_stale_locks()
    asked = {"--touch", "-t", "--forceall", "-F"} & set(sys.argv)
    if any(Path("results").glob("*/model.json")) and not any(RECORDS.glob("metadata/*")) and not asked:
        sys.exit(f"error: {NO_RECORDS}")
