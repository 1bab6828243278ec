"""A SLURM of one node on this machine, from Debian's packages: its files are in a folder of its own, and gone after."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

PACKAGES = "slurmctld slurmd slurm-client munge"
CONFIGURED = Path("/etc/slurm/slurm.conf")  # where srun looks inside of a job: the plugin drops SLURM_CONF there

# Processors and memory are what is said here, not what the machine has (config_overrides): nothing is bound to them.
SLURM_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=1,sched_min_interval=0,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=2
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=other Nodes={host} MaxTime=INFINITE State=UP
"""


class Job(NamedTuple):
    """What SLURM knows of a job, running or over."""

    id: str
    state: str
    what: str  # the plugin's comment: rule and wildcards
    cpus: int
    memory: str
    limit: str
    gpus: str
    start: str
    end: str
    partition: str
    nice: str


def jobs() -> list[Job]:
    """All jobs that the cluster has seen, in the order of their submission."""
    fields = "JobID:|,State:|,Comment:|,NumCPUs:|,MinMemory:|,TimeLimit:|,tres-per-job:|,StartTime:|,EndTime:|,"
    fields += "Partition:|,Nice:"
    rows = _output("squeue", "--states=all", "--noheader", "--sort=i", f"--Format={fields.replace(':', ':255')}")
    found = [Job(*(value.strip() for value in row.split("|"))) for row in rows.splitlines()]
    return [job._replace(cpus=int(job.cpus)) for job in found]


def unavailable() -> str | None:
    """Why no cluster can be started here, for people; None where one can."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: as root, `apt-get install --no-install-recommends {PACKAGES}`"
    if os.geteuid() != 0:
        return "only root can start a SLURM"
    if CONFIGURED.exists() and not CONFIGURED.is_symlink():
        return f"{CONFIGURED} exists: this machine has a SLURM of its own, which is left alone"
    return None


@contextmanager
def cluster(cpus: int, gpus: int = 2) -> Iterator[None]:
    """Start a cluster and wait until its node is idle; afterwards cancel its jobs and stop it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, host=host, cpus=cpus, gpus=gpus))
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
        for number in range(gpus):  # devices they must be for CUDA_VISIBLE_DEVICES: clones of /dev/null
            os.mknod(folder / f"gpu{number}", 0o020666, os.makedev(1, 3))
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o400)
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        CONFIGURED.unlink(missing_ok=True)  # a link that a killed test left
        CONFIGURED.symlink_to(folder / "slurm.conf")
        stack.callback(CONFIGURED.unlink)
        files = {"socket": "munge", "key-file": "key", "pid-file": "munged.pid", "log-file": "munged.log"}
        files["seed-file"] = "munged.seed"
        munged = ["munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in files.items())]
        at_home = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}  # gres.conf is looked for beside it
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            daemon = subprocess.Popen(command, stdout=log, stderr=log, env=at_home)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            if command is munged:
                _wait(lambda: (folder / "munge").exists(), 30)
        if not _wait(lambda: "idle" in _output("sinfo", "--noheader", "--format=%T"), 120):
            logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in folder.glob("*.out"))
            raise RuntimeError(f"no idle node after two minutes\n{logs}")
        try:
            yield
        finally:
            _output("scancel", "--signal=KILL", "--user=root")
            _output("scancel", "--user=root")
            _wait(lambda: not _output("squeue", "--noheader"), 60)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _wait(true, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
