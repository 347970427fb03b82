"""The gRPC API: what a coordinator and a peer answer to programs."""
