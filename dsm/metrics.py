"""Figures of a service for Prometheus, over HTTP: imported only where somebody has asked for them.

The server has a thread of its own, which reads numbers that the service's thread goes on counting: a figure may be a
moment old, and two of them not of the same moment. It walks over copies of the service's dictionaries, each of which is
made in one step as far as Python's threads are concerned, and takes no lock: the way of a fault does not know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dsm.address import host_of, port_of
from dsm.errors import InvalidArgument

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class Figure(NamedTuple):
    """One figure: ``name`` without the unit that Prometheus appends to what is ``counted``, and the ``labels`` that
    tell its ``value`` from others of the name."""

    name: str
    text: str
    value: float
    counted: bool = False
    labels: dict[str, str] = {}  # noqa: RUF012  # nobody writes to it


class _Collector:
    def __init__(self, collect: Callable[[], Iterable[Figure]]) -> None:
        self._collect: Final = collect

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, Any] = {}
        for figure in self._collect():
            family = families.get(figure.name)
            if family is None:
                make = CounterMetricFamily if figure.counted else GaugeMetricFamily
                family = families[figure.name] = make(figure.name, figure.text, labels=list(figure.labels))
            family.add_metric(list(figure.labels.values()), figure.value)
        return families.values()


def serve(address: str, collect: Callable[[], Iterable[Figure]]) -> None:
    """Answer whoever asks ``http://HOST:PORT/metrics`` with what ``collect`` finds; ``address`` is ``HOST:PORT``.

    Raises :class:`InvalidArgument` if nobody can listen there, or if the package prometheus-client is missing.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        text = "--metrics needs the package prometheus-client: pip install 'dsm[metrics]'"
        raise InvalidArgument(text) from error
    registry = CollectorRegistry()
    registry.register(_Collector(collect))
    try:
        start_http_server(port_of(f"tcp://{address}"), host_of(f"tcp://{address}"), registry)
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"cannot serve metrics at {address!r}: {error}; give HOST:PORT") from error
