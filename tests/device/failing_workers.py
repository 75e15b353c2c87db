"""Workers under a supervisor whose device breaks as soon as a file is there: `python failing_workers.py SOCKET FILE`."""

from __future__ import annotations

import sys
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
    """Breaks once for each time that the file is put there."""

    def __init__(self, sign: Path) -> None:
        super().__init__()
        self.sign = sign

    def lift(self, host: Tensor) -> Tensor:
        """Fail as a CUDA device does, where the file is there."""
        if self.sign.exists():
            self.sign.unlink()
            raise torch.AcceleratorError("CUDA error: broken")
        return super().lift(host)


if __name__ == "__main__":
    settings = Settings(uds=Path(sys.argv[1]), workers=2)
    with listening(settings) as sock:
        supervise(settings, sock, hire=partial(Worker, make_device=partial(BreakableDevice, Path(sys.argv[2]))))
