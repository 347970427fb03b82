from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAIN: _ClassVar[Mode]
    EVAL: _ClassVar[Mode]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUEUED: _ClassVar[Phase]
    FORWARD: _ClassVar[Phase]
    BELOW: _ClassVar[Phase]
    BACKWARD: _ClassVar[Phase]
    HELD: _ClassVar[Phase]
    ENDED: _ClassVar[Phase]
    RETURNED: _ClassVar[Phase]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNSPECIFIED: _ClassVar[Reason]
    WRONG_RUN: _ClassVar[Reason]
    WRONG_PROTOCOL: _ClassVar[Reason]
    WRONG_STAGE: _ClassVar[Reason]
    WRONG_EPOCH: _ClassVar[Reason]
    UNTRUSTED: _ClassVar[Reason]
    FENCED: _ClassVar[Reason]
    CLOSED: _ClassVar[Reason]
    SUPERSEDED: _ClassVar[Reason]
    STARTED: _ClassVar[Reason]
    NOT_READY: _ClassVar[Reason]
    MALFORMED: _ClassVar[Reason]
    TOO_LARGE: _ClassVar[Reason]
    NON_FINITE: _ClassVar[Reason]
    INPUT_GONE: _ClassVar[Reason]
    NOT_KEPT: _ClassVar[Reason]
    ORPHANED: _ClassVar[Reason]
    INTERNAL: _ClassVar[Reason]
    GRADIENT_GONE: _ClassVar[Reason]
    TRAINER_ALIVE: _ClassVar[Reason]
    WRONG_STATE: _ClassVar[Reason]
    TOO_OLD: _ClassVar[Reason]
    CUT_OFF: _ClassVar[Reason]
    REPLACED: _ClassVar[Reason]
TRAIN: Mode
EVAL: Mode
QUEUED: Phase
FORWARD: Phase
BELOW: Phase
BACKWARD: Phase
HELD: Phase
ENDED: Phase
RETURNED: Phase
UNSPECIFIED: Reason
WRONG_RUN: Reason
WRONG_PROTOCOL: Reason
WRONG_STAGE: Reason
WRONG_EPOCH: Reason
UNTRUSTED: Reason
FENCED: Reason
CLOSED: Reason
SUPERSEDED: Reason
STARTED: Reason
NOT_READY: Reason
MALFORMED: Reason
TOO_LARGE: Reason
NON_FINITE: Reason
INPUT_GONE: Reason
NOT_KEPT: Reason
ORPHANED: Reason
INTERNAL: Reason
GRADIENT_GONE: Reason
TRAINER_ALIVE: Reason
WRONG_STATE: Reason
TOO_OLD: Reason
CUT_OFF: Reason
REPLACED: Reason

class Envelope(_message.Message):
    __slots__ = ("run", "fetch", "part", "hello", "watch", "follow", "evaluate", "accepted", "busy", "refused", "progress", "done", "failed", "fetched", "part_result", "chunk", "past", "evaluated", "welcome", "reduce", "commit", "closed", "finish", "drain", "move", "ready", "reduced", "reduce_failed", "applied", "held", "leave", "loaded", "heartbeat")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    PART_RESULT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REDUCED_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FAILED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    run: Run
    fetch: Fetch
    part: Part
    hello: Hello
    watch: Watch
    follow: Follow
    evaluate: Evaluate
    accepted: Accepted
    busy: Busy
    refused: Refused
    progress: Progress
    done: Done
    failed: Failed
    fetched: Fetched
    part_result: PartResult
    chunk: Chunk
    past: Past
    evaluated: Evaluated
    welcome: Welcome
    reduce: Reduce
    commit: Commit
    closed: Closed
    finish: Finish
    drain: Drain
    move: Move
    ready: Ready
    reduced: Reduced
    reduce_failed: ReduceFailed
    applied: Applied
    held: Held
    leave: Leave
    loaded: Loaded
    heartbeat: Heartbeat
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., watch: _Optional[_Union[Watch, _Mapping]] = ..., follow: _Optional[_Union[Follow, _Mapping]] = ..., evaluate: _Optional[_Union[Evaluate, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., busy: _Optional[_Union[Busy, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., fetched: _Optional[_Union[Fetched, _Mapping]] = ..., part_result: _Optional[_Union[PartResult, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., past: _Optional[_Union[Past, _Mapping]] = ..., evaluated: _Optional[_Union[Evaluated, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., reduce: _Optional[_Union[Reduce, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., reduced: _Optional[_Union[Reduced, _Mapping]] = ..., reduce_failed: _Optional[_Union[ReduceFailed, _Mapping]] = ..., applied: _Optional[_Union[Applied, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., loaded: _Optional[_Union[Loaded, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Term(_message.Message):
    __slots__ = ("number", "trainer", "delegation", "signature")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    DELEGATION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    number: int
    trainer: str
    delegation: bytes
    signature: bytes
    def __init__(self, number: _Optional[int] = ..., trainer: _Optional[str] = ..., delegation: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Epoch(_message.Message):
    __slots__ = ("term", "first", "signature")
    TERM_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    term: Term
    first: int
    signature: bytes
    def __init__(self, term: _Optional[_Union[Term, _Mapping]] = ..., first: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Scalar(_message.Message):
    __slots__ = ("real", "residue")
    REAL_FIELD_NUMBER: _ClassVar[int]
    RESIDUE_FIELD_NUMBER: _ClassVar[int]
    real: float
    residue: int
    def __init__(self, real: _Optional[float] = ..., residue: _Optional[int] = ...) -> None: ...

class PathEntry(_message.Message):
    __slots__ = ("stage", "member", "phase", "begun", "peer")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    stage: int
    member: int
    phase: Phase
    begun: int
    peer: str
    def __init__(self, stage: _Optional[int] = ..., member: _Optional[int] = ..., phase: _Optional[_Union[Phase, str]] = ..., begun: _Optional[int] = ..., peer: _Optional[str] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("run", "term", "epoch", "mode", "step", "index", "samples", "version", "first", "last", "order", "hint", "labels", "input_holder", "gradient_holder", "closed", "payload", "lacking")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUT_HOLDER_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_HOLDER_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    run: str
    term: Term
    epoch: int
    mode: Mode
    step: int
    index: int
    samples: int
    version: int
    first: int
    last: int
    order: _containers.RepeatedScalarFieldContainer[int]
    hint: _containers.RepeatedCompositeFieldContainer[PathEntry]
    labels: bytes
    input_holder: str
    gradient_holder: str
    closed: int
    payload: int
    lacking: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, run: _Optional[str] = ..., term: _Optional[_Union[Term, _Mapping]] = ..., epoch: _Optional[int] = ..., mode: _Optional[_Union[Mode, str]] = ..., step: _Optional[int] = ..., index: _Optional[int] = ..., samples: _Optional[int] = ..., version: _Optional[int] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., order: _Optional[_Iterable[int]] = ..., hint: _Optional[_Iterable[_Union[PathEntry, _Mapping]]] = ..., labels: _Optional[bytes] = ..., input_holder: _Optional[str] = ..., gradient_holder: _Optional[str] = ..., closed: _Optional[int] = ..., payload: _Optional[int] = ..., lacking: _Optional[_Iterable[int]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("forward", "backward", "backlog", "below")
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    forward: int
    backward: int
    backlog: int
    below: int
    def __init__(self, forward: _Optional[int] = ..., backward: _Optional[int] = ..., backlog: _Optional[int] = ..., below: _Optional[int] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("load", "changes")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    load: Load
    changes: _containers.RepeatedCompositeFieldContainer[PathEntry]
    def __init__(self, load: _Optional[_Union[Load, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[PathEntry, _Mapping]]] = ...) -> None: ...

class Busy(_message.Message):
    __slots__ = ("retry_after_ms", "version", "load")
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    retry_after_ms: int
    version: bool
    load: Load
    def __init__(self, retry_after_ms: _Optional[int] = ..., version: bool = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "detail", "proof")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    detail: str
    proof: Term
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ..., proof: _Optional[_Union[Term, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("changes", "load")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[PathEntry]
    load: Load
    def __init__(self, changes: _Optional[_Iterable[_Union[PathEntry, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("loss", "path", "payload", "load")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    loss: Scalar
    path: _containers.RepeatedCompositeFieldContainer[PathEntry]
    payload: int
    load: Load
    def __init__(self, loss: _Optional[_Union[Scalar, _Mapping]] = ..., path: _Optional[_Iterable[_Union[PathEntry, _Mapping]]] = ..., payload: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("stage", "reason", "detail")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    stage: int
    reason: Reason
    detail: str
    def __init__(self, stage: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("run", "kind", "epoch", "step", "stage", "index", "term", "attempt", "group", "part", "version", "newest", "payload")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTPUT: _ClassVar[Fetch.Kind]
        INPUT_GRADIENT: _ClassVar[Fetch.Kind]
        REDUCTION: _ClassVar[Fetch.Kind]
        STATE: _ClassVar[Fetch.Kind]
        FILE: _ClassVar[Fetch.Kind]
        NOTHING: _ClassVar[Fetch.Kind]
    OUTPUT: Fetch.Kind
    INPUT_GRADIENT: Fetch.Kind
    REDUCTION: Fetch.Kind
    STATE: Fetch.Kind
    FILE: Fetch.Kind
    NOTHING: Fetch.Kind
    RUN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    run: str
    kind: Fetch.Kind
    epoch: int
    step: int
    stage: int
    index: int
    term: int
    attempt: int
    group: str
    part: int
    version: int
    newest: bool
    payload: int
    def __init__(self, run: _Optional[str] = ..., kind: _Optional[_Union[Fetch.Kind, str]] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., stage: _Optional[int] = ..., index: _Optional[int] = ..., term: _Optional[int] = ..., attempt: _Optional[int] = ..., group: _Optional[str] = ..., part: _Optional[int] = ..., version: _Optional[int] = ..., newest: bool = ..., payload: _Optional[int] = ...) -> None: ...

class Fetched(_message.Message):
    __slots__ = ("payload", "version", "parts", "size", "digests", "epoch")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    payload: int
    version: int
    parts: int
    size: int
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    epoch: int
    def __init__(self, payload: _Optional[int] = ..., version: _Optional[int] = ..., parts: _Optional[int] = ..., size: _Optional[int] = ..., digests: _Optional[_Iterable[bytes]] = ..., epoch: _Optional[int] = ...) -> None: ...

class Watch(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Part(_message.Message):
    __slots__ = ("run", "epoch", "step", "term", "attempt", "group", "roster", "member", "payload")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    run: str
    epoch: int
    step: int
    term: int
    attempt: int
    group: str
    roster: bytes
    member: int
    payload: int
    def __init__(self, run: _Optional[str] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., term: _Optional[int] = ..., attempt: _Optional[int] = ..., group: _Optional[str] = ..., roster: _Optional[bytes] = ..., member: _Optional[int] = ..., payload: _Optional[int] = ...) -> None: ...

class PartResult(_message.Message):
    __slots__ = ("squared_norm", "payload")
    SQUARED_NORM_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    squared_norm: Scalar
    payload: int
    def __init__(self, squared_norm: _Optional[_Union[Scalar, _Mapping]] = ..., payload: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("run", "protocol", "wanted_stage", "addresses", "term", "returning", "besides", "about", "epochs", "replaces", "fixed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WANTED_STAGE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    RETURNING_FIELD_NUMBER: _ClassVar[int]
    BESIDES_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    FIXED_FIELD_NUMBER: _ClassVar[int]
    run: str
    protocol: int
    wanted_stage: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    term: Term
    returning: bool
    besides: _containers.RepeatedScalarFieldContainer[int]
    about: About
    epochs: _containers.RepeatedCompositeFieldContainer[Epoch]
    replaces: int
    fixed: bool
    def __init__(self, run: _Optional[str] = ..., protocol: _Optional[int] = ..., wanted_stage: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., term: _Optional[_Union[Term, _Mapping]] = ..., returning: bool = ..., besides: _Optional[_Iterable[int]] = ..., about: _Optional[_Union[About, _Mapping]] = ..., epochs: _Optional[_Iterable[_Union[Epoch, _Mapping]]] = ..., replaces: _Optional[int] = ..., fixed: bool = ...) -> None: ...

class About(_message.Message):
    __slots__ = ("name", "version", "device", "memory", "up", "down")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    device: str
    memory: int
    up: int
    down: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., device: _Optional[str] = ..., memory: _Optional[int] = ..., up: _Optional[int] = ..., down: _Optional[int] = ...) -> None: ...

class Evaluate(_message.Message):
    __slots__ = ("run", "signature")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    signature: bytes
    def __init__(self, run: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Evaluated(_message.Message):
    __slots__ = ("version", "loss", "tokens", "bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    loss: Scalar
    tokens: int
    bytes: int
    def __init__(self, version: _Optional[int] = ..., loss: _Optional[_Union[Scalar, _Mapping]] = ..., tokens: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("manifest", "signature", "term", "member", "stage", "closed", "donors", "epochs", "began")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    DONORS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    signature: bytes
    term: Term
    member: int
    stage: int
    closed: int
    donors: _containers.RepeatedCompositeFieldContainer[Member]
    epochs: _containers.RepeatedCompositeFieldContainer[Epoch]
    began: bool
    def __init__(self, manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., term: _Optional[_Union[Term, _Mapping]] = ..., member: _Optional[int] = ..., stage: _Optional[int] = ..., closed: _Optional[int] = ..., donors: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., epochs: _Optional[_Iterable[_Union[Epoch, _Mapping]]] = ..., began: bool = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("digest", "version", "kernels", "slots")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    version: int
    kernels: str
    slots: int
    def __init__(self, digest: _Optional[bytes] = ..., version: _Optional[int] = ..., kernels: _Optional[str] = ..., slots: _Optional[int] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("closed", "steps", "commits", "kept", "founders", "past")
    class Loss(_message.Message):
        __slots__ = ("index", "loss")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        LOSS_FIELD_NUMBER: _ClassVar[int]
        index: int
        loss: Scalar
        def __init__(self, index: _Optional[int] = ..., loss: _Optional[_Union[Scalar, _Mapping]] = ...) -> None: ...
    class Open(_message.Message):
        __slots__ = ("epoch", "step", "indices", "losses", "taken_back")
        EPOCH_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        INDICES_FIELD_NUMBER: _ClassVar[int]
        LOSSES_FIELD_NUMBER: _ClassVar[int]
        TAKEN_BACK_FIELD_NUMBER: _ClassVar[int]
        epoch: int
        step: int
        indices: _containers.RepeatedScalarFieldContainer[int]
        losses: _containers.RepeatedCompositeFieldContainer[Held.Loss]
        taken_back: int
        def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., indices: _Optional[_Iterable[int]] = ..., losses: _Optional[_Iterable[_Union[Held.Loss, _Mapping]]] = ..., taken_back: _Optional[int] = ...) -> None: ...
    class Kept(_message.Message):
        __slots__ = ("step", "term", "attempt")
        STEP_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        ATTEMPT_FIELD_NUMBER: _ClassVar[int]
        step: int
        term: int
        attempt: int
        def __init__(self, step: _Optional[int] = ..., term: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    FOUNDERS_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    closed: int
    steps: _containers.RepeatedCompositeFieldContainer[Held.Open]
    commits: _containers.RepeatedCompositeFieldContainer[Commit]
    kept: _containers.RepeatedCompositeFieldContainer[Held.Kept]
    founders: _containers.RepeatedScalarFieldContainer[int]
    past: _containers.RepeatedCompositeFieldContainer[Past]
    def __init__(self, closed: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[Held.Open, _Mapping]]] = ..., commits: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ..., kept: _Optional[_Iterable[_Union[Held.Kept, _Mapping]]] = ..., founders: _Optional[_Iterable[int]] = ..., past: _Optional[_Iterable[_Union[Past, _Mapping]]] = ...) -> None: ...

class Follow(_message.Message):
    __slots__ = ("run", "step", "led")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LED_FIELD_NUMBER: _ClassVar[int]
    run: str
    step: int
    led: Term
    def __init__(self, run: _Optional[str] = ..., step: _Optional[int] = ..., led: _Optional[_Union[Term, _Mapping]] = ...) -> None: ...

class Past(_message.Message):
    __slots__ = ("step", "loss", "grad_norm", "tokens", "seconds", "totals", "heldout", "heldout_after", "replicas", "epoch")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    HELDOUT_FIELD_NUMBER: _ClassVar[int]
    HELDOUT_AFTER_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss: Scalar
    grad_norm: Scalar
    tokens: int
    seconds: float
    totals: Totals
    heldout: Scalar
    heldout_after: Scalar
    replicas: str
    epoch: int
    def __init__(self, step: _Optional[int] = ..., loss: _Optional[_Union[Scalar, _Mapping]] = ..., grad_norm: _Optional[_Union[Scalar, _Mapping]] = ..., tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., totals: _Optional[_Union[Totals, _Mapping]] = ..., heldout: _Optional[_Union[Scalar, _Mapping]] = ..., heldout_after: _Optional[_Union[Scalar, _Mapping]] = ..., replicas: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("member", "peer", "addresses")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    member: int
    peer: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, member: _Optional[int] = ..., peer: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("name", "members")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, name: _Optional[str] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class Reduce(_message.Message):
    __slots__ = ("term", "epoch", "step", "attempt", "groups", "indices", "roster", "closed")
    TERM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    term: Term
    epoch: int
    step: int
    attempt: int
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    indices: _containers.RepeatedScalarFieldContainer[int]
    roster: bytes
    closed: int
    def __init__(self, term: _Optional[_Union[Term, _Mapping]] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ..., indices: _Optional[_Iterable[int]] = ..., roster: _Optional[bytes] = ..., closed: _Optional[int] = ...) -> None: ...

class GroupResult(_message.Message):
    __slots__ = ("name", "digest", "part_digests", "squared_norm")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PART_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    SQUARED_NORM_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    part_digests: _containers.RepeatedScalarFieldContainer[bytes]
    squared_norm: Scalar
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ..., part_digests: _Optional[_Iterable[bytes]] = ..., squared_norm: _Optional[_Union[Scalar, _Mapping]] = ...) -> None: ...

class Reduced(_message.Message):
    __slots__ = ("epoch", "step", "attempt", "term", "indices", "taken_back", "groups")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BACK_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    attempt: int
    term: int
    indices: _containers.RepeatedScalarFieldContainer[int]
    taken_back: int
    groups: _containers.RepeatedCompositeFieldContainer[GroupResult]
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., term: _Optional[int] = ..., indices: _Optional[_Iterable[int]] = ..., taken_back: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[GroupResult, _Mapping]]] = ...) -> None: ...

class ReduceFailed(_message.Message):
    __slots__ = ("epoch", "step", "attempt", "term", "lacking", "indices", "taken_back", "detail", "unreachable")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BACK_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    attempt: int
    term: int
    lacking: _containers.RepeatedScalarFieldContainer[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    taken_back: int
    detail: str
    unreachable: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., term: _Optional[int] = ..., lacking: _Optional[_Iterable[int]] = ..., indices: _Optional[_Iterable[int]] = ..., taken_back: _Optional[int] = ..., detail: _Optional[str] = ..., unreachable: _Optional[_Iterable[int]] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("stage", "term", "attempt", "groups", "holders")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    stage: int
    term: int
    attempt: int
    groups: _containers.RepeatedCompositeFieldContainer[GroupResult]
    holders: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, stage: _Optional[int] = ..., term: _Optional[int] = ..., attempt: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[GroupResult, _Mapping]]] = ..., holders: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class Totals(_message.Message):
    __slots__ = ("microbatches", "lost", "duplicated", "reissued", "taken_back")
    MICROBATCHES_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    DUPLICATED_FIELD_NUMBER: _ClassVar[int]
    REISSUED_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BACK_FIELD_NUMBER: _ClassVar[int]
    microbatches: int
    lost: int
    duplicated: int
    reissued: int
    taken_back: int
    def __init__(self, microbatches: _Optional[int] = ..., lost: _Optional[int] = ..., duplicated: _Optional[int] = ..., reissued: _Optional[int] = ..., taken_back: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("term", "epoch", "step", "choices", "factor", "learning_rate", "bias_correction1", "bias_correction2", "loss", "tokens", "totals", "closed", "crew", "past", "earlier_crew")
    TERM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BIAS_CORRECTION1_FIELD_NUMBER: _ClassVar[int]
    BIAS_CORRECTION2_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    CREW_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    EARLIER_CREW_FIELD_NUMBER: _ClassVar[int]
    term: Term
    epoch: int
    step: int
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    factor: Scalar
    learning_rate: float
    bias_correction1: float
    bias_correction2: float
    loss: Scalar
    tokens: int
    totals: Totals
    closed: int
    crew: _containers.RepeatedScalarFieldContainer[int]
    past: Past
    earlier_crew: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, term: _Optional[_Union[Term, _Mapping]] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., factor: _Optional[_Union[Scalar, _Mapping]] = ..., learning_rate: _Optional[float] = ..., bias_correction1: _Optional[float] = ..., bias_correction2: _Optional[float] = ..., loss: _Optional[_Union[Scalar, _Mapping]] = ..., tokens: _Optional[int] = ..., totals: _Optional[_Union[Totals, _Mapping]] = ..., closed: _Optional[int] = ..., crew: _Optional[_Iterable[int]] = ..., past: _Optional[_Union[Past, _Mapping]] = ..., earlier_crew: _Optional[_Iterable[int]] = ...) -> None: ...

class Applied(_message.Message):
    __slots__ = ("epoch", "version", "digest")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    version: int
    digest: bytes
    def __init__(self, epoch: _Optional[int] = ..., version: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("term", "epoch", "closed")
    TERM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    term: Term
    epoch: int
    closed: int
    def __init__(self, term: _Optional[_Union[Term, _Mapping]] = ..., epoch: _Optional[int] = ..., closed: _Optional[int] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("why", "idle")
    WHY_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    why: str
    idle: bool
    def __init__(self, why: _Optional[str] = ..., idle: bool = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("off", "until")
    OFF_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    off: bool
    until: int
    def __init__(self, off: bool = ..., until: _Optional[int] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("stage",)
    STAGE_FIELD_NUMBER: _ClassVar[int]
    stage: int
    def __init__(self, stage: _Optional[int] = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Finish(_message.Message):
    __slots__ = ("detail",)
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    detail: str
    def __init__(self, detail: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("open_visits", "activation_bytes", "gradient_bytes", "reduce_bytes", "load", "founders", "codec_microseconds", "below", "waits_for", "links", "busy", "refused", "knows", "short", "credits", "slots")
    OPEN_VISITS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    REDUCE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    FOUNDERS_FIELD_NUMBER: _ClassVar[int]
    CODEC_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    KNOWS_FIELD_NUMBER: _ClassVar[int]
    SHORT_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    open_visits: int
    activation_bytes: int
    gradient_bytes: int
    reduce_bytes: int
    load: Load
    founders: _containers.RepeatedScalarFieldContainer[int]
    codec_microseconds: int
    below: int
    waits_for: str
    links: _containers.RepeatedCompositeFieldContainer[LinkReport]
    busy: int
    refused: _containers.RepeatedCompositeFieldContainer[Refusals]
    knows: int
    short: bool
    credits: _containers.RepeatedCompositeFieldContainer[Credits]
    slots: int
    def __init__(self, open_visits: _Optional[int] = ..., activation_bytes: _Optional[int] = ..., gradient_bytes: _Optional[int] = ..., reduce_bytes: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., founders: _Optional[_Iterable[int]] = ..., codec_microseconds: _Optional[int] = ..., below: _Optional[int] = ..., waits_for: _Optional[str] = ..., links: _Optional[_Iterable[_Union[LinkReport, _Mapping]]] = ..., busy: _Optional[int] = ..., refused: _Optional[_Iterable[_Union[Refusals, _Mapping]]] = ..., knows: _Optional[int] = ..., short: bool = ..., credits: _Optional[_Iterable[_Union[Credits, _Mapping]]] = ..., slots: _Optional[int] = ...) -> None: ...

class Credits(_message.Message):
    __slots__ = ("epoch", "step", "own", "credited")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    CREDITED_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    own: _containers.RepeatedScalarFieldContainer[int]
    credited: bytes
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., own: _Optional[_Iterable[int]] = ..., credited: _Optional[bytes] = ...) -> None: ...

class LinkReport(_message.Message):
    __slots__ = ("peer", "round_trip_us", "rate")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_US_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    round_trip_us: int
    rate: int
    def __init__(self, peer: _Optional[str] = ..., round_trip_us: _Optional[int] = ..., rate: _Optional[int] = ...) -> None: ...

class Refusals(_message.Message):
    __slots__ = ("reason", "count")
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    count: int
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., count: _Optional[int] = ...) -> None: ...

class CallBack(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    def __init__(self, port: _Optional[int] = ...) -> None: ...

class CalledBack(_message.Message):
    __slots__ = ("reached", "host")
    REACHED_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    reached: bool
    host: str
    def __init__(self, reached: bool = ..., host: _Optional[str] = ...) -> None: ...

class RelayAnswer(_message.Message):
    __slots__ = ("type", "limit", "status")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    type: int
    limit: RelayLimit
    status: int
    def __init__(self, type: _Optional[int] = ..., limit: _Optional[_Union[RelayLimit, _Mapping]] = ..., status: _Optional[int] = ...) -> None: ...

class RelayLimit(_message.Message):
    __slots__ = ("seconds", "bytes")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    seconds: int
    bytes: int
    def __init__(self, seconds: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
