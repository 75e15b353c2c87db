"""What a job does when servers fail: it waits, sends again, asks another, and says so when it gives up."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import numpy as np
import pytest
from batch_trees import BAD, DONE, GAVE_UP, USAGE, Batch, npy, numbers, outputs, write
from scripted_server import Asked, Drop, Problem, Raw, scripted

X = numbers(1000)
# 1 000 numbers in chunks of 400 bytes are 10 chunks.
CHUNKS = ("--chunk-bytes", "400")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one file of ten chunks."""
    return write(tmp_path / "in", {"x.npy": npy(X)})


def rounded(dest: Path) -> bool:
    """Whether the one output is right."""
    return outputs(dest) == {"x.npy": npy(np.rint(X))}


OVERLOADED = Problem(429, "overloaded", {"Retry-After": "0"})
NOT_READY = Problem(503, "not_ready", {"Retry-After": "0"})


@pytest.mark.parametrize(
    "failure",
    [
        OVERLOADED,
        NOT_READY,
        Problem(503, "out_of_memory", {"Retry-After": "0"}),
        Problem(500, "internal_error"),
        Problem(504, "deadline_exceeded"),
        Drop(0),
        Drop(200),
        Raw(b"no array"),
        Raw(npy(np.zeros(3))),
        Raw(b"{}", "application/json"),
    ],
    ids=str,
)
def test_a_chunk_that_fails_is_sent_again(tmp_path: Path, source: Path, batch: Batch, failure: Problem | Drop | Raw) -> None:
    def script(asked: Asked) -> Problem | Drop | Raw | None:
        return failure if asked.number in (2, 3, 7) else None

    with scripted(script) as server:
        ended = batch.json(source, tmp_path / "out", *CHUNKS, "--url", server.url, "--concurrency", 1)
    assert ended.code == DONE
    assert rounded(tmp_path / "out")
    assert ended.summary["chunks"] == {"sent": 10, "retried": 3, "skipped": 0}


def test_a_connection_that_was_closed_meanwhile_is_made_again_at_once(tmp_path: Path, source: Path, batch: Batch) -> None:
    with scripted(lambda asked: Drop() if asked.number in (2, 4) else None) as server:
        ended = batch.json(source, tmp_path / "out", *CHUNKS, "--url", server.url, "--concurrency", 1)
    assert ended.code == DONE
    assert rounded(tmp_path / "out")
    assert ended.summary["chunks"] == {"sent": 10, "retried": 0, "skipped": 0}
    assert len(server.chunks) == 12


def test_a_file_that_the_server_always_fails_on_is_bad_and_the_others_are_done(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"good.npy": npy(X), "poison.npy": npy(X[:7])})

    def script(asked: Asked) -> Problem | None:
        return Problem(500, "internal_error") if not asked.probe and asked.length < 300 else None

    with scripted(script) as server:
        ended = batch.json(source, tmp_path / "out", "--url", server.url, "--retries", 2)
    assert ended.code == BAD
    assert list(outputs(tmp_path / "out")) == ["good.npy"]
    ((bad),) = ended.summary["bad"]
    assert bad["path"].endswith("poison.npy")
    assert "3 attempts" in bad["reason"]
    assert sum(asked.length < 300 for asked in server.chunks) == 3


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (Problem(401, "unauthorized"), "unauthorized"),
        (Problem(404, "not_found"), "not_found"),
        (Problem(422, "unknown_operator"), "unknown_operator"),
        (Problem(413, "body_too_large"), "--chunk-bytes"),
    ],
    ids=str,
)
def test_a_refusal_that_every_file_would_meet_ends_the_job_before_anything_is_sent(
    tmp_path: Path, source: Path, batch: Batch, problem: Problem, word: str
) -> None:
    with scripted(lambda _: problem) as server:
        ended = batch(source, tmp_path / "out", "--url", server.url)
    assert ended.code == USAGE
    assert word in ended.err
    assert server.chunks == []


def test_a_refusal_of_one_file_makes_that_file_bad(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"good.npy": npy(X), "odd.npy": npy(X[:7])})

    def script(asked: Asked) -> Problem | None:
        return Problem(422, "not_allowed") if not asked.probe and asked.length < 300 else None

    with scripted(script) as server:
        ended = batch.json(source, tmp_path / "out", "--url", server.url)
    assert ended.code == BAD
    assert [bad["reason"] for bad in ended.summary["bad"]] == ["scripted not_allowed [not_allowed]"]


def test_fewer_chunks_are_in_flight_after_a_refusal_and_more_again_after_answers(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {"x.npy": npy(numbers(4000))})
    together = threading.Barrier(4)
    risen = threading.Event()
    seen: list[int] = []

    def script(asked: Asked) -> Problem | None:
        if asked.probe:
            return None
        if len(server.chunks) <= 4:
            together.wait(30)  # four at once, all refused
            return OVERLOADED
        with server.lock:
            seen.append(server.at_once)
        if server.at_once >= 3:
            risen.set()
        elif len(server.chunks) > 50:
            risen.wait(30)  # for a third beside the two: however slowly they come, by now there may be three
        return None

    with scripted(script) as server:
        ended = batch.json(source, tmp_path / "out", "--chunk-bytes", 160, "--url", server.url, "--concurrency", 4)
    assert ended.code == DONE
    assert ended.sent == 100
    assert max(seen[:2]) <= 2
    assert risen.is_set()


def test_a_job_gives_up_when_nothing_answers_and_goes_on_later_where_it_was(tmp_path: Path, source: Path, batch: Batch) -> None:
    def script(asked: Asked) -> Problem | None:
        return None if asked.probe or len(server.chunks) <= 4 else NOT_READY

    arguments = (source, tmp_path / "out", *CHUNKS, "--concurrency", 1)
    with scripted(script) as server:
        ended = batch.json(*arguments, "--url", server.url, "--give-up-after", 0.2)
    assert (ended.code, ended.summary["status"], ended.sent) == (GAVE_UP, "gave_up", 4)
    assert "0.2 s" in ended.err
    assert outputs(tmp_path / "out") == {}
    with scripted() as server:
        ended = batch.json(*arguments, "--url", server.url)
    assert ended.code == DONE
    assert ended.summary["chunks"] == {"sent": 6, "retried": 0, "skipped": 4}
    assert rounded(tmp_path / "out")


def test_a_server_that_is_not_there_is_waited_for_and_then_given_up(tmp_path: Path, source: Path, batch: Batch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        ended = batch.json(source, tmp_path / "out", "--url", url, "--give-up-after", 0.3)
    assert ended.code == GAVE_UP
    assert url in ended.err


def test_a_silent_server_is_not_waited_for_longer_than_the_timeout(tmp_path: Path, source: Path, batch: Batch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ended = batch.json(source, tmp_path / "out", "--url", url, "--timeout", 0.1, "--give-up-after", 0.2, "--retries", 100)
    assert ended.code == GAVE_UP
    assert "no answer within 0.1 s" in ended.err


def test_several_servers_are_asked_in_turns(tmp_path: Path, source: Path, batch: Batch) -> None:
    with scripted() as one, scripted() as other:
        ended = batch.json(source, tmp_path / "out", *CHUNKS, "--url", one.url, "--url", other.url, "--concurrency", 1)
    assert ended.code == DONE
    assert rounded(tmp_path / "out")
    assert [len(one.chunks), len(other.chunks)] == [5, 5]


def test_a_dead_server_among_several_does_not_matter(tmp_path: Path, source: Path, batch: Batch) -> None:
    with socket.socket() as taken, scripted() as steady:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        ended = batch.json(source, tmp_path / "out", *CHUNKS, "--url", dead, "--url", steady.url)
    assert ended.code == DONE
    assert rounded(tmp_path / "out")
    assert len(steady.chunks) == 10


def test_a_unix_socket_may_be_used(tmp_path: Path, source: Path, batch: Batch) -> None:
    with scripted(uds=tmp_path / "socket") as server:
        ended = batch.json(source, tmp_path / "out", *CHUNKS, "--uds", tmp_path / "socket")
    assert ended.code == DONE
    assert rounded(tmp_path / "out")
    assert len(server.chunks) == 10


def test_the_key_of_the_environment_and_the_path_of_the_url_are_sent(
    tmp_path: Path, source: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEQUANT_API_KEY", "secret")
    with scripted() as server:
        assert batch(source, tmp_path / "out", "--url", f"{server.url}/behind/a/proxy/").code == DONE
    for asked in server.asked:
        assert asked.headers["authorization"] == "Bearer secret"
        assert asked.path.startswith("/behind/a/proxy/quantize?op=round")


@pytest.mark.parametrize("url", ["nowhere", "ftp://host", "http://user:word@host", "http://host/?query"])
def test_what_is_no_address_is_refused(tmp_path: Path, source: Path, batch: Batch, url: str) -> None:
    ended = batch(source, tmp_path / "out", "--url", url)
    assert ended.code == USAGE
    assert "--url" in ended.err
    assert not (tmp_path / "out").exists()


def test_an_encrypted_connection_needs_a_certificate_that_is_trusted(tmp_path: Path, source: Path, batch: Batch) -> None:
    with scripted() as server:
        url = server.url.replace("http:", "https:")
        ended = batch(source, tmp_path / "out", "--url", url, "--give-up-after", 0)
    assert ended.code == GAVE_UP
    assert ssl.SSLError.__name__.lower()[:3] in ended.err.lower()


# Whole tensors ---------------------------------------------------------------------------------------------


def test_whole_tensors_that_are_too_large_for_the_server_are_named_before_anything_is_sent(tmp_path: Path, batch: Batch) -> None:
    source = write(tmp_path / "in", {f"{n}.npy": npy(numbers(n)) for n in (10, 100, 1000, 2000)})

    def script(asked: Asked) -> Problem | None:
        return Problem(413, "body_too_large") if asked.length > 2000 else None

    with scripted(script) as server:
        ended = batch(source, tmp_path / "out", "--url", server.url, op="clamp_by_linear")
    assert ended.code == USAGE
    assert "1000.npy (4000 bytes)" in ended.err
    assert "2000.npy (8000 bytes)" in ended.err
    assert "/100.npy" not in ended.err
    assert server.chunks == []
    assert outputs(tmp_path / "out") == {}


def test_a_real_server_says_what_it_takes(tmp_path: Path, batch: Batch) -> None:
    from server_process import serving

    source = write(tmp_path / "in", {"small.npy": npy(numbers(10)), "large.npy": npy(numbers(1000))})
    with serving("--max-body-bytes", "2000") as server:
        place = ("--url", server.url)
        ended = batch(source, tmp_path / "whole", *place, op="clamp_by_linear")
        assert (ended.code, "large.npy (4000 bytes)" in ended.err) == (USAGE, True)
        ended = batch(source, tmp_path / "out", *place)
        assert (ended.code, "smaller --chunk-bytes" in ended.err) == (USAGE, True)
        assert batch(source, tmp_path / "out", *place, *CHUNKS).code == DONE
    assert outputs(tmp_path / "out")["large.npy"] == npy(np.rint(numbers(1000)))
