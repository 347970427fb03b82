from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("peer", "why")
    PEER_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    peer: str
    why: str
    def __init__(self, peer: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class BanRequest(_message.Message):
    __slots__ = ("peer", "why")
    PEER_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    peer: str
    why: str
    def __init__(self, peer: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("merge",)
    MERGE_FIELD_NUMBER: _ClassVar[int]
    merge: bool
    def __init__(self, merge: bool = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("stage", "replicas", "rate", "queue", "slowest")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    SLOWEST_FIELD_NUMBER: _ClassVar[int]
    stage: int
    replicas: int
    rate: float
    queue: int
    slowest: bool
    def __init__(self, stage: _Optional[int] = ..., replicas: _Optional[int] = ..., rate: _Optional[float] = ..., queue: _Optional[int] = ..., slowest: bool = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("peer", "name", "stage", "state", "counted", "credit", "waits")
    PEER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    name: str
    stage: int
    state: str
    counted: int
    credit: float
    waits: str
    def __init__(self, peer: _Optional[str] = ..., name: _Optional[str] = ..., stage: _Optional[int] = ..., state: _Optional[str] = ..., counted: _Optional[int] = ..., credit: _Optional[float] = ..., waits: _Optional[str] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("run", "phase", "sentence", "step", "steps", "loss", "heldout", "tokens_per_second", "ideal_tokens_per_second", "seconds_left", "microbatches", "lost", "duplicated", "faults", "stages", "members", "document")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    HELDOUT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    IDEAL_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    MICROBATCHES_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    DUPLICATED_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    run: str
    phase: str
    sentence: str
    step: int
    steps: int
    loss: float
    heldout: float
    tokens_per_second: float
    ideal_tokens_per_second: float
    seconds_left: float
    microbatches: int
    lost: int
    duplicated: int
    faults: int
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    document: str
    def __init__(self, run: _Optional[str] = ..., phase: _Optional[str] = ..., sentence: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., heldout: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., ideal_tokens_per_second: _Optional[float] = ..., seconds_left: _Optional[float] = ..., microbatches: _Optional[int] = ..., lost: _Optional[int] = ..., duplicated: _Optional[int] = ..., faults: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., document: _Optional[str] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("status", "document", "whole")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    status: RunStatus
    document: str
    whole: bool
    def __init__(self, status: _Optional[_Union[RunStatus, _Mapping]] = ..., document: _Optional[str] = ..., whole: bool = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("version", "loss", "perplexity", "bits_per_byte", "tokens")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    version: int
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    def __init__(self, version: _Optional[int] = ..., loss: _Optional[float] = ..., perplexity: _Optional[float] = ..., bits_per_byte: _Optional[float] = ..., tokens: _Optional[int] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("name", "bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class ExportProgress(_message.Message):
    __slots__ = ("line", "exported")
    LINE_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_FIELD_NUMBER: _ClassVar[int]
    line: str
    exported: Exported
    def __init__(self, line: _Optional[str] = ..., exported: _Optional[_Union[Exported, _Mapping]] = ...) -> None: ...

class Exported(_message.Message):
    __slots__ = ("folder", "version", "files")
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    folder: str
    version: int
    files: _containers.RepeatedCompositeFieldContainer[File]
    def __init__(self, folder: _Optional[str] = ..., version: _Optional[int] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("peer", "run", "state", "stage", "stages", "version", "open", "below", "slots", "waits", "visits_per_second", "sent", "received", "busy", "refused", "leaving", "visits", "loss", "counted", "credit", "link_rate", "round_trip", "hosted", "threads", "counted_after")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class CountedAfterEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PEER_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    VISITS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    VISITS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    LINK_RATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_FIELD_NUMBER: _ClassVar[int]
    HOSTED_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_AFTER_FIELD_NUMBER: _ClassVar[int]
    peer: str
    run: str
    state: str
    stage: int
    stages: int
    version: int
    open: int
    below: int
    slots: int
    waits: str
    visits_per_second: float
    sent: int
    received: int
    busy: int
    refused: _containers.ScalarMap[str, int]
    leaving: str
    visits: int
    loss: float
    counted: int
    credit: float
    link_rate: float
    round_trip: float
    hosted: _containers.RepeatedScalarFieldContainer[int]
    threads: int
    counted_after: _containers.ScalarMap[str, float]
    def __init__(self, peer: _Optional[str] = ..., run: _Optional[str] = ..., state: _Optional[str] = ..., stage: _Optional[int] = ..., stages: _Optional[int] = ..., version: _Optional[int] = ..., open: _Optional[int] = ..., below: _Optional[int] = ..., slots: _Optional[int] = ..., waits: _Optional[str] = ..., visits_per_second: _Optional[float] = ..., sent: _Optional[int] = ..., received: _Optional[int] = ..., busy: _Optional[int] = ..., refused: _Optional[_Mapping[str, int]] = ..., leaving: _Optional[str] = ..., visits: _Optional[int] = ..., loss: _Optional[float] = ..., counted: _Optional[int] = ..., credit: _Optional[float] = ..., link_rate: _Optional[float] = ..., round_trip: _Optional[float] = ..., hosted: _Optional[_Iterable[int]] = ..., threads: _Optional[int] = ..., counted_after: _Optional[_Mapping[str, float]] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("why", "now")
    WHY_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    why: str
    now: bool
    def __init__(self, why: _Optional[str] = ..., now: bool = ...) -> None: ...

class LimitRequest(_message.Message):
    __slots__ = ("slots", "threads")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    slots: int
    threads: int
    def __init__(self, slots: _Optional[int] = ..., threads: _Optional[int] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("lines", "follow")
    LINES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    lines: int
    follow: bool
    def __init__(self, lines: _Optional[int] = ..., follow: bool = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...
