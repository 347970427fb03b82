"""What came of one run of a scenario, simulated or emulated, and where what the devices could have done went."""

from dataclasses import asdict, dataclass
from typing import Any

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """`replicas`: on average over the run; `busy`: the share of their time that their devices computed; `waiting`:
    visits in front of all its devices together, on average over the moments at which a step was committed."""

    replicas: float
    busy: float
    waiting: float


@dataclass(frozen=True, slots=True)
class Losses:
    """Shares of the bound that were not trained, by cause, over the time that is measured.

    `absent`: machines that were up but hosted nothing: on their way in, or too few for a stage. `uneven`: what the
    stages had beyond the weakest one. `repeated`: visits begun again. `waited`: the rest, in which devices waited: for
    links, for the pipeline to fill, for steps to close, for somebody to be missed.
    """

    absent: float
    uneven: float
    repeated: float
    waited: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run. `seconds`: of the scenario; `measured`: those from the first Commit to the last but one,
    over which `tokens_per_second` is; `bound`: what the devices that were there meanwhile would make of it with nothing
    to wait for and perfectly divided work; `recoveries`: seconds from each loss until its work was done by others;
    `steps`: (time, tokens) of every Commit; `stale`: by how many versions each step's gradients were older than what
    they updated; `traffic`: (time, bytes that all peers had sent) at every Commit; `bytes_up`, `bytes_down`: of all
    peers; `router`: the busiest seconds of an emulation's router, as a share of a core."""

    scenario: str
    seed: int
    seconds: float
    finished: bool
    steps: tuple[tuple[float, int], ...]
    measured: float
    tokens_per_second: float
    bound: float
    losses: Losses
    step_seconds: float
    stages: tuple[StageOutcome, ...]
    lost: int
    left: int
    moved: int
    went_back: int
    steps_undone: int
    recoveries: tuple[float, ...]
    reissued: int
    stale: tuple[int, ...]
    traffic: tuple[tuple[float, float], ...]
    bytes_up: float
    bytes_down: float
    happened: tuple[tuple[float, str, int], ...]
    explained: str
    router: float = 0.0

    @property
    def kept(self) -> float:
        """The share of the bound."""
        return self.tokens_per_second / self.bound if self.bound else 0.0

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.steps)

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["stages"] = [asdict(stage) for stage in self.stages]
        fields["losses"] = asdict(self.losses)
        return {**fields, "kept": self.kept}
