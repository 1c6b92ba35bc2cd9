"""Any loss of pytorch-metric-learning, by name.

In: `loss = "metric_learning:NAME"` of the config and its table `loss_parameters`. Out: the loss as
a module, (embeddings, labels) -> scalar, which chooses its pairs by itself. The package is an
extra, and is imported only where a config asks for it.

Their formulas are their own: ContrastiveLoss is not squared, distances normalise by default, and
averages leave out what costs nothing. docs/losses.md says more.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from twinserve.errors import ConfigError

PREFIX = "metric_learning:"


def load_loss(
    name: str, parameters: Mapping[str, Any], *, classes: int, dimension: int
) -> nn.Module:
    """Build a loss; the classes and the dimension are filled in where it must know them.

    Args:
        name: of its class there, such as TripletMarginLoss.
        parameters: of its constructor. `distance`, `reducer` and `embedding_regularizer` are the
            name of a class, or a table with `type` and that class's parameters.
        classes: labels are below it.
        dimension: of an embedding.

    Raises:
        ConfigError: the package is missing, it has no such loss, or the loss takes no such
            parameters.
    """
    try:
        from pytorch_metric_learning import distances, losses, reducers, regularizers
    except ImportError as error:
        raise ConfigError(
            f"loss={PREFIX}{name} is of the package pytorch-metric-learning, which cannot be "
            f"imported ({error}); pip install 'twinserve[metric-learning]'"
        ) from error
    given = dict(parameters)
    parts = {"distance": distances, "reducer": reducers, "embedding_regularizer": regularizers}
    for key in parts.keys() & given.keys():
        given[key] = _part(key, given[key], parts[key])
    known = inspect.signature(_named(losses, name, "loss").__init__).parameters
    for key, value in (("num_classes", classes), ("embedding_size", dimension)):
        if key in known:
            given.setdefault(key, value)
    made: nn.Module = _made(losses, name, given, "loss_parameters")
    return made


def _part(key: str, value: Any, module: Any) -> Any:
    table = {"type": value} if isinstance(value, str) else dict(value)
    name = table.pop("type", "")
    _named(module, name, f"loss_parameters.{key}")
    return _made(module, name, table, f"loss_parameters.{key}")


def _named(module: Any, name: str, key: str) -> Any:
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        names = sorted(known for known, value in vars(module).items() if inspect.isclass(value))
        raise ConfigError(
            f"{key} names {name!r}, which pytorch-metric-learning does not have; "
            f"it has {', '.join(names)}"
        )
    return found


def _made(module: Any, name: str, parameters: Mapping[str, Any], key: str) -> Any:
    kind = getattr(module, name)
    try:
        return kind(**parameters)
    except (TypeError, ValueError, AssertionError) as error:
        takes = [p for p in inspect.signature(kind.__init__).parameters if p != "self"]
        raise ConfigError(
            f"{key} is {dict(parameters)!r}, which {name} does not take ({error}); "
            f"it takes {', '.join(takes)}"
        ) from error
