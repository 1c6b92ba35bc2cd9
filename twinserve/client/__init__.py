"""The Python client: one connection, typed results with numpy, blocking or for asyncio.

In: pictures, texts (with the name of a prompt where the model has some), arrays or ready vectors.
Out: the dataclasses of `twinserve.messages`, or the exceptions of `twinserve.errors`, of the very
class that the server raised (told by its reason, never by its text). A call has one deadline that
covers all its attempts: UNAVAILABLE is tried again with a growing pause, and RESOURCE_EXHAUSTED
after the delay that the server names. Every write carries a request_id that its retries repeat, so
that none is done twice. No torch, no onnxruntime.

    with Client("127.0.0.1:50051") as client:
        for hits in client.search("people", [Path("probe.png")]).checked():
            print(hits.match, [hit.subject for hit in hits])

    async with AsyncClient("127.0.0.1:50051") as client:
        results = await client.search("people", [Path("probe.png")])

What a call sends and how its reply is read stands once, in `embedding`, `galleries`, `items`,
`searching` and `serving`; `blocking` and `asynchronous` carry it out.
"""

from __future__ import annotations

from twinserve.client.asynchronous import AsyncClient
from twinserve.client.blocking import Client
from twinserve.client.calls import Progress
from twinserve.client.items import ENROLL_SECONDS
from twinserve.client.serving import LOAD_SECONDS
from twinserve.client.tls import TLS
from twinserve.messages import (
    Backup,
    Comparison,
    Embeddings,
    Encoding,
    Enrolled,
    EnrollItem,
    Exported,
    Filter,
    Gallery,
    Health,
    Hit,
    Hits,
    InputLike,
    Item,
    ItemCount,
    Model,
    Moved,
    Removed,
    Results,
    Shadow,
    Text,
    Timing,
    Vector,
    Verification,
)

__all__ = [
    "ENROLL_SECONDS",
    "LOAD_SECONDS",
    "TLS",
    "AsyncClient",
    "Backup",
    "Client",
    "Comparison",
    "Embeddings",
    "Encoding",
    "EnrollItem",
    "Enrolled",
    "Exported",
    "Filter",
    "Gallery",
    "Health",
    "Hit",
    "Hits",
    "InputLike",
    "Item",
    "ItemCount",
    "Model",
    "Moved",
    "Progress",
    "Removed",
    "Results",
    "Shadow",
    "Text",
    "Timing",
    "Vector",
    "Verification",
]
