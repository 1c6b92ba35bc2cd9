"""What a ModelInfer's parameters ask for: urgency, time, and what is done with texts and vectors.

`priority` and `timeout` are the protocol's own, `prompt`, `truncate` and `dimensions` ours. All
others are passed over, as Triton does: clients and gateways put theirs there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from twinserve.errors import InvalidInput, WrongModality
from twinserve.manifest import Manifest
from twinserve.oip import inference_pb2 as pb
from twinserve.server.callers import Caller, Priority

# The protocol's levels: 1 is the most urgent; 0, the default, leaves it to the call's metadata.
LEVELS = {1: Priority.HIGH, 2: Priority.NORMAL, 3: Priority.LOW}
DEFAULT_LEVEL = 2

_KINDS = {
    "bool_param": "a bool",
    "int64_param": "an integer",
    "uint64_param": "an integer",
    "string_param": "a string",
    "double_param": "a double",
}
_WHOLE = ("uint64_param", "int64_param")


@dataclass(frozen=True)
class Wishes:
    """What a request asks for beside its tensors; None where it does not say."""

    priority: Priority | None = None
    timeout: float | None = None  # seconds
    prompt: str | None = None
    truncate: bool | None = None
    dimension: int | None = None

    def of(self, caller: Caller) -> Caller:
        """Return the caller with this request's urgency, and the nearer of both deadlines."""
        if self.priority is not None:
            caller = replace(caller, priority=self.priority)
        if self.timeout is not None:
            deadline = time.monotonic() + self.timeout
            if caller.deadline is None or deadline < caller.deadline:
                caller = replace(caller, deadline=deadline)
        return caller


_NO_WISHES = Wishes()


def read_wishes(parameters: Mapping[str, pb.InferParameter], manifest: Manifest) -> Wishes:
    """Read a request's parameters.

    Args:
        parameters: by name.
        manifest: of the twin.

    Raises:
        InvalidInput: of another type than the parameter has, or below 0.
        WrongModality: a parameter of texts, and the twin takes none.
    """
    if not parameters:
        return _NO_WISHES
    level = _number(parameters, "priority")
    timeout = _number(parameters, "timeout")
    prompt = _value(parameters, "prompt", "string_param")
    truncate = _value(parameters, "truncate", "bool_param")
    if manifest.modality != "text":
        for name, value in (("prompt", prompt), ("truncate", truncate)):
            if value is not None:
                raise WrongModality(
                    f"parameter {name} is for texts, and the model takes none; leave it out",
                    field=f"parameters[{name}]",
                )
    return Wishes(
        priority=LEVELS[min(level, max(LEVELS))] if level else None,
        timeout=timeout / 1e6 if timeout else None,
        prompt=prompt,
        truncate=truncate,
        dimension=_number(parameters, "dimensions"),
    )


def _number(parameters: Mapping[str, pb.InferParameter], name: str) -> int | None:
    value: int | None = _value(parameters, name, *_WHOLE)
    if value is not None and value < 0:
        raise InvalidInput(
            f"parameter {name} is {value}; give 0 or more", field=f"parameters[{name}]"
        )
    return value


def _value(parameters: Mapping[str, pb.InferParameter], name: str, *kinds: str) -> Any:
    """Return a parameter's value, which must be of one of these kinds; None where it is absent."""
    if name not in parameters:
        return None
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in kinds:
        found = "empty" if kind is None else _KINDS[kind]
        raise InvalidInput(
            f"parameter {name} is {found}; give {_KINDS[kinds[0]]} ({' or '.join(kinds)})",
            field=f"parameters[{name}]",
        )
    return getattr(parameter, kind)
