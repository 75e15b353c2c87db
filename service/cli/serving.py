"""`stequant serve`: one flag for each setting, made from the settings themselves."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from service.cli.operators import Commands

if TYPE_CHECKING:
    from pydantic import ValidationError

    from service.settings import Settings


class Unavailable(Exception):
    """This installation, or this machine at the moment, cannot do what was asked."""


class BadUsage(Exception):
    """A setting has a value that it cannot have."""


def add_command(commands: Commands) -> None:
    """Add the command to the command line. Its flags need the server extra; without it the command says so."""
    description = "Serve the operators over HTTP. Each flag is also a variable: --max-body-bytes is STEQUANT_MAX_BODY_BYTES."
    parser = commands.add_parser("serve", help="serve the operators over HTTP", description=description)
    try:
        from service.settings import Settings
    except ModuleNotFoundError as error:
        missing = error.name
        # Which flags there are is not known here; what is missing is what has to be said.
        parser.set_defaults(run=lambda _: _needs_extra(missing), takes_anything=True)
        return
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f" (default {_as_given(field.default)})"
        parser.add_argument(
            *_flags(name, field.annotation),
            dest=name,
            default=None,
            action="append" if _is_list(field.annotation) else "store",
            metavar=_metavar(name, field.annotation),
            help=f"{field.description}{default}",
        )
    parser.set_defaults(run=_run)


def _as_given(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _is_list(annotation: Any) -> bool:
    return any(get_origin(kind) is tuple for kind in get_args(annotation))


def _flags(name: str, annotation: Any) -> list[str]:
    """The flag of a setting; where it is a list, also the flag for one element, to be repeated."""
    return [flag(name), flag(name.removesuffix("s"))] if _is_list(annotation) else [flag(name)]


def _metavar(name: str, annotation: Any) -> str:
    """What stands for the value in the help: the values there are, or a word for them."""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}"
    if annotation is bool:
        return "{true,false}"
    words = {
        "bytes": "BYTES",
        "s": "SECONDS",
        "file": "FILE",
        "uds": "PATH",
        "host": "ADDRESS",
        "hosts": "NAME",
        "port": "PORT",
        "device": "DEVICE",
    }
    return words.get(name.rpartition("_")[2], "N")


def flag(setting: str) -> str:
    """The flag of a setting."""
    return "--" + setting.replace("_", "-")


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    try:
        from service.processes.run import missing_module, run
    except ModuleNotFoundError as error:
        return _needs_extra(error.name)
    if (missing := missing_module()) is not None:
        return _needs_extra(missing)
    from service.processes.errors import DEVICE_FAILED, CannotServe, DeviceHasFailed

    try:
        run(settings)
    except CannotServe as error:
        raise Unavailable(str(error)) from error
    except DeviceHasFailed:
        return DEVICE_FAILED
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    from pydantic import ValidationError

    from service.settings import Settings

    given: dict[str, Any] = {
        name: ",".join(value) if isinstance(value, list) else value
        for name in Settings.model_fields
        if (value := getattr(options, name)) is not None
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        raise BadUsage(_first_problem(error, given)) from None


def _first_problem(error: ValidationError, given: dict[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    reason = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return reason
    name = str(problem["loc"][0])
    where = flag(name) if name in given else f"STEQUANT_{name.upper()}"
    return f"{where} is {problem['input']!r}: {reason}"


def _needs_extra(missing: str | None) -> int:
    raise Unavailable(f"this needs the server extra ({missing} is not installed): pip install 'stequant[server]'")
