"""Calls of ModelService, and how the server is."""

from __future__ import annotations

from collections.abc import Sequence

from grpc_health.v1 import health_pb2

from twinserve import messages
from twinserve.client.calls import Call, Pages, nothing
from twinserve.messages import Health, Model, Shadow
from twinserve.v1 import model_service_pb2

# A large twin takes a minute to load and to warm.
LOAD_SECONDS = 600.0


def models(*, page_size: int = 0, timeout: float | None = None) -> Pages[Model]:
    """Iterate over the loaded models by name and version."""
    return Pages(
        lambda stubs: stubs.model.ListModels,
        model_service_pb2.ListModelsRequest(page_size=page_size),
        lambda page: map(messages.from_model, page.models),
        timeout,
    )


def model(name: str = "", *, timeout: float | None = None) -> Call[Model]:
    """Return one loaded model by name, name@version or alias; "" is the only one served."""
    request = model_service_pb2.GetModelRequest(name=name)
    return Call(lambda stubs: stubs.model.GetModel, request, _model, timeout)


def load_model(
    file: str,
    name: str = "",
    *,
    aliases: Sequence[str] = (),
    force: bool = False,
    timeout: float = LOAD_SECONDS,
) -> Call[Model]:
    """Have the server load and warm a twin, and move aliases to it, without failing a call.

    Args:
        file: below the server's --model-dir.
        name: to serve it under; "" is the manifest's own.
        aliases: that are to point at it.
        force: do it even where galleries are left behind.
        timeout: seconds; loading goes on when it has passed, and asking again waits for it.

    Raises:
        FailedPrecondition: not a twin, another file serves under its name and version, or
            galleries would be left behind.
        NotFound: no such file.
    """
    request = model_service_pb2.LoadModelRequest(file=file, name=name, aliases=aliases, force=force)
    return Call(lambda stubs: stubs.model.LoadModel, request, _model, timeout)


def unload_model(
    name: str,
    version: str = "",
    *,
    force: bool = False,
    timeout: float | None = None,
) -> Call[None]:
    """Have the server stop serving a version, once the calls that run are done.

    Args:
        name: of the model.
        version: of it; "" where only one is served.
        force: do it even where aliases point at it, which go too, or galleries need it.
        timeout: seconds, in place of the client's own.

    Raises:
        ModelNotFound: it is not served; also when the connection broke after it was unloaded,
            and a retry asked again.
        FailedPrecondition: aliases or galleries need it.
    """
    request = model_service_pb2.UnloadModelRequest(name=name, version=version, force=force)
    return Call(lambda stubs: stubs.model.UnloadModel, request, nothing, timeout)


def set_alias(
    alias: str,
    name: str,
    version: str = "",
    *,
    force: bool = False,
    timeout: float | None = None,
) -> Call[Model]:
    """Point an alias, new or not, at a loaded version ("" is the newest), and return that.

    Raises:
        FailedPrecondition: another model has this name, or galleries would be left behind.
    """
    request = model_service_pb2.SetAliasRequest(
        alias=alias, name=name, version=version, force=force
    )
    return Call(lambda stubs: stubs.model.SetAlias, request, _model, timeout)


def delete_alias(alias: str, *, force: bool = False, timeout: float | None = None) -> Call[None]:
    """Take an alias away.

    Raises:
        NotFound: there is none.
        FailedPrecondition: galleries would be left behind.
    """
    request = model_service_pb2.DeleteAliasRequest(alias=alias, force=force)
    return Call(lambda stubs: stubs.model.DeleteAlias, request, nothing, timeout)


def start_shadow(
    candidate: str, model: str, share: float, *, timeout: float | None = None
) -> Call[Shadow]:
    """Have a share of a model's live calls sent to a candidate too; callers see nothing of it.

    The report so far is `model(candidate).shadow`.

    Args:
        candidate: name, name@version or alias.
        model: likewise.
        share: of the calls, in (0, 1].
        timeout: seconds, in place of the client's own.

    Raises:
        FailedPrecondition: both are one, take other inputs, or one of both is in a run.
    """
    request = model_service_pb2.StartShadowRequest(candidate=candidate, model=model, share=share)
    return Call(lambda stubs: stubs.model.StartShadow, request, _shadow, timeout)


def stop_shadow(candidate: str, *, timeout: float | None = None) -> Call[Shadow]:
    """End a shadow run, and return its last report.

    Raises:
        NotFound: it is not the candidate of a run; also when a retry asked again.
    """
    request = model_service_pb2.StopShadowRequest(candidate=candidate)
    return Call(lambda stubs: stubs.model.StopShadow, request, _shadow, timeout)


def health(service: str = "", *, timeout: float | None = None) -> Call[Health]:
    """Return what the server says of itself, or of one service; asked once, without retry.

    Raises:
        Unavailable: nobody answers there.
        NotFound: the server knows no such service.
    """
    request = health_pb2.HealthCheckRequest(service=service)

    def read(reply: health_pb2.HealthCheckResponse) -> Health:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        return Health(name) if name in set(Health) else Health.UNKNOWN

    return Call(lambda stubs: stubs.health.Check, request, read, timeout, retried=False)


def _model(
    reply: (
        model_service_pb2.GetModelResponse
        | model_service_pb2.LoadModelResponse
        | model_service_pb2.SetAliasResponse
    ),
) -> Model:
    return messages.from_model(reply.model)


def _shadow(
    reply: model_service_pb2.StartShadowResponse | model_service_pb2.StopShadowResponse,
) -> Shadow:
    return messages.from_shadow(reply.shadow)
