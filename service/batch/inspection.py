"""A file's headers, read and checked: whatever a call with it would be refused for, found before anything is computed."""

from __future__ import annotations

from typing import NamedTuple

from service.batch.chunks import Run, runs
from service.batch.errors import BadInput
from service.batch.formats import Format, Input, format_of
from service.batch.layout import Target
from service.batch.survey import Item
from service.batch.task import Task
from service.call import plan
from service.errors import RequestError
from service.wire.message import Bundle


class Inspected(NamedTuple):
    """What has to be computed of a file, and where the results go."""

    runs: tuple[Run, ...]
    target: Target


def inspect(task: Task, form: Format, x: Input, grad: Input | None) -> Inspected:
    """Read the headers of a source and of its gradient, and check the calls that they ask for; `BadInput` says what is wrong."""
    try:
        x_layout = form.layout(x)
        grad_layout = None if grad is None else form.layout(grad)
        message = {"x": x_layout.bundle} | {name: Bundle.of(tensor) for name, tensor in task.tensors.items()}
        if grad_layout is not None:
            message["grad_output"] = grad_layout.bundle
        plan(task.kind, task.expression, message)
    except RequestError as error:
        raise BadInput(str(error)) from error
    target = form.target(x, x_layout)
    return Inspected(runs(x_layout, grad_layout, target, cuttable=task.is_cuttable), target)


def inspect_item(task: Task, item: Item) -> Inspected:
    """The same for a file that is not open, and is closed again."""
    form = format_of(item.source.path)
    with Input(item.source.path) as x:
        if item.grad is None:
            return inspect(task, form, x, None)
        with Input(item.grad.path) as grad:
            return inspect(task, form, x, grad)
