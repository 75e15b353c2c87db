"""Workers under a supervisor whose device obeys files: `python failing_workers.py SOCKET FOLDER WORKERS`."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from scripted_device import ScriptedDevice
from torch import Tensor

from service.processes.sockets import listening
from service.processes.supervisor import supervise
from service.processes.worker import Worker
from service.settings import Settings


class BreakableDevice(ScriptedDevice):
    """Waits while there is a file `hold` in the folder, and breaks once for each time that a file `broken` is put there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(lanes=2)
        self.folder = folder

    def lift(self, host: Tensor) -> Tensor:
        """Fail as a CUDA device does."""
        while (self.folder / "hold").exists():
            (self.folder / f"waits-{os.getpid()}").touch()
            time.sleep(0.01)
        with suppress(FileNotFoundError):
            (self.folder / "broken").unlink()
            raise torch.AcceleratorError("CUDA error: broken")
        return super().lift(host)


if __name__ == "__main__":
    settings = Settings(uds=Path(sys.argv[1]), workers=int(sys.argv[3]))
    with listening(settings) as sock:
        supervise(settings, sock, hire=partial(Worker, make_device=partial(BreakableDevice, Path(sys.argv[2]))))
