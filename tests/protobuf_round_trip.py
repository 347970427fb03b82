"""Loads the generated code by its path, without the package; messages survive the round trip (protobuf_matrix.sh)."""

import importlib.util
from pathlib import Path
from typing import Any

import google.protobuf


def loaded(name: str) -> Any:
    path = Path(__file__).parent.parent / "protos" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pb, api = loaded("swarm_pb2"), loaded("api_pb2")

sent = pb.Envelope(done=pb.Done(loss=pb.Scalar(residue=2**61 - 2), path=[pb.PathEntry(stage=3, phase=pb.HELD)]))
came = pb.Envelope.FromString(sent.SerializeToString())
assert came == sent
assert came.WhichOneof("body") == "done"

status = api.PeerStatus(state="working", stage=0, loss=3.5, hosted=[0, 1], refused={"FENCED": 2})
back = api.PeerStatus.FromString(status.SerializeToString())
assert back == status
assert back.HasField("stage")
assert {name: len(found.methods) > 1 for name, found in api.DESCRIPTOR.services_by_name.items()} == {
    "Coordinator": True,
    "Peer": True,
}
print(f"protobuf {google.protobuf.__version__}: the generated code works")
