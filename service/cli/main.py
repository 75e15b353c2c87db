"""The commands, their help texts and their exit statuses.

Nothing of the server extra is imported before a command needs it: the base install has the client and
these commands for a remote server.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from service import __version__
from service.cli import ready
from service.errors import CapacityError, StequantError

DONE, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3

_EPILOG = """\
exit status: 0 done; 1 the input was refused, or an error; 2 wrong usage; 3 the server cannot be
reached or gave up.  Keys for a server are taken from the variable STEQUANT_API_KEY.
"""
_EXAMPLES = """\
examples:
  stequant serve --port 8000
  stequant quantize x.npy y.npy --op 'clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)'
  stequant grad x.npy grad_output.npy grad_x.npy --op 'clamp(min_value=0, max_value=1)'
  stequant batch in out --op 'clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)'
  stequant plot 'clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)' -o staircase.svg
  stequant stats x.npy y.npy
  cat x.npy | stequant quantize - - --op 'round' --url http://127.0.0.1:8000 > y.npy

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    # Health checks run it every few seconds: 0.1 s to start, and 0.5 s with what the other commands import.
    return ready.main(given[1:]) if given[:1] == [ready.NAME] else _run(given)


def _run(arguments: Sequence[str]) -> int:
    from service.cli import serving
    from service.cli.options import BadFile

    parser = build_parser()
    options, surplus = parser.parse_known_args(arguments)
    if surplus and not getattr(options, "takes_anything", False):
        parser.error(f"unrecognized arguments: {' '.join(surplus)}")
    try:
        return int(options.run(options))
    except CapacityError as error:
        return _fail(error, UNREACHABLE)
    except serving.BadUsage as error:
        return _fail(error, USAGE)
    except (StequantError, BadFile, serving.Unavailable) as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from service.cli import batch, files, operators, plot, serving, stats

    parser = argparse.ArgumentParser(
        prog="stequant",
        description="Straight-through-estimator quantizers: the same bits for every caller, in this process or from a server.",
        epilog=_EXAMPLES + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stequant {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serving.add_command(commands)
    files.add_commands(commands)
    batch.add_command(commands)
    plot.add_command(commands)
    stats.add_command(commands)
    operators.add_command(commands)
    ready.add_command(commands)
    return parser


def _fail(error: Exception, status: int) -> int:
    code = f" [{error.code}]" if isinstance(error, StequantError) else ""
    print(f"stequant: {error}{code}", file=sys.stderr)
    return status
