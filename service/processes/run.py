"""`run(settings)`: one worker in this process, or several under a supervisor."""

from __future__ import annotations

import importlib.util
import os
import signal
from types import FrameType
from typing import NoReturn

from service.processes.sockets import listening
from service.processes.supervisor import supervise
from service.settings import Settings

# What a worker imports, and its supervisor does not.
_NEEDED = ("fastapi", "fastapi_offline", "torch", "uvicorn")


def missing_module() -> str | None:
    """The first module that a worker needs and that is not installed."""
    return next((name for name in _NEEDED if importlib.util.find_spec(name) is None), None)


def run(settings: Settings) -> None:
    """Serve until told to stop, with as many workers as the settings say; `CannotServe` says why that is not possible."""
    _open_standard_streams()
    # A process with the number 1, as in a container, ignores what it has no handler for: without this one it could not
    # be stopped while it only starts.
    signal.signal(signal.SIGTERM, _end)
    with listening(settings) as sock:
        if settings.workers == 1:
            # Not at the top of this module: a supervisor has no use for the 200 MB of torch.
            from service.processes.server import serve

            serve(settings, sock)
        else:
            supervise(settings, sock)
    # The interpreter's own end takes a tenth of a second, without handlers: a second signal would become the exit status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _open_standard_streams() -> None:
    """Open /dev/null in the place of standard streams that were closed.

    Sockets would get their numbers, and libuv ends a process that closes one of these.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _end(_sig: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
