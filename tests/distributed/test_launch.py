"""Launchers recognised by their variables alone, and a launcher of another MPI refused."""

import pytest

from volseg.distributed import slurm
from volseg.distributed.communicator import SerialCommunicator
from volseg.distributed.launch import check_library, check_sizes, connect
from volseg.distributed.launchers import (
    Launcher,
    cores_per_rank,
    launch_words,
    launched_rank,
    launchers,
    under_launcher,
)
from volseg.errors import LaunchError

HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "6", "SLURM_NTASKS": "6"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "6", "SLURM_PROCID": "0"}
INTERACTIVE = {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "6"}


@pytest.mark.parametrize(
    ("environment", "rank", "size"), [(HYDRA, 1, 4), (OPEN_MPI, 2, 8), (SRUN, 3, 6), ({"PMIX_RANK": "5"}, 5, None)]
)
def test_launcher_is_recognised(environment, rank, size):
    assert under_launcher(environment)
    assert launched_rank(environment) == rank
    assert launchers(environment)[0].size == size


@pytest.mark.parametrize("environment", [{}, BATCH_SCRIPT, INTERACTIVE, {"PMI_RANK": "", "PMI_SIZE": "many"}])
def test_ordinary_process_is_not_under_a_launcher(environment):
    assert not under_launcher(environment)
    assert launched_rank(environment) == 0


PMI2 = SRUN | {"PMI_RANK": "3", "PMI_SIZE": "6", "SLURM_MPI_TYPE": "pmi2"}


@pytest.mark.parametrize(
    "environment",
    [
        {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALNRANKS": "1"},
        INTERACTIVE | {"PMI_RANK": "0", "PMI_SIZE": "1"},
        INTERACTIVE | {"PMIX_RANK": "0"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_a_job_of_one_rank_is_an_ordinary_process(environment):
    assert not under_launcher(environment)


def test_what_goes_on_is_started_as_this_was():
    assert launch_words(HYDRA) == ["mpirun"]
    assert launch_words(SRUN | HYDRA) == ["mpirun"]
    assert launch_words({}) == ["mpirun"]
    assert launch_words(SRUN) == ["srun", "--kill-on-bad-exit=1"]
    assert launch_words(PMI2) == ["srun", "--mpi=pmi2", "--kill-on-bad-exit=1"]


@pytest.mark.parametrize(
    ("library", "offered", "told"),
    [
        ("MPICH Version: 5.0.2", ["none", "pmi2", "pmix"], "pmi2"),
        ("MPICH Version: 5.0.2", [], "pmi2"),
        ("MPICH Version: 5.0.2", ["none"], None),
        ("Open MPI v5.0.11, package: ...", ["none", "pmi2", "pmix"], "pmix"),
        ("Intel(R) MPI Library 2021.18 for Linux* OS", ["pmi2"], "pmi2"),
        ("Another MPI 1.0", ["none", "pmi2"], None),
    ],
)
def test_srun_is_told_what_the_library_understands(library, offered, told):
    assert slurm.mpi_type(library, offered) == told


MPICH = "MPICH Version:\t5.0.2\nMPICH configure:\t--with-pm=hydra"


@pytest.mark.parametrize(
    ("environment", "speaker"), [(OPEN_MPI, "Open MPI's mpirun"), (SRUN | {"PMIX_RANK": "3"}, "srun --mpi=pmix")]
)
def test_a_launcher_that_the_library_does_not_understand_is_refused_before_mpi_starts(
    environment, speaker, monkeypatch
):
    monkeypatch.setattr("volseg.distributed.launch.offered_types", lambda: ["none", "pmi2"])
    with pytest.raises(LaunchError, match=speaker) as caught:
        check_library(launchers(environment), MPICH, environment)
    assert ("srun --mpi=pmi2" in str(caught.value)) == ("srun" in speaker)
    check_library(launchers(environment), MPICH.replace("--with-pm=hydra", "--with-pmix"), environment)
    check_library(launchers(environment), "Open MPI v5.0.11", environment)
    check_library(launchers(HYDRA), MPICH, HYDRA)
    check_library(launchers(PMI2), MPICH, PMI2)
    with pytest.raises(LaunchError, match="started by the mpirun of MPICH or Intel MPI, but MPI is Open MPI"):
        check_library(launchers(HYDRA), "Open MPI v5.0.11", HYDRA)


def test_mpirun_inside_a_slurm_step_counts_before_the_step():
    assert launched_rank(SRUN | HYDRA) == 1


def test_no_launcher_needs_no_mpi(python):
    script = (
        "import sys; from volseg.distributed.launch import connect; c = connect(); "
        "print(type(c).__name__, c.size, 'mpi4py' in sys.modules)"
    )
    run = python(["-c", script])
    assert run.stdout.split() == [SerialCommunicator.__name__, "1", "False"]


def test_sizes_that_agree_are_accepted():
    check_sizes([Launcher("mpirun", 0, 4, 4)], 4, "MPICH")
    check_sizes([Launcher("PMIx", 0, None, None)], 3, "MPICH")
    check_sizes([Launcher("mpirun", 0, 2, 2), Launcher("srun", 0, 6, None)], 6, "one job inside another")


def test_sizes_that_differ_name_both_the_library_and_the_remedy():
    with pytest.raises(LaunchError) as caught:
        check_sizes([Launcher("mpirun", 0, 4, 4)], 1, "MPICH Version:\t5.0.2\nMPICH Release date: today\0")
    message = str(caught.value)
    assert "started 4 ranks" in message
    assert "sees 1:" in message
    assert "(MPICH Version: 5.0.2)" in message
    assert "mpirun" in message.splitlines()[1]
    assert len(message.splitlines()) == 2


def test_mpi_that_cannot_be_loaded_is_a_launch_error(monkeypatch):
    import sys

    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(LaunchError, match=r"MPI cannot be loaded(.|\n)*pip install mpich"):
        connect()


def test_cores_are_shared_among_a_machine_s_ranks(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    assert cores_per_rank({}) == 12
    assert cores_per_rank(HYDRA) == 6
    assert cores_per_rank(OPEN_MPI) == 3
    assert cores_per_rank({"PMI_RANK": "0", "PMI_SIZE": "40", "MPI_LOCALNRANKS": "40"}) == 1


def test_ranks_are_connected(mpirun, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(
        "from volseg.distributed.launch import connect\nfrom volseg.distributed.launchers import launched_rank\n"
        "c = connect()\n"
        "ranks = c.gather_all((c.rank, launched_rank(), c.size))\n"
        "if c.is_root: print(ranks)\n"
    )
    run = mpirun(3, [script])
    assert run.stdout.strip() == "[(0, 0, 3), (1, 1, 3), (2, 2, 3)]"
