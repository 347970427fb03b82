"""Loads the generated code by its path, without the package; a message survives the round trip (protobuf_matrix.sh)."""

import importlib.util
from pathlib import Path

import google.protobuf

path = Path(__file__).parent.parent / "protos" / "swarm_pb2.py"
spec = importlib.util.spec_from_file_location("swarm_pb2", path)
assert spec is not None
assert spec.loader is not None
pb = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pb)

sent = pb.Envelope(done=pb.Done(loss=pb.Scalar(residue=2**61 - 2), path=[pb.PathEntry(stage=3, phase=pb.HELD)]))
came = pb.Envelope.FromString(sent.SerializeToString())
assert came == sent
assert came.WhichOneof("body") == "done"
print(f"protobuf {google.protobuf.__version__}: the generated code works")
