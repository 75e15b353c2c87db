"""The command line: `stequant serve`, `quantize`, `grad`, `operators`."""

from service.cli.main import main

__all__ = ["main"]
