"""What operators watch: Prometheus metrics by vLLM's names, and a few of our own."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ringworld.serve.engine_thread import EngineThread
from ringworld.serve.film_codes import KeptCodes

# What vLLM has too, by its names, and what only we have.
SHARED, OWN = "vllm:", "ringworld:"
LABEL = "model_name"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKENS = tuple(float(1 << i) for i in range(0, 22, 2))


class EngineCollector(Collector):
    """The engine's own counters and the kept codes, read when they are asked for."""

    def __init__(self, thread: EngineThread, codes: KeptCodes, model: str) -> None:
        self._thread, self._codes, self._model = thread, codes, model

    def collect(self) -> Iterator[Metric]:
        """Gauges of rows and pages, and counters of tokens."""
        held = self._thread.counters
        if held is None:
            return
        gauges = {
            SHARED + "num_requests_running": held.running,
            SHARED + "num_requests_waiting": held.waiting,
            SHARED + "kv_cache_usage_perc": held.pages_read / held.most_pages,
            OWN + "kv_pages_read": held.pages_read,
            OWN + "kv_pages_kept": held.pages_kept,
            OWN + "kv_bytes": held.bytes,
            OWN + "film_codes_kept": len(self._codes),
            OWN + "film_codes_bytes": self._codes.bytes,
        }
        totals = {
            SHARED + "prefix_cache_queries": held.computed + held.reused,
            SHARED + "prefix_cache_hits": held.reused,
            OWN + "kv_pages_evicted": held.evicted,
            OWN + "film_codes_evicted": self._codes.evicted,
        }
        for family, values in ((GaugeMetricFamily, gauges), (CounterMetricFamily, totals)):
            for name, value in values.items():
                metric = family(name, name.partition(":")[2].replace("_", " "), labels=[LABEL])
                metric.add_metric([self._model], value)
                yield metric


class ServerMetrics:
    """The metrics of one server."""

    def __init__(self, thread: EngineThread, codes: KeptCodes, model: str) -> None:
        self._registry, self._model = CollectorRegistry(), model
        self._registry.register(EngineCollector(thread, codes, model))
        self.prompt_tokens = self._count("prompt_tokens", "tokens of prompts")
        self.generation_tokens = self._count("generation_tokens", "tokens of answers")
        self.dreamed_frames = self._count("dreamed_frames", "frames of games", OWN)
        self.first_token = self._time("time_to_first_token_seconds", "until the first token")
        self.between_tokens = self._time("inter_token_latency_seconds", "between two tokens")
        self.whole = self._time("e2e_request_latency_seconds", "of a whole request")
        self.prompt_lengths = self._length("request_prompt_tokens", "tokens of a request's prompts")
        self.answer_lengths = self._length("request_generation_tokens", "tokens of an answer")
        self._succeeded = Counter(
            SHARED + "request_success",
            "answers that ended",
            [LABEL, "finished_reason"],
            registry=self._registry,
        )

    def count_end(self, reason: str) -> None:
        """Count an answer that has ended."""
        self._succeeded.labels(self._model, reason).inc()

    def _count(self, name: str, said: str, whose: str = SHARED) -> Counter:
        return Counter(whose + name, said, [LABEL], registry=self._registry).labels(self._model)

    def _time(self, name: str, said: str) -> Histogram:
        return self._measure(name, said, SECONDS)

    def _length(self, name: str, said: str) -> Histogram:
        return self._measure(name, said, TOKENS)

    def _measure(self, name: str, said: str, buckets: Sequence[float]) -> Histogram:
        made = Histogram(SHARED + name, said, [LABEL], buckets=buckets, registry=self._registry)
        return made.labels(self._model)

    def expose(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
