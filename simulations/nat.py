"""Routers at home that translate addresses (NAT): who is behind one reaches others, and is reached by none whom it has
not called first.

Two that are behind routers meet if both call at the same time (libp2p's hole punching), unless one's router has another
port for each connection: its next one is nobody's to know.
"""

from typing import Literal

Nat = Literal["cone", "symmetric"]
"""`cone`: keeps a connection's port; `symmetric`: another one for each."""


def meet(one: Nat | None, other: Nat | None) -> bool:
    """Whether two connect without anybody between them; None is who is behind no router."""
    return one is None or other is None or one == other == "cone"
