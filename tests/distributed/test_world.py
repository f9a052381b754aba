import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.distributed.world import OURS, World, find, first_node, join, leave, meeting
from trainyard.errors import ConfigError, TrainyardError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "1234",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1700",
    "SLURM_JOB_NODELIST": "gpu[07-09,12],cpu1",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}


@pytest.mark.parametrize(
    ("launcher", "environ", "expected"),
    [
        ("auto", {}, None),
        ("none", TORCHRUN, None),
        ("auto", SLURM, None),  # an sbatch script has these, too
        ("auto", TORCHRUN, World(3, 4, 1, "node0", 1234)),
        ("pytorch", TORCHRUN, World(3, 4, 1, "node0", 1234)),
        ("none", TORCHRUN | {OURS: "3"}, World(3, 4, 1, "node0", 1234)),  # what this project has started is a rank
        ("slurm", SLURM, World(5, 8, 1, "gpu07", 21900)),
        ("slurm", SLURM | {"SLURM_STEP_NODELIST": "cpu1", "SLURM_STEP_ID": "2"}, World(5, 8, 1, "cpu1", 21902)),
        ("slurm", SLURM | {"MASTER_ADDR": "a", "MASTER_PORT": "7"}, World(5, 8, 1, "a", 7)),
        ("mpi", OPENMPI, World(1, 2, 1, "127.0.0.1", 29500)),
        ("mpi", MPICH | {"MASTER_ADDR": "a"}, World(1, 2, 0, "a", 29500)),
    ],
)
def test_the_environment_says_which_rank_this_is(launcher: str, environ: Any, expected: Any) -> None:
    assert find(launcher, environ) == expected


@pytest.mark.parametrize(
    ("launcher", "environ", "said"),
    [
        ("torchrun", {}, "launcher: 'torchrun' is invalid. Expected one of auto, none, pytorch, slurm, mpi"),
        ("pytorch", {"RANK": "0"}, "WORLD_SIZE is not set. This command sets it: `torchrun"),
        ("slurm", {}, "SLURM_PROCID is not set. This command sets it: `srun"),
        ("mpi", {}, "nor PMI_RANK is set. This command sets one of them: `mpirun"),
        ("mpi", MPICH, "Set MASTER_ADDR to the host of rank 0 on all of them: `mpirun -genv MASTER_ADDR HOST …`"),
        (
            "mpi",
            {**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            "Expected mpi with MASTER_ADDR set. mpirun started ranks on several machines. Set MASTER_ADDR to the host "
            "of rank 0 on all of them: `mpirun -x MASTER_ADDR=HOST …`.",
        ),
    ],
)
def test_a_launcher_that_has_not_started_this_is_a_config_error(launcher: str, environ: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(launcher, environ)
    assert said in str(caught.value)


def test_ranks_that_meet_at_a_name_without_an_address_do_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="The ranks connect to gpu07, which cannot be resolved here") as error:
        meeting(World(0, 2, 0, "gpu07", 1))
    assert str(error.value.under("strategy")).startswith("MASTER_ADDR: ")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ConfigError, match="Set another one with torchrun's --master-addr, or with --local-addr on"):
        meeting(World(0, 2, 0, "gpu07", 1))


def test_ranks_that_are_missing_are_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        with pytest.raises(TrainyardError, match=r"after 0.5 s \(strategy.timeout\) .* Missing: ranks 1, 2\."):
            join(World(0, 3, 0, "127.0.0.1", port), timeout=0.5)
    finally:
        leave()
    with pytest.raises(TrainyardError, match="Missing: rank 0"):
        meeting(World(1, 2, 0, "127.0.0.1", port), timeout=0.5)


def test_a_port_in_use_is_not_a_missing_rank() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^MASTER_PORT: {port} is invalid. Expected a port that is free on the"):
            meeting(World(0, 2, 0, "127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("backend", ["nccl", "mpi", "fake", "glo"])
def test_a_backend_that_torch_cannot_use_on_this_device_is_a_config_error(backend: str) -> None:
    with pytest.raises(ConfigError, match="Expected auto, or a backend of this torch for device=cpu: gloo") as error:
        join(World(), backend)
    assert all(name not in error.value.options for name in ("nccl", "mpi", "fake", "undefined"))


@given(st.integers(0, 2**31), st.integers(0, 100))
def test_steps_of_slurm_meet_below_the_ports_that_linux_hands_out(job: int, step: int) -> None:
    found = find("slurm", SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
    assert 20000 <= found.port < 30000


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("a[1,3]", "a1"), ("a[01-03]-x,b", "a01-x"), ("gpu-2-[10-12]", "gpu-2-10")],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
