"""Events as lines for people: what a coordinator prints when nobody reads its JSON."""

from .api.token import token_path
from .coordinator import Ended, Exported, Over
from .events import (
    Checkpointed,
    CheckpointFailed,
    Evaluated,
    Event,
    Follows,
    Joined,
    Leads,
    Listening,
    Lost,
    Ready,
    Rerouted,
    Stepped,
    Waiting,
    WentBack,
)


def line_of(event: Event) -> str | None:
    """One line, or None for events that are too fine to print."""
    match event:
        case Listening():
            lines = [f"run {event.run_id}\njoin it with:\n\n    {event.join}\n"]
            if event.invite:
                lines.append(
                    f"or by this invite, which its organizer has signed:\n\n    swarm-peer join {event.invite}\n"
                )
            if event.stand_by:
                lines.append(
                    f"another coordinator (with the organizer's key), or this one again:\n\n    {event.stand_by}\n"
                )
            shown = f"watch it at {event.dashboard}\n" if event.dashboard else ""
            shown += f"the API is at {event.api}, its token in {token_path(event.run_id)}\n" if event.api else ""
            return "\n".join([*lines, shown] if shown else lines)
        case Leads():
            return f"leading the run in term {event.term}"
        case Follows():
            return f"standing by; the run is led by {event.trainer[-8:]} in term {event.term}"
        case Over():
            return "the run is over; the coordinator that led it has the report"
        case Joined():
            return f"peer {event.peer[-8:]} joins stage {event.stage}"
        case Ready():
            return f"peer {event.peer[-8:]} is ready at stage {event.stage}"
        case Evaluated():
            return f"held-out loss at version {event.version}: {event.loss:.4f}"
        case Stepped():
            peers = " ".join(str(count) for count in event.replicas)
            rate = event.tokens / event.seconds if event.seconds else 0.0
            return f"step {event.step}: loss {event.loss:.4f}, {rate:.0f} tokens/s, peers a stage: {peers}"
        case Lost():
            return f"peer {event.peer[-8:]} of stage {event.stage} is lost at step {event.at_step}: {event.why}"
        case Rerouted():
            return f"microbatch {event.index} of step {event.step} is done without {event.peer[-8:]}"
        case Waiting():
            return (
                f"waiting for stage {event.stage}: it has no replica. One that returns goes on; a new one "
                f"(swarm-peer join --stage {event.stage}) goes back to step {event.step}"
            )
        case WentBack():
            undone = f": {event.lost} committed steps are undone" if event.lost else ""
            return f"going on from step {event.step} in epoch {event.epoch}{undone}"
        case CheckpointFailed():
            return f"no checkpoint at step {event.step}: {event.error}"
        case Checkpointed():
            return f"checkpoint at step {event.step}"
        case Exported():
            return f"nothing was exported: {event.error}" if event.error else f"exported to {event.folder}"
        case Ended():
            ledger = event.report["ledger"]
            counts = f"lost {ledger['lost']}, duplicated {ledger['duplicated']}"
            return f"{event.error or 'the run is finished'} ({ledger['microbatches']} microbatches, {counts})"
    return None
