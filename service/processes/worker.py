"""A worker process: how it is started, and what its supervisor can see of it and do to it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from service.logs import log
from service.processes.errors import DEVICE_FAILED, CannotServe, DeviceHasFailed
from service.processes.heartbeat import Heart, Listener
from service.processes.shared_metrics import forget_process
from service.processes.signals import hangups_wait
from service.settings import Settings

if TYPE_CHECKING:
    from service.device.devices import Device

# The exit status of a worker that could not start; the log says why.
CANNOT_SERVE = 3

_PR_SET_PDEATHSIG = 1


class Worker:
    """A process that serves on the common socket. It is started at once; `OSError` where that is not possible.

    `make_device`, which is called in that process, makes another device than the settings name.
    """

    def __init__(
        self, settings: Settings, sock: socket.socket, index: int, *, make_device: Callable[[], Device] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        heard, beaten = context.Pipe(duplex=False)
        self._process = context.Process(target=main, args=(settings, sock, index, beaten, os.getpid(), make_device))
        self._listener = Listener(heard)
        try:
            with hangups_wait(), beaten:
                self._process.start()
        except OSError:
            self._listener.close()
            raise
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it lives; negative, the number of the signal that ended it."""
        return self._process.exitcode

    def has_beaten(self) -> bool:
        """Whether its event loop has turned since the last look."""
        return self._listener.heard()

    def send(self, sig: int) -> None:
        """Send it a signal; one that has ended gets none."""
        if self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def close(self) -> None:
        """Let go of what is left of an ended process."""
        forget_process(self.pid)
        self._listener.close()
        self._process.close()


def main(
    settings: Settings,
    sock: socket.socket,
    index: int,
    beaten: Connection,
    supervisor_pid: int,
    make_device: Callable[[], Device] | None,
) -> None:
    """What a worker process runs."""
    _end_with(supervisor_pid)
    # Not at the top of this module: the supervisor imports it too, and has no use for the 200 MB of torch.
    from service.processes.server import serve

    try:
        device = make_device() if make_device is not None else None
        serve(settings, sock, worker=index, heart=Heart(beaten), device=device)
    except CannotServe as error:
        log.error("%s", error)
        raise SystemExit(CANNOT_SERVE) from None
    except DeviceHasFailed:
        raise SystemExit(DEVICE_FAILED) from None


def _end_with(supervisor_pid: int) -> None:
    """Let this process end with its supervisor, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor_pid:
        raise SystemExit(0)  # it had ended before it could be asked
