"""The gateway: the services over HTTP with JSON, for whoever has no gRPC.

    HTTP request -> Calls (bounds, door, body, deadline) -> the servicer's method -> reply

Two forms speak through it: `Connect`, the unary half of the Connect protocol, which mirrors every
unary RPC from its descriptor alone, and `OpenAI`, the embeddings and models of OpenAI's API. A call
that comes this way is one like any other: the same method, batcher, bounds, keys and errors.
"""

from twinserve.server.gateway.calls import Calls
from twinserve.server.gateway.connect import Connect
from twinserve.server.gateway.methods import Methods
from twinserve.server.gateway.openai import OpenAI

__all__ = ["Calls", "Connect", "Methods", "OpenAI"]
