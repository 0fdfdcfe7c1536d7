"""A Slurm of two machines on this one, for tests: munged, slurmctld and two slurmd, on loopback and in a folder.

Each slurmd has UTS and mount namespaces of its own: another host name, and another /dev/shm, in which the ranks of a
machine share memory. Needs root, and Debian's packages slurmctld, slurmd, slurm-client and munge.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NODES = ("bed1", "bed2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo", "scancel", "unshare")
_MACHINE = "hostname {node} && mount -t tmpfs tmpfs /dev/shm && exec slurmd -D -N {node} -f {configuration}"
_CONFIGURATION = """
ClusterName=bed
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
MpiDefault=none
ReturnToService=2
KillWait=5
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why there can be no such Slurm here; None where there can."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "slurmd needs root"
    if subprocess.run(["unshare", "-u", "-m", "true"], capture_output=True).returncode:
        return "this machine gives no namespaces of its own to a process"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Slurm:
    """A running one; `environment` is what its commands need."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: object, timeout: float = 120, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the test fails after `timeout` seconds."""
        return subprocess.run(
            [str(word) for word in command], env=dict(self.environment), cwd=cwd, timeout=timeout, text=True,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip

    def submit(self, script: Path, *arguments: object) -> int:
        """Submit a batch script, in its own folder: the number of the job."""
        run = self.run("sbatch", "--parsable", script, *arguments, cwd=script.parent)
        assert run.returncode == 0, run.stderr
        return int(run.stdout)

    def facts(self, job: int) -> dict[str, str]:
        """What scontrol says of a job: JobState, ExitCode, Restarts ..."""
        run = self.run("scontrol", "show", "job", job)
        return dict(word.split("=", 1) for word in run.stdout.split() if "=" in word)

    def wait(self, job: int, states: tuple[str, ...], seconds: float = 150) -> dict[str, str]:
        """Wait until a job is in one of these states; fails after so many seconds."""
        deadline = time.monotonic() + seconds
        while (facts := self.facts(job)).get("JobState") not in states:
            assert time.monotonic() < deadline, f"job {job}: {facts.get('JobState')}, {facts.get('Reason')}"
            time.sleep(0.3)
        return facts

    def wait_until_idle(self, seconds: float = 30) -> None:
        """Wait until all machines are there and nothing of a job is left on them; fails after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            states = self.run("sinfo", "--noheader", "-o", "%T %D").stdout.split()
            if states == ["idle", str(len(NODES))] and not self.step_daemons():
                return
            assert time.monotonic() < deadline, self.run("sinfo", "-N").stdout
            time.sleep(0.2)

    def step_daemons(self) -> list[int]:
        """The processes of this Slurm that look after a step of a job."""
        mine = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        daemons = []
        for process in self.run("pgrep", "-f", "^slurmstepd: ").stdout.split():
            try:
                if mine in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                    daemons.append(int(process))
            except OSError:  # ended meanwhile
                continue
        return daemons


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def slurm(folder: Path, environment: Mapping[str, str]) -> Iterator[Slurm]:
    """Bring it up in an empty folder, with a short path, and end it again. Two cores a machine."""
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=2 CoresPerSocket=2 RealMemory=8000"
        for name, port in zip(NODES, ports, strict=True)
    )
    text = _CONFIGURATION.format(folder=folder, controller=controller, nodes=nodes, names=",".join(NODES))
    configuration, key = folder / "slurm.conf", folder / "munge.key"
    configuration.write_text(text)
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    programs = f"{Path(sys.executable).parent}:{_path()}"
    variables = {"SLURM_CONF": str(configuration), "PATH": programs}
    bed = Slurm(folder, dict(environment) | variables)
    names = [f"--{name}={folder}/munge.{end}" for name, end in (
        ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"), ("key-file", "key"),
    )]  # fmt: skip
    commands = [
        ["munged", "--foreground", "--force", *names],
        ["slurmctld", "-D", "-f", configuration],
        *(
            ["unshare", "-u", "-m", "sh", "-c", _MACHINE.format(node=node, configuration=configuration)]
            for node in NODES
        ),
    ]
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"daemon{number}.log").open("w") as log:
                processes.append(subprocess.Popen(command, env=dict(bed.environment), stdout=log, stderr=log))
            while number == 0 and not (folder / "munge.socket").exists():
                assert processes[0].poll() is None, (folder / "daemon0.log").read_text()
                time.sleep(0.05)
        bed.wait_until_idle()
        yield bed
    finally:
        bed.run("scancel", "--user=root")
        deadline = time.monotonic() + 30
        while bed.run("squeue", "--noheader").stdout.strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in bed.step_daemons():  # of a step that does not end; its machine's daemon would leave it behind
            with suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGKILL)
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
