"""What a gateway adds to the metrics: workers and requests by version, restarts, roll-backs, scaling."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tutti.serve.gateway.follow import Follower


class Gauges(Collector):
    """Of what `follower` does."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def collect(self) -> Iterator[Metric]:
        fleet = self._follower.fleet
        workers = GaugeMetricFamily(
            "tutti_workers", "Processes that can answer, by version.", labels=["version"]
        )
        wanted = GaugeMetricFamily("tutti_workers_wanted", "That there should be.", labels=["version"])
        flying = GaugeMetricFamily("tutti_requests_in_flight", "With workers now.", labels=["version"])
        share = GaugeMetricFamily(
            "tutti_version_share", "Of all requests that a version gets, 0 to 1.", labels=["version"]
        )
        for number, pool in sorted(fleet.pools.items()):
            version = [str(number)]
            workers.add_metric(version, len(pool.ready))
            wanted.add_metric(version, pool.wanted)
            flying.add_metric(version, pool.in_flight)
            canary = fleet.percent / 100 if fleet.canary is not None else 0.0
            own = 1 - canary if number == fleet.serving else canary if number == fleet.canary else 0.0
            share.add_metric(version, own)
        yield from (workers, wanted, flying, share)
        requests = CounterMetricFamily(
            "tutti_version_requests", "That workers answered, by version.", labels=["version", "status"]
        )
        repeated = CounterMetricFamily(
            "tutti_version_repeated", "Tries that were repeated by another worker.", labels=["version"]
        )
        restarts = CounterMetricFamily(
            "tutti_worker_restarts", "Workers that died or were wedged.", labels=["version"]
        )
        for number, pool in sorted(self._follower.pools.items()):
            for status, count in sorted(pool.tally.statuses.items()):
                requests.add_metric([str(number), status], count)
            repeated.add_metric([str(number)], pool.tally.repeated)
            restarts.add_metric([str(number)], pool.restarts)
        yield from (requests, repeated, restarts)
        scaled = CounterMetricFamily(
            "tutti_scaled", "Workers that were added or sent away by load.", labels=["direction"]
        )
        for direction, count in self._follower.scaled.items():
            scaled.add_metric([direction], count)
        yield scaled
        back = self._follower.rolled_back
        yield CounterMetricFamily(
            "tutti_rollbacks", "Versions that were rolled back by themselves.", value=back
        )
