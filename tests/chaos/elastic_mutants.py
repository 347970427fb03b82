"""The rules of epochs, checkpoints and newcomers, each broken on purpose, as `mutants.py` does with the others.

Most are noticed on schedules written by hand (`written.py`). That a mover's old member leaves only when the new one
serves is not among them: whoever leaves does so politely (`departures.py`), so that without that rule the promises
are kept all the same, with fewer replicas for a while; `test_moving.py` judges the order.
"""

from collections.abc import Callable
from typing import Any

from swarm_peer.errors import FencedError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm.admission import Admission
from swarm_peer.swarm.beginning import Beginning
from swarm_peer.swarm.closing import Closing
from swarm_peer.swarm.crew import Crew
from swarm_peer.swarm.epochs import Lineage
from swarm_peer.swarm.host import StageHost
from swarm_peer.swarm.readiness import Readiness
from swarm_peer.swarm.recollection import Recollection
from swarm_peer.swarm.reduction import Reducer
from swarm_peer.swarm.roster import Member
from swarm_peer.swarm.succession import Succession
from swarm_peer.swarm.taking_over import TakingOver
from swarm_peer.swarm.visits import Visit

from tests.chaos import written
from tests.chaos.mutants import Mutant, ignore, nobody, yes
from tests.chaos.schedules import Schedule, draw_elastic, draw_made_anew
from tests.chaos.virtual import Chaos

_admit = StageHost._admit


async def admit_any_epoch(self: StageHost, run: pb.Run, payload: bytes, sender: str) -> Visit | pb.Busy:
    run.epoch = self.authority.epoch
    return await _admit(self, run, payload, sender)


def enter_with_everything(self: StageHost, lineage: Lineage) -> None:
    self.recollection.go_back(lineage.first)
    self.lineage = lineage
    self.snapshots.epoch = lineage.number
    self.authority.enter(lineage.number)


def digest_by_replicas(self: Beginning, stage: int, version: int) -> bytes | None:
    return self.roster.digest_of(stage, version)


def first_that_was_told(self: Crew) -> list[pb.Commit]:
    return [commit for _, held in self.reports for commit in held.commits]


def has_nobody(self: Closing, stage: int) -> bool:
    return not any(member.stage == stage for member in self.roster.following())


def stay_loaded(self: Readiness, member: Member) -> None:
    member.loaded = True
    self.signal.notify()


def close_all_but_giving(self: Admission) -> None:
    giving, self._giving = self._giving, set()
    _close(self)
    self._giving = giving


_close = Admission.close


def no_commits(self: Beginning) -> dict[int, pb.Commit]:
    return {}


def give_up_resuming(self: Succession) -> None:
    raise FencedError("a higher term has been")


def most_kept(chaos: Chaos) -> float:
    return chaos.most_kept


def hand_written(
    rule: str,
    schedule: Callable[[int], Schedule],
    *patches: tuple[type, str, Any],
    costs: Callable[[Chaos], float] | None = None,
) -> Mutant:
    return Mutant(rule, patches, costs, draw=schedule, limit=written.LIMIT)


ELASTIC_SECONDS = 100.0

ELASTIC_MUTANTS: dict[str, Mutant] = {
    "any-epoch": hand_written(
        "an epoch is part of every key: a Run of another one is refused",
        written.away_while_the_run_went_back,
        (StageHost, "_admit", admit_any_epoch),
    ),
    "keep-state": Mutant(
        "who enters an epoch drops its state, visits and gradients",
        ((StageHost, "enter", enter_with_everything),),
        draw=draw_elastic,
        limit=ELASTIC_SECONDS,
    ),
    "remember-what-is-undone": hand_written(
        "what was told of steps that are no part of the run any more is forgotten",
        written.standby_that_missed_an_epoch,
        (Lineage, "holds", yes),
        (Recollection, "go_back", ignore),
    ),
    "any-restored-state": hand_written(
        "a state that was restored is compared with the checkpoint's digest",
        written.checkpoint_that_is_loaded_wrong,
        (Beginning, "digest_of", digest_by_replicas),
    ),
    "wait-for-what-is-gone": Mutant(
        "a stage whose replicas are behind, and cannot be brought up to date, is lost",
        ((Closing, "is_lost", has_nobody),),
        draw=draw_elastic,
        limit=ELASTIC_SECONDS,
    ),
    "first-commit-told": Mutant(
        "of a step of which a reduction was made anew the last Commit counts",
        ((Crew, "commits", first_that_was_told), (TakingOver, "_renew", ignore)),
        draw=draw_made_anew,
        limit=ELASTIC_SECONDS,
    ),
    "leave-waiting": hand_written(
        "a newcomer to whom nobody could give a state is taken up when somebody can",
        written.back_before_patience_is_over,
        (Readiness, "loaded", stay_loaded),
    ),
    "keep-giving": hand_written(
        "a term that is over gives nothing of its checkpoint any more: its streams are closed",
        written.twice_back,
        (Admission, "close", close_all_but_giving),
    ),
    "no-holder": hand_written(
        "a trainer is named as a holder of the reduction in its checkpoint",
        written.twice_back,
        (Beginning, "restores", nobody),
    ),
    "no-restored-commit": hand_written(
        "newcomers are sent the Commit of the checkpoint", written.twice_back, (Beginning, "commits", no_commits)
    ),
    "give-up-resuming": hand_written(
        "who resumes a run goes beyond the terms that peers know",
        written.resumed_by_another,
        (Succession, "_try_again", give_up_resuming),
    ),
    "keep-reductions": hand_written(
        "who enters an epoch drops its reductions", written.twice_back, (Reducer, "clear", ignore), costs=most_kept
    ),
}
