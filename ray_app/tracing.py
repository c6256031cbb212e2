"""Traces of requests through the agents: OpenTelemetry spans, across processes.

    request                          the ingress (`serve.limits`)
      Retrieval.fetch       client   the orchestrator waits, queue included
        Retrieval.fetch     server   the agent works
      Swing.propose ...

Context variables end where a process does, so a hop carries W3C trace context and request id along as an
argument. OTEL_EXPORTER_OTLP_ENDPOINT switches traces on and says where they go (OTLP over HTTP); the
other variables of OpenTelemetry's SDK, samplers for instance, count as well. A hop that belongs to no
request, a health check say, makes no span; nor does anything while traces are off.

https://opentelemetry.io/docs/specs/otel/trace/api/, https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ray_app import __version__, logs

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
REQUEST, HOP = "request", "hop"
Carrier = dict[str, str]
"""`traceparent`, `tracestate` as W3C writes them; `request`, the request's id; `hop`, the call's name."""
_W3C = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("rationale", __version__)


@cache
def set_up() -> None:
    """Export this process' spans, if the environment says where to. Once."""
    if not os.environ.get(ENDPOINT):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "rationale", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def request(name: str, request_id: str, carrier: Carrier) -> Iterator[Span]:
    """The span of a whole request; `carrier` may hold the client's own trace context."""
    set_up()
    with (
        logs.about(request=request_id),
        _tracer.start_as_current_span(
            name, _W3C.extract(carrier), SpanKind.SERVER, {"rationale.request": request_id}
        ) as span,
    ):
        yield span


@contextmanager
def hop(name: str) -> Iterator[Carrier]:
    """The caller's side of a call; yields what the called side needs, nothing outside a request."""
    if REQUEST not in (known := logs.known()):
        yield {}
        return
    carrier = {REQUEST: known[REQUEST], HOP: name}
    with _tracer.start_as_current_span(
        name, kind=SpanKind.CLIENT, attributes={"rationale.request": known[REQUEST]}
    ):
        _W3C.inject(carrier)
        yield carrier


def traced(agent: type) -> type:
    """Class decorator: public async methods take a `carrier` and work in a span and log context of it."""
    for name, method in list(vars(agent).items()):
        if inspect.iscoroutinefunction(method) and not name.startswith("_") and name != "check_health":
            setattr(agent, name, _called(method))
    return agent


def _called(method: Any) -> Any:
    @wraps(method)
    async def call(self: Any, *args: Any, carrier: Carrier | None = None) -> Any:
        if not carrier:
            return await method(self, *args)
        set_up()
        logs.set_up()
        request_id = carrier[REQUEST]
        with (
            logs.about(request=request_id),
            _tracer.start_as_current_span(
                carrier[HOP], _W3C.extract(carrier), SpanKind.SERVER, {"rationale.request": request_id}
            ),
        ):
            return await method(self, *args)

    return call
