"""What a call is before anybody makes it: its method, what it sends, and how a reply is read.

The functions of `embedding`, `galleries`, `items`, `searching` and `serving` give these; `Client`
and `AsyncClient` carry them out, each in its own way of waiting. There are four kinds:

    Call      one request, one reply
    Pages     one request per page, until a page names no next one
    Upload    batches of what an iterable gives, answered in their order
    Download  one request, many messages
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import AsyncIterable, Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from grpc_health.v1 import health_pb2_grpc

from twinserve.errors import InvalidInput
from twinserve.messages import Results
from twinserve.v1 import (
    embedding_service_pb2_grpc,
    gallery_service_pb2_grpc,
    model_service_pb2_grpc,
)

T = TypeVar("T")
P = ParamSpec("P")
Answer = TypeVar("Answer", bound=Sized)

# What a stream of inputs is taken from; the blocking client takes the first kind only.
Source = Iterable[T] | AsyncIterable[T]
# Told after each batch: items done, and of how many; None where nobody knows.
Progress = Callable[[int, int | None], None]
# Batches that are under way on one stream, unless told otherwise.
WINDOW = 16


class Stubs:
    """The methods of the contract over one channel, of grpc or of grpc.aio."""

    def __init__(self, channel: Any) -> None:
        self.embedding = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)
        self.gallery = gallery_service_pb2_grpc.GalleryServiceStub(channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)


Method = Callable[[Stubs], Any]


class Call(NamedTuple, Generic[T]):
    """One request and its one reply; a tuple, which is the cheapest to make.

    `timeout` is None for the client's own. `retried` is False where the first answer is the answer.
    """

    method: Method
    request: Any
    read: Callable[[Any], T]
    timeout: float | None = None
    retried: bool = True


@dataclass(frozen=True, slots=True)
class Pages(Generic[T]):
    """A list that comes in pages; `page_token` of the request is set to each page's."""

    method: Method
    request: Any
    read: Callable[[Any], Iterable[T]]
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Upload(Generic[T]):
    """Any number of items in batches over one stream, each batch answered in its turn.

    `request` makes the message of a batch and its number; `read` the answer of a message and its
    reply, once per answer that is given. `Unavailable` or `Exhausted`, raised by `read`, have the
    message and those after it sent again. One reply may take `timeout` seconds, or, where that is
    None, the client's own timeout, and `at_least` so many.
    """

    method: Method
    items: Source[Any]
    batch: int
    request: Callable[[list[Any], int], Any]
    read: Callable[[Any, Any], T]
    timeout: float | None = None
    at_least: float = 0.0
    window: int = WINDOW

    def __post_init__(self) -> None:
        for name in ("batch", "window"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; give 1 or more", field=name)


@dataclass(frozen=True, slots=True)
class Download(Generic[T]):
    """Messages of the server, of which `read` makes an answer, or None for nothing to give.

    `go_on_after` changes the request to what follows a message, so that a broken stream is taken
    up there; None where it is not. One message may take `timeout` seconds.
    """

    method: Method
    request: Any
    read: Callable[[Any], T | None]
    go_on_after: Callable[[Any, Any], None] | None = None
    timeout: float | None = None


def new_id() -> str:
    """Return the request_id of a write, which its retries repeat."""
    return str(uuid.uuid4())


def nothing(reply: object) -> None:
    """Read a reply that says nothing but that it was done."""


def checked(
    read: Callable[[Any], Results[T]], raise_for_errors: bool
) -> Callable[[Any], Results[T]]:
    """Return `read`, which raises the first item's error where that is wanted."""
    if not raise_for_errors:
        return read

    def raising(reply: Any) -> Results[T]:
        results = read(reply)
        results.checked()
        return results

    return raising


def counted(
    read: Callable[..., Answer], progress: Progress | None, total: int | None
) -> Callable[..., Answer]:
    """Return `read`, which tells `progress` how many items its answers hold so far."""
    if progress is None:
        return read
    done = 0

    def counting(*messages: Any) -> Answer:
        nonlocal done
        answer = read(*messages)
        done += len(answer)
        progress(done, total)
        return answer

    return counting


def length(items: Source[Any]) -> int | None:
    """Return how many items there are, where that can be known before they are taken."""
    return len(items) if isinstance(items, Sized) else None


def describe(
    method: Callable[..., Any], build: Callable[..., Any], client: str, returns: str
) -> None:
    """Give a client's method the name, the text and the parameters of the function it stands for.

    Args:
        method: of a client.
        build: the function that says what is sent.
        client: the class that the method is of.
        returns: the method's own result, with {} for what the kind of call is of.
    """
    # Without __wrapped__, by which tools that document a method would show the function instead.
    method.__name__, method.__doc__ = build.__name__, build.__doc__
    method.__qualname__ = f"{client}.{build.__name__}"
    # Annotations are text: of Call[Embeddings] a caller sees what he gets, Embeddings.
    inner = build.__annotations__["return"].partition("[")[2].removesuffix("]")
    result = returns.format(inner)
    method.__annotations__ = {**build.__annotations__, "return": result}
    given = inspect.signature(build)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = given.replace(  # type: ignore[attr-defined]
        parameters=[itself, *given.parameters.values()], return_annotation=result
    )
