"""The compose file, started as it is: a server that lives through kills, and jobs over real files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from container_engine import Project, docker, inspected, kill_the_process, wait_until_healthy
from server_process import eventually

from service.client import Client
from service.errors import Unauthorized

pytestmark = pytest.mark.container

EXPRESSION = "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)"


def quantized(x: np.ndarray) -> np.ndarray:
    """The same by NumPy alone."""
    codes = x.dtype.type(15)
    return np.rint(np.clip(x, 0, 1) * codes) / codes


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    assert (got.dtype, got.shape, got.flags.f_contiguous) == (expected.dtype, expected.shape, expected.flags.f_contiguous)
    assert got.tobytes("A") == expected.tobytes("A")


def save_inputs(folder: Path) -> dict[str, np.ndarray]:
    """Files as people have them, by their names."""
    random = np.random.default_rng(7)
    arrays = {
        "a.npy": random.normal(0.5, 1, (500, 300)).astype(np.float32),
        "deep/er/b.npy": random.normal(0.5, 1, (7, 11, 13)),
        "deep/c.npy": np.asfortranarray(random.normal(0.5, 1, (64, 48)).astype(np.float32)),
        "none.npy": np.zeros((0, 3), np.float32),
        "one.npy": np.float32(0.3).reshape(()),
    }
    for name, array in arrays.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array)
    return arrays


def run_batch(project: Project, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The job, whose exit status is that of the command."""
    return project.compose("run", "--rm", "-T", "batch", *arguments, check=False, **{"OP": EXPRESSION, **variables})


def test_up_starts_the_server_alone(project: Project) -> None:
    project.up()
    assert len(project.containers()) == 1
    assert project.containers() == project.containers("server")
    with Client(project.url("server", 8000)) as client:
        x = np.random.default_rng(1).normal(0.5, 1, 100_000).astype(np.float32)
        assert_same_bits(client.quantize(EXPRESSION, x), quantized(x))


def test_every_service_is_bounded_and_may_do_nothing(project: Project) -> None:
    project.up("server")
    (server,) = project.containers("server")
    host = inspected(server)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert min(host["Memory"], host["NanoCpus"], host["PidsLimit"]) > 0


def test_a_killed_server_is_started_again(project: Project) -> None:
    project.up("server")
    (server,) = project.containers("server")
    restarts = inspected(server)["RestartCount"]
    kill_the_process(server)
    eventually(lambda: inspected(server)["RestartCount"] == restarts + 1, "the engine starts it again")
    wait_until_healthy(server)
    with Client(project.url("server", 8000)) as client:
        assert_same_bits(client.quantize("round", np.float32([0.5, 1.5])), np.float32([0, 2]))


def test_a_stopped_server_ends_well(project: Project) -> None:
    project.up("server")
    (server,) = project.containers("server")
    project.compose("stop", "server")
    assert inspected(server)["State"]["ExitCode"] == 0


def test_a_job_writes_the_right_bits_and_ends_with_its_own_status(project: Project, data: Path) -> None:
    arrays = save_inputs(data / "in")
    done = run_batch(project)
    assert done.returncode == 0, done.stderr
    for name, x in arrays.items():
        assert_same_bits(np.load(data / "out" / name), quantized(x))
        assert str((data / "out" / name).stat().st_uid) == project.variables["UID"]
    assert run_batch(project).returncode == 0


def test_a_job_with_a_bad_file_ends_with_1_and_does_the_others(project: Project, data: Path) -> None:
    arrays = save_inputs(data / "in")
    (data / "in" / "bad.npy").write_bytes(b"not an array")
    done = run_batch(project)
    assert done.returncode == 1
    assert "bad.npy" in done.stderr + done.stdout
    assert not (data / "out" / "bad.npy").exists()
    for name, x in arrays.items():
        assert_same_bits(np.load(data / "out" / name), quantized(x))


def test_a_job_that_is_told_nothing_ends_with_2(project: Project, data: Path) -> None:
    save_inputs(data / "in")
    assert run_batch(project, OP="").returncode == 2


def test_up_of_the_job_waits_for_a_healthy_server(project: Project, data: Path) -> None:
    arrays = save_inputs(data / "in")
    project.compose("rm", "--stop", "--force", "server")
    project.compose("up", "--no-build", "batch", OP=EXPRESSION)
    (job,) = project.containers("batch", "--all")
    assert inspected(job)["State"]["ExitCode"] == 0, docker("logs", job).stderr
    for name, x in arrays.items():
        assert_same_bits(np.load(data / "out" / name), quantized(x))


def test_up_can_end_with_the_status_of_the_job(project: Project, data: Path) -> None:
    save_inputs(data / "in")
    up = ("--profile", "batch", "up", "--no-build", "--exit-code-from", "batch", "batch")
    done = project.compose(*up, check=False, OP=EXPRESSION)
    assert done.returncode == 0, done.stderr
    (data / "in" / "bad.npy").write_bytes(b"not an array")
    assert project.compose(*up, check=False, OP=EXPRESSION).returncode == 1


def test_with_keys_only_those_who_have_one_are_served(project: Project, data: Path, tmp_path: Path) -> None:
    save_inputs(data / "in")
    keys = tmp_path / "keys.txt"
    keys.write_text("a-key\n")
    guarded = {"KEYS_FILE": str(keys), "STEQUANT_API_KEYS_FILE": "/run/secrets/keys"}
    try:
        project.up("server", **guarded)
        with Client(project.url("server", 8000), api_key="") as client, pytest.raises(Unauthorized):
            client.quantize("round", np.float32([0.5]))
        assert run_batch(project, **guarded).returncode != 0
        assert not (data / "out" / "a.npy").exists()
        assert run_batch(project, STEQUANT_API_KEY="a-key", **guarded).returncode == 0
        assert (data / "out" / "a.npy").exists()
        (server,) = project.containers("server")
        assert "a-key" not in docker("inspect", server).stdout
    finally:
        project.compose("rm", "--stop", "--force", "server")
