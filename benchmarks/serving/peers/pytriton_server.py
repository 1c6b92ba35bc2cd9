"""PyTriton: Triton's front end and batcher in C++, the model in Python; gRPC, raw tensors."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.serving.peers.twin import MAX_BATCH, Twin

if __name__ == "__main__":
    twin = Twin.from_environment()

    # Texts come as token ids, all of one length, since Triton batches equal shapes alone.
    @batch  # type: ignore[untyped-decorator]
    def infer(given: Any) -> list[Any]:
        if twin.tokenizer is None:
            return [twin.session.run(None, {twin.names[0]: given})[0]]
        return [twin.run(list(given))]

    text = twin.tokenizer is not None
    given = Tensor(
        name="given", dtype=np.int64 if text else np.uint8, shape=(-1,) if text else twin.shape
    )
    port = int(os.environ["PORT"])
    config = TritonConfig(
        grpc_port=port, http_port=port + 1, metrics_port=port + 2, http_address="127.0.0.1"
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="twin",
            infer_func=[infer] * int(os.environ["WORKERS"]),
            inputs=[given],
            outputs=[Tensor(name="embedding", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
        )
        triton.serve()
