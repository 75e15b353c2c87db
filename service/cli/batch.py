"""`stequant batch`: many files as one job that can be stopped, killed and started again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from service.batch import options as defaults
from service.batch.errors import BadUsage, GaveUp, Stopped
from service.batch.options import Options
from service.batch.quantities import parse_size
from service.batch.shards import parse_shard, shard_from
from service.batch.stopping import Stop
from service.batch.task import Task
from service.cli.operators import Commands
from service.cli.options import BadFile, add_device, add_expression, add_uds, read_tensors
from service.cli.serving import Unavailable
from service.errors import RequestError
from service.ops import parse

if TYPE_CHECKING:
    from service.batch.backends import Backend
    from service.batch.report import Bad
    from service.batch.watch import Signals

# What a timer can wait for.
_LONGEST_S = 1e8

_DESCRIPTION = """\
Quantize every .npy, .npz and .safetensors file under the SOURCEs into the same tree under DEST;
with --grad, carry gradients back. Without --url and --uds it is computed in this process.
The same command goes on where an earlier one was stopped or killed.
"""
_EPILOG = """\
SOURCE is a file, a folder (all files below it), a quoted pattern ('in/**/*.npy'), or @LIST: a file
with one of these a line, blank lines and lines that begin with # left out; @- is standard input.
Outputs have the paths of their sources, relative to the folder, or to the part of the pattern
before its first wildcard. DEST/.stequant holds what is known of the job.

exit status:
  0    all is done
  1    some inputs are bad: they are listed, all others are done
  2    wrong usage: an option, the expression, nothing found, or a DEST that cannot be written or
       belongs to another job
  3    gave up, and can go on later: no server answers, the disk is full, another job works on
       DEST, or the device failed
  130  stopped by SIGINT, and can go on later
  143  stopped by SIGTERM, and can go on later

examples:
  stequant batch in out --op 'clamp(0, 1) | k_bit_quantize(4)'
  stequant batch 'in/**/*.safetensors' out --op round --url http://a:8000 --url http://b:8000
  stequant batch in out --op 'clamp(0, 1)' --grad grads
"""


def add_command(commands: Commands) -> None:
    """Add `batch` to the command line."""
    parser = commands.add_parser(
        "batch",
        help="quantize many files as one job that can be stopped and resumed",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="file, folder, quoted pattern, or @LIST")
    parser.add_argument("dest", metavar="DEST", help="folder for the outputs")
    add_expression(parser)
    parser.add_argument(
        "--grad",
        metavar="TREE",
        help="carry gradients back: that of in/a/b.npy, where in is a SOURCE, is TREE/a/b.npy; only grad_x is written, "
        "not the gradients of tensor parameters",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--url", action="append", default=[], help="compute on this server; may be repeated: servers are asked in turns"
    )
    add_uds(where)
    add_device(parser)
    _add_pace(parser)
    _add_run(parser)
    parser.set_defaults(run=_run)


def _add_pace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chunk-bytes",
        metavar="SIZE",
        type=_size,
        default=defaults.DEFAULT_CHUNK_BYTES,
        help="most bytes of a tensor computed at a time, plain or as KiB, MiB or GiB (default 16MiB)",
    )
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=_positive,
        default=defaults.DEFAULT_CONCURRENCY,
        help="most chunks in flight; fewer while a server has too much to do (default %(default)s)",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="only part I of N, counted from 0 (default: JOB_COMPLETION_INDEX/JOB_COMPLETION_COUNT, where both are set)",
    )
    parser.add_argument(
        "--retries",
        metavar="N",
        type=_count,
        default=defaults.DEFAULT_RETRIES,
        help="how often a chunk is sent again that the server fails on (default %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=defaults.DEFAULT_TIMEOUT_S,
        help="seconds to wait for a server at each step (default %(default)g)",
    )
    parser.add_argument(
        "--give-up-after",
        metavar="S",
        type=_seconds,
        default=defaults.DEFAULT_GIVE_UP_AFTER_S,
        help="seconds without any answer after which the job gives up (default %(default)g)",
    )
    parser.add_argument(
        "--grace",
        metavar="S",
        type=_seconds,
        default=defaults.DEFAULT_GRACE_S,
        help="seconds that chunks in flight get to end after SIGTERM or SIGINT; a second signal kills (default %(default)g)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="start over, also where DEST belongs to another job")
    look = parser.add_mutually_exclusive_group()
    look.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")
    look.add_argument("--verify", action="store_true", help="compare sources and outputs with what the job recorded; write nothing")
    parser.add_argument("--json", action="store_true", help="at the end, one JSON object on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary; only what went wrong")


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)


def _positive(text: str) -> int:
    if not _count(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number > 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds >= 0")
    return seconds


def _run(given: argparse.Namespace) -> int:
    from service.batch.report import USAGE
    from service.batch.watch import Signals

    stop = Stop()
    with Signals(stop) as signals:
        try:
            options = _options(given)
            return _dry_run(given, options, stop, signals) if given.dry_run else _work(given, options, stop, signals)
        except (BadUsage, Unavailable) as error:
            print(f"stequant: {error}", file=sys.stderr)
            return USAGE


def _options(given: argparse.Namespace) -> Options:
    return Options(
        task=_task(given),
        sources=tuple(given.sources),
        dest=Path(given.dest),
        grads=None if given.grad is None else Path(given.grad),
        shard=shard_from(os.environ) if given.shard is None else parse_shard(given.shard),
        chunk_bytes=given.chunk_bytes,
        concurrency=given.concurrency,
        retries=given.retries,
        give_up_after_s=given.give_up_after,
        force=given.force,
    )


def _task(given: argparse.Namespace) -> Task:
    """The expression with its tensors; what does not fit any file is wrong usage."""
    try:
        expression = parse(given.op)
        tensors = read_tensors(given.tensor)
    except (RequestError, BadFile) as error:
        raise BadUsage(str(error)) from error
    for name in expression.tensor_names:
        if name not in tensors:
            raise BadUsage(f"'{expression}' names a tensor {name!r}; give it with --tensor {name}=FILE")
    for name, bundle in tensors.items():
        if name not in expression.tensor_names:
            raise BadUsage(f"--tensor: '{expression}' names no tensor {name!r}")
        if not bundle.single:
            raise BadUsage(f"--tensor: the file of {name!r} holds {len(bundle.tensors)} arrays; allowed: 1")
    return Task(
        "quantize" if given.grad is None else "grad", expression, {name: bundle.tensors[0] for name, bundle in tensors.items()}
    )


def _backend(given: argparse.Namespace) -> Callable[[], Backend]:
    """How to make what computes. It is made once there is something to compute: torch takes seconds to import."""
    if not given.url and given.uds is None:
        return lambda: _embedded(given.device)
    from service.batch.connection import Address
    from service.batch.fleet import Fleet

    try:
        addresses = [Address(url) for url in given.url] or [Address("http://stequant", given.uds)]
    except ValueError as error:
        raise BadUsage(f"--url: {error}") from error
    return lambda: Fleet(addresses, given.timeout)


def _embedded(device: str) -> Backend:
    try:
        from service.batch.embedded import Embedded
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"computing in this process needs {error.name}, which is not installed: "
            "pip install 'stequant[server]', or name a server with --url"
        ) from None
    return Embedded(device)


def _dry_run(given: argparse.Namespace, options: Options, stop: Stop, signals: Signals) -> int:
    from service.batch.dry_run import forecast
    from service.batch.report import BAD_INPUTS, DONE

    try:
        found = forecast(options, sys.stdin, stop)
    except Stopped:
        return signals.exit_code or DONE
    _list_bad(found.bad)
    print(found.as_json() if given.json else found.as_text())
    return BAD_INPUTS if found.bad else DONE


def _work(given: argparse.Namespace, options: Options, stop: Stop, signals: Signals) -> int:
    from service.batch.progress import Progress
    from service.batch.report import Tally, as_json, as_text, outcome_of, verified_as_text
    from service.batch.run import Job
    from service.batch.verify import verify
    from service.batch.watch import Watch

    began = time.monotonic()
    tally = Tally()
    job = Job(options, _backend(given), sys.stdin, stop, tally)
    watch = Watch(stop, given.grace, None if given.quiet else Progress(tally, sys.stderr, lambda: job.trouble))
    reason = None
    try:
        if given.verify:
            verify(options, sys.stdin, stop, tally)
        else:
            job.run(watch.wait)
    except GaveUp as error:
        reason = str(error)
    except Stopped:
        pass
    outcome = outcome_of(tally, reason, signals.exit_code, time.monotonic() - began)
    _list_bad(tally.bad)
    if outcome.reason is not None:
        print(f"stequant: {outcome.reason}", file=sys.stderr)
    if not given.quiet:
        text = verified_as_text if given.verify else as_text
        print(f"stequant: {text(tally, outcome)}", file=sys.stderr)
    if given.json:
        print(as_json(options, tally, outcome), flush=True)
    if watch.has_left_threads:
        # They hang in calls that nobody answers, and would be waited for.
        os._exit(outcome.exit_code)
    return outcome.exit_code


def _list_bad(found: Iterable[Bad]) -> None:
    for bad in sorted(found):
        print(f"stequant: {bad.path}: {bad.reason}", file=sys.stderr)
