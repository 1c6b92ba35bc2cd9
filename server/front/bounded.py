"""A front that bounds the bytes of large messages, over all methods of its services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc

from twinserve.server.front.budget import Budget
from twinserve.server.front.server import Front


class BoundedFront(Front):
    """A `Front` of which each registered method's messages count against one budget.

    Args:
        budget: of all calls.
        arguments, settings: as `Front` takes them.
    """

    def __init__(self, budget: Budget, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._budget = budget

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Take a service's methods by name."""
        super().add_registered_method_handlers(service_name, method_handlers)
        for name in method_handlers:
            full = f"/{service_name}/{name}".encode()
            self._methods[full] = replace(self._methods[full], budget=self._budget)
