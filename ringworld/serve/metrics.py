"""What operators watch: Prometheus metrics under vLLM's names, with our prefix."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.film_codes import KeptCodes

METRIC_PREFIX = "ringworld:"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class EngineCollector(Collector):
    """The engine's own counters and the kept codes, read when they are asked for."""

    def __init__(self, thread: EngineThread, codes: KeptCodes) -> None:
        self._thread, self._codes = thread, codes

    def collect(self) -> Iterator[Metric]:
        """Gauges of rows and pages, and counters of tokens."""
        held = self._thread.counters
        if held is None:
            return
        gauges = {
            "num_requests_running": held.running,
            "num_requests_waiting": held.waiting,
            "kv_pages_read": held.pages_read,
            "kv_pages_kept": held.pages_kept,
            "kv_bytes": held.bytes,
            "film_codes_kept": len(self._codes),
            "film_codes_bytes": self._codes.bytes,
        }
        for name, value in gauges.items():
            yield GaugeMetricFamily(METRIC_PREFIX + name, name.replace("_", " "), value=value)
        totals = {
            "prefix_cache_queries": held.computed + held.reused,
            "prefix_cache_hits": held.reused,
            "kv_pages_evicted": held.evicted,
            "film_codes_evicted": self._codes.evicted,
        }
        for name, value in totals.items():
            yield CounterMetricFamily(METRIC_PREFIX + name, name.replace("_", " "), value=value)


class ServerMetrics:
    """The metrics of one server."""

    def __init__(self, thread: EngineThread, codes: KeptCodes) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(thread, codes))
        self.prompt_tokens = self._count("prompt_tokens", "tokens of prompts")
        self.generation_tokens = self._count("generation_tokens", "tokens of answers")
        self.succeeded = Counter(
            METRIC_PREFIX + "request_success",
            "answers that ended",
            ["finished_reason"],
            registry=self._registry,
        )
        self.first_token = self._time("time_to_first_token_seconds", "until the first token")
        self.whole = self._time("e2e_request_latency_seconds", "of a whole request")

    def _count(self, name: str, said: str) -> Counter:
        return Counter(METRIC_PREFIX + name, said, registry=self._registry)

    def _time(self, name: str, said: str) -> Histogram:
        return Histogram(METRIC_PREFIX + name, said, buckets=SECONDS, registry=self._registry)

    def expose(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
