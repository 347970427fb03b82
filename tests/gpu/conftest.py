"""Fixtures of all tests in this folder."""

from tests.gpu.device import _whole_float32

__all__ = ["_whole_float32"]
