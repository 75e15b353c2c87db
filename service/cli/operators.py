"""`stequant operators`: what `--op` may name."""

from __future__ import annotations

import argparse
import json
from typing import Any

from service.ops import REGISTRY
from service.ops.catalogue import catalogue, summary
from service.ops.parameters import allowed_values

Commands = Any  # argparse keeps the type of add_subparsers() to itself


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("operators", help="list the operators", description="List the operators that --op may name.")
    parser.add_argument("--json", action="store_true", help="as JSON, as GET /operators answers")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps({"operators": catalogue()}, indent=2))
        return 0
    for described in catalogue():
        cls = REGISTRY[described["name"]]
        print(f"{cls.name}  {summary(cls)}")
        print(f"    {described['formula']}")
        print(f"    {described['gradient']}")
        for parameter in described["parameters"]:
            default = "" if parameter["required"] else f", default {parameter['default']}"
            print(f"    {parameter['name']}: {allowed_values(cls, parameter['name'])}{default}; {parameter['description']}")
        print()
    print("Operators compose, left to right: clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)")
    return 0
