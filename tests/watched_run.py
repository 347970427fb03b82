"""A chronicle with a small story in it, for tests of what shows it."""

from swarm_peer.swarm import events
from swarm_peer.swarm.chronicle import Chronicle
from swarm_peer.swarm.events import Event, MemberPulse

OPENED = events.Opened(
    run_id="ab" * 32,
    model="tiny",
    mode="lora",
    base="nf4",
    stages=3,
    steps=10,
    microbatches=4,
    step_tokens=400,
    staleness=1,
    min_replicas=2,
    slots=8,
    activations="int8",
    gradients="dynamic8",
    activation_bytes=100,
    gradient_bytes=200,
    plain_bytes=400,
    layers=((0, 1), (2, 3), (4, 5)),
    costs=(1.0, 1.0, 2.0),
    memory=(10**9, 2 * 10**9, 3 * 10**9),
)
LISTENING = events.Listening(
    run_id="ab" * 32,
    model="tiny",
    stages=3,
    steps=10,
    microbatches=4,
    addresses=("/ip4/1.2.3.4/tcp/4001",),
    join="swarm-peer join --run abab",
    stand_by="",
    pid=1,
)


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def pulse(member: int, *, seconds: float = 0.1, version: int = 0, open: int = 2, below: int = 1) -> MemberPulse:
    return MemberPulse(
        member=member,
        version=version,
        open=open,
        below=below,
        waits_for="peer3",
        forward=seconds / 3,
        backward=2 * seconds / 3,
        codec_seconds=0.5,
        activation_bytes=1000,
        gradient_bytes=2000,
        reduce_bytes=300,
        busy=3,
        refused=(("MALFORMED", 2),),
    )


def stepped(step: int, loss: float = 4.0) -> events.Stepped:
    return events.Stepped(step, loss, 0.5, 400, 2.0, max(0, step - 1), (2, 2, 2), 0, 6)


def beginning() -> list[Event]:
    """Six peers, two a stage, of which stage 1's are twice as slow; one step."""
    story: list[Event] = [events.Leads(1), OPENED, LISTENING]
    story += [events.Joined(number, f"peer{number}", (number - 1) % 3, name=f"box {number}") for number in range(1, 7)]
    story += [events.Ready(number, f"peer{number}", (number - 1) % 3) for number in range(1, 7)]
    pulses = tuple(pulse(number, seconds=0.2 if number in (2, 5) else 0.1) for number in range(1, 7))
    links = (events.LinkPulse(2, "peer3", 0.05, 200 * 10**6),)
    story += [events.Evaluated(0, 5.0), events.Pulse(pulses, links, 0, 3, 12, 5000), stepped(0)]
    story.append(events.Settled(0, ((1, 2), (2, 3), (3, 2), (4, 2), (5, 1), (6, 2)), 4, 0, 0, 0, 0))
    return story


def told(*story: Event, clock: Clock | None = None) -> Chronicle:
    """A chronicle in memory of these events, a second apart."""
    clock = clock or Clock()
    chronicle = Chronicle(None, clock, lambda event: None)
    for event in story:
        clock.now += 1.0
        chronicle.emit(event)
    return chronicle
