# The server alone: no compiler, no torch, not root.
#
#   docker build -t twinserve --build-arg COMMIT="$(git rev-parse HEAD)" .
#   docker run -p 50051:50051 -p 9090:9090 -v "$PWD/runs/demo:/models:ro" -v galleries:/data \
#       --stop-timeout 60 --read-only --cap-drop ALL --security-opt no-new-privileges twinserve
#
# It writes to /data, to /backups where --backup-dir says so, and nowhere else. An engine kills after
# 10 s what it stops, unless --stop-timeout says more than the server's --grace (30 s).
# docs/deploying.md has compose, Kubernetes and systemd.
#
# For an NVIDIA GPU, with its runtime for containers on the host:
#
#   docker build -t twinserve:gpu --build-arg RUNTIME=gpu \
#       --build-arg BASE_IMAGE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 .
#   docker run --gpus all … twinserve:gpu
#
# RUNTIME    cpu or gpu: which onnxruntime goes in. It must fit BASE_IMAGE (gpu wants CUDA 13, cuDNN 9).
# BASE_IMAGE what the last stage stands on; with Python 3.12, or with an apt that offers it.
# COMMIT, COMMIT_TIME  which commit this is of, for twinserve --version and the image's labels.

ARG BASE_IMAGE=python:3.12-slim-bookworm

# Bookworm's glibc is the oldest of the images above, so what is compiled here runs on all of them.
FROM python:3.12-slim-bookworm AS builder
ARG RUNTIME=cpu
ENV HNSWLIB_NO_NATIVE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt ./
# The requirements first: they are built anew only when the two files named here change.
COPY pyproject.toml tools/server_requirements.py ./
RUN python3.12 server_requirements.py "$RUNTIME" > requirements.txt
# hnswlib is compiled: for x86 processors with AVX2 (of Intel since 2013, of AMD since 2015).
RUN if [ "$(uname -m)" = x86_64 ]; then export CXXFLAGS="-mavx2 -mfma"; fi; PIP_BUILD_CONSTRAINT=constraints.txt python3.12 -m pip wheel --wheel-dir /wheels --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE CHANGELOG.md hatch_build.py ./
COPY protos ./protos
COPY twinserve ./twinserve
COPY server ./server
COPY cli ./cli
COPY train ./train
COPY export ./export
# After everything that is slow, since they are others in each build.
ARG COMMIT= COMMIT_TIME=
RUN TWINSERVE_BUILD_COMMIT="$COMMIT" TWINSERVE_BUILD_TIME="$COMMIT_TIME" PIP_BUILD_CONSTRAINT=constraints.txt python3.12 -m pip wheel --no-deps --wheel-dir /wheels .

FROM ${BASE_IMAGE} AS server
ARG RUNTIME=cpu
# hadolint ignore=DL3008
RUN command -v python3.12 || (apt-get update && apt-get install -y --no-install-recommends python3.12 python3.12-venv && rm -rf /var/lib/apt/lists/*)
# A fixed number, so that the owner of a mounted folder can be set from outside.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin twinserve
# The wheels are only lent to this step: they leave no layer behind.
RUN --mount=type=bind,from=builder,source=/wheels,target=/wheels python3.12 -m venv /opt/twinserve && /opt/twinserve/bin/python -m pip install --no-cache-dir --no-index --find-links /wheels "twinserve[$RUNTIME]"
RUN mkdir -p /models /data /backups && chown twinserve: /data /backups
ENV PATH=/opt/twinserve/bin:$PATH PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER 10001
VOLUME ["/models", "/data"]
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
# Each check starts a Python, for half a second of one core.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --start-interval=5s CMD ["twinserve", "health", "--target", "127.0.0.1:50051"]
ARG COMMIT= COMMIT_TIME=
LABEL org.opencontainers.image.title="twinserve" \
      org.opencontainers.image.description="Embeddings, comparisons and galleries over gRPC" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="$COMMIT" \
      org.opencontainers.image.created="$COMMIT_TIME"
# No init beside it: the server is process 1, handles SIGTERM itself, and waits for its one kind of
# child, which builds graphs.
ENTRYPOINT ["twinserve", "serve"]
# Without keys and TLS the server listens beyond loopback only when told so aloud: publish the ports
# to networks that you trust, or replace these words by your own.
CMD ["--model", "/models/twin.onnx", "--data-dir", "/data", "--host", "0.0.0.0", "--insecure"]
