"""A SLURM cluster of one node on this machine, and the environment in which launchers run."""

import getpass
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=0
MpiDefault=none
KillWait=30
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def environment(**more: str) -> dict[str, str]:
    """The environment of a launcher that starts this clone on one CPU device per process."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return {
        **inherited,
        "DIFFUSION_JAX": f"{sys.executable} -m diffusion_jax",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        **more,
    }


def launch(*arguments: object, status: int = 0, **more: str) -> tuple[str, str]:
    """Runs a script of launch/ to its end and returns what it printed to stdout and stderr."""
    result = subprocess.run(
        [ROOT / "launch" / str(arguments[0]), *map(str, arguments[1:])],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == status, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="session")
def launcher():
    return launch


@pytest.fixture
def start_launcher():
    """Starts a script of launch/ and ends it with the test."""
    started = []

    def start(name: str, *arguments: str, **more: str) -> subprocess.Popen:
        started.append(subprocess.Popen([ROOT / "launch" / name, *arguments], cwd=ROOT, env=environment(**more)))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Slurm:
    """A running cluster; its commands are called with `self.environment`."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.environment = environment(SLURM_CONF=str(folder / "slurm.conf"), XDG_CACHE_HOME=str(folder / "cache"))

    def __call__(self, *command: object) -> str:
        words = [str(word) for word in command]
        return subprocess.run(
            words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout.strip()

    def submit(self, *arguments: object, **more: str) -> tuple[str, str]:
        """Runs launch/slurm.sh."""
        return launch("slurm.sh", *arguments, **{**self.environment, **more})

    def state(self, job: str) -> str:
        return re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))[1]

    def start_requeued(self, job: str) -> None:
        """Starts a job that is back in the queue in two seconds, not in SLURM's two minutes.

        Within the same second the node would take the new start for the one that it was told to forget.
        """
        self.wait_for(lambda: self.state(job) == "PENDING", 60, "requeued job")
        self("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def wait_for(self, condition, seconds: float, what: str) -> None:
        """Returns when the condition holds; fails with the logs of the cluster."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"no {what} after {seconds} s\n{logs}")
            time.sleep(0.1)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """One node with four (pretended) cores."""
    missing = [program for program in ("slurmctld", "slurmd", "sbatch", "srun") if not find(program)]
    if missing:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(
            host=host, controller_port=free_port(), node_port=free_port(), user=getpass.getuser(), folder=folder
        )
    )
    cluster = Slurm(folder)
    version = subprocess.run([find("slurmd"), "-V"], capture_output=True, text=True, check=True).stdout
    if [int(number) for number in re.findall(r"\d+", version)[:2]] >= [23, 11]:
        # From here on slurmd insists on cgroups, which containers lack, unless it is told that there are none.
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    daemons = []
    try:
        for program in ("slurmctld", "slurmd"):
            with open(folder / f"{program}.out.log", "w") as log:
                daemons.append(subprocess.Popen([find(program), "-D"], env=cluster.environment, stdout=log, stderr=log))
        cluster.wait_for(lambda: "idle" in node_state(cluster), 60, "idle node")
        yield cluster
        # Jobs that a failed test has left would outlive the daemons.
        cluster("scancel", f"--user={getpass.getuser()}")
        cluster.wait_for(lambda: not cluster("squeue", "--noheader"), 60, "empty queue")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def find(program: str) -> str | None:
    """The daemons are in folders that users have not in their PATH."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")


def node_state(cluster: Slurm) -> str:
    try:
        return cluster("sinfo", "--noheader", "--format=%T")
    except subprocess.CalledProcessError:
        return "the controller does not answer yet"
