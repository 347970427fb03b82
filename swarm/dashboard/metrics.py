"""The run for Prometheus: the same document that all views show, as metrics.

Counters are sums over the whole run, from the log: they go on when a coordinator is started again. Members are listed
one by one up to `MAX_MEMBERS`; of larger swarms only the stages are, so that a scrape stays small. Labels are stages
and short peer ids, never names that strangers choose.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ... import __version__
from ..run_state import RunState
from ..run_view import short, view

MAX_MEMBERS = 200
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
PHASES = ("gathering", "training", "waiting", "paused", "standby", "finished", "stopped")


def metrics_text(state: RunState) -> bytes:
    """A scrape, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_RunCollector(view(state)))
    return generate_latest(registry)


class _RunCollector(Collector):
    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def collect(self) -> Iterator[Metric]:
        document = self._document
        progress, ledger, wire = document["progress"], document["ledger"], document["wire"]
        yield _gauge("swarm_build_info", "The coordinator's version.", ["version"], [((__version__,), 1.0)])
        phases = [((phase,), float(phase == document["phase"])) for phase in PHASES]
        yield _gauge("swarm_phase", "1 for the phase that the run is in.", ["phase"], phases)
        yield _gauge("swarm_step", "Steps that are committed.", [], [((), progress["step"] + 1)])
        yield _gauge("swarm_steps", "Steps that the run is to take.", [], [((), document["run"].get("steps", 0))])
        for name, key, help_text in (
            ("swarm_loss", "loss", "Training loss of the last step, nats a token."),
            ("swarm_heldout_loss", "heldout", "Held-out loss at the newest version that was measured, nats a token."),
            ("swarm_gradient_norm", "grad_norm", "Norm of the last step's gradient, a token, before clipping."),
            ("swarm_seconds_left", "seconds_left", "Seconds to the last step at the present pace."),
        ):
            yield _gauge(name, help_text, [], [((), progress[key])] if progress[key] is not None else [])
        for name, key, help_text in (
            ("swarm_tokens_per_second", "tokens_per_second", "Tokens learned a second, over the last steps."),
            ("swarm_ideal_tokens_per_second", "ideal_tokens_per_second", "The same if links took no time."),
            ("swarm_in_flight", "in_flight", "Microbatches under way."),
            ("swarm_window", "window", "Microbatches that may be under way."),
        ):
            yield _gauge(name, help_text, [], [((), progress[key])])
        yield _counter("swarm_tokens", "Tokens learned.", [], [((), progress["tokens"])])
        for name, key, help_text in (
            ("swarm_microbatches", "microbatches", "Microbatches of closed steps."),
            ("swarm_lost", "lost", "Stage-microbatches that no gradient holds. Must be 0."),
            ("swarm_duplicated", "duplicated", "Stage-microbatches that are counted twice. Must be 0."),
            ("swarm_reissued", "reissued", "Stage-visits begun beyond the first."),
            ("swarm_taken_back", "taken_back", "Stage-visits removed before a reduction."),
            ("swarm_faults", "faults", "Peers lost."),
        ):
            yield _counter(name, help_text, [], [((), ledger[key])])
        faults = document["faults"].values()
        yield _histogram(
            "swarm_detection_seconds",
            "From the last sign of a lost peer to its loss, of the faults that are remembered.",
            [fault["silent"] for fault in faults],
        )
        yield _histogram(
            "swarm_reroute_seconds",
            "From the loss of a peer to the first microbatch done without it, of the faults that are remembered.",
            [fault["rerouted"] for fault in faults if fault["rerouted"] is not None],
        )
        kinds = [((kind,), wire[f"{kind}_bytes"]) for kind in ("activation", "gradient", "reduce", "trainer")]
        yield _counter("swarm_wire_bytes", "Bytes sent, by what they carry.", ["kind"], kinds)
        yield _counter("swarm_saved_bytes", "Bytes that fp32 would have added.", [], [((), wire["saved_bytes"])])
        yield _counter("swarm_codec_seconds", "Seconds in codecs, of all peers.", [], [((), wire["codec_seconds"])])
        stages = document["stages"].items()
        for name, key, help_text in (
            ("swarm_stage_replicas", "replicas", "Replicas that take visits."),
            ("swarm_stage_queue", "queue", "Open visits that wait for a stage's devices, or are on them."),
            ("swarm_stage_rate", "rate", "Visits a second that a stage could do; 0 before it is known."),
        ):
            yield _gauge(name, help_text, ["stage"], [((stage,), found[key]) for stage, found in stages])
        yield from self._members()

    def _members(self) -> Iterator[Metric]:
        members = self._document["members"]
        shown = list(members.values()) if len(members) <= MAX_MEMBERS else []
        labels = ["peer", "stage"]

        def of(key: str) -> list[tuple[tuple[str, ...], float]]:
            return [((short(member["peer"]), str(member["stage"])), member.get(key, 0) or 0) for member in shown]

        yield _gauge("swarm_members", "Peers that are here.", [], [((), len(members))])
        yield _gauge("swarm_member_open_visits", f"Open visits (of up to {MAX_MEMBERS} peers).", labels, of("open"))
        yield _gauge("swarm_member_version", "The newest version that a peer has.", labels, of("version"))
        yield _gauge("swarm_member_forward_seconds", "Smoothed seconds of a forward pass.", labels, of("forward"))
        yield _gauge("swarm_member_backward_seconds", "Smoothed seconds of a backward pass.", labels, of("backward"))
        yield _counter("swarm_member_counted", "Microbatches of a peer in updates.", labels, of("counted"))
        yield _counter("swarm_member_sent_bytes", "Bytes that a peer has sent.", labels, of("sent"))


Samples = Sequence[tuple[tuple[str, ...], Any]]


def _gauge(name: str, help_text: str, labels: list[str], samples: Samples) -> Metric:
    found = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in samples:
        found.add_metric(list(values), float(value))
    return found


def _counter(name: str, help_text: str, labels: list[str], samples: Samples) -> Metric:
    found = CounterMetricFamily(name, help_text, labels=labels)
    for values, value in samples:
        found.add_metric(list(values), float(value))
    return found


def _histogram(name: str, help_text: str, seconds: list[float]) -> Metric:
    found = HistogramMetricFamily(name, help_text)
    buckets = [(str(bound), float(sum(each <= bound for each in seconds))) for bound in BUCKETS]
    found.add_metric([], [*buckets, ("+Inf", float(len(seconds)))], sum(seconds))
    return found
