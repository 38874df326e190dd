"""Prometheus metrics: counters and histograms of requests, gauges of the engine, and the event loop's lag.

One registry per server. Gauges are read when they are scraped.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from actorllm.engine import Engine
from actorllm.scheduling.request import FinishedRequest
from actorllm.stream import RequestStream

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
LAG_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LAG_PERIOD = 0.25
REQUEST_SUCCESS = "Choices that ended, by reason: stop and length succeeded, error failed, abort was left by its client"
"""The help of a counter whose name is the one that dashboards know."""


class EngineCollector(Collector):
    """The engine's own statistics, read when they are scraped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Gauges of this moment, then counters, which never go back."""
        now = self._engine.statistics()
        usage = sum(now.slots_in_use) / max(sum(now.num_slots), 1)
        yield GaugeMetricFamily("actorllm_num_requests_running", "Choices that hold a row of the device", now.num_running)
        yield GaugeMetricFamily("actorllm_num_requests_waiting", "Requests that wait to run", now.num_waiting)
        yield GaugeMetricFamily("actorllm_kv_cache_usage_perc", "Share of token slots in use, 0 to 1", usage)
        yield CounterMetricFamily("actorllm_pauses", "Pauses for lack of slots", now.num_pauses)
        yield CounterMetricFamily("actorllm_restarts", "Restarts of actors", now.num_restarts)
        yield CounterMetricFamily("actorllm_steps", "Device steps", now.num_steps)


class TokenLatency(Collector):
    """The histogram of seconds between tokens. It is observed for every token of every stream and on the event loop alone, so
    it has neither the library's lock nor its walk over the buckets."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, num_tokens: int) -> None:
        """Count tokens that came together, `seconds` after the ones before them."""
        self._counts[bisect_left(SECONDS, seconds / num_tokens)] += num_tokens
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The buckets with what lies below each bound."""
        bounds = [*map(str, SECONDS), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(
            "actorllm_inter_token_latency_seconds", "Between tokens of a request", buckets=buckets, sum_value=self._sum
        )


class Metrics:
    """What `/metrics` shows; every name begins with `actorllm_`."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of ended requests")
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens of ended requests")
        self.request_success = self._counter("request_success", REQUEST_SUCCESS, ("finished_reason",))
        self.responses = self._counter("http_responses", "HTTP answers, by status", ("status",))
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token")
        self.inter_token_latency = TokenLatency()
        self._registry.register(self.inter_token_latency)
        self.e2e_latency = self._histogram("e2e_request_latency_seconds", "From arrival to the end")
        self.queue_time = self._histogram("request_queue_time_seconds", "From arrival to the first step")
        self.loop_lag = self._histogram("loop_lag_seconds", "How late the event loop wakes a timer", LAG_SECONDS)
        self.chat_sockets = Gauge("actorllm_chat_sockets", "Chat sockets that are open", registry=self._registry)
        engine.finished_listeners.append(self.queued)
        self._registry.register(EngineCollector(engine))

    def queued(self, record: FinishedRequest) -> None:
        """Observe how long a request waited, if it ever ran."""
        if record.scheduled is not None:
            self.queue_time.observe(record.scheduled - record.arrived)

    def ended(self, streams: Sequence[RequestStream], seconds: float) -> None:
        """Count an HTTP request's streams when it is over."""
        self.e2e_latency.observe(seconds)
        for stream in streams:
            self.prompt_tokens.inc(stream.num_prompt_tokens)
            self.generation_tokens.inc(stream.num_output_tokens)
            for reason in stream.ends():
                self.request_success.labels(reason).inc()

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PERIOD
            await asyncio.sleep(LAG_PERIOD)
            self.loop_lag.observe(max(loop.time() - due, 0.0))

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"actorllm_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"actorllm_{name}", text, buckets=buckets, registry=self._registry)
