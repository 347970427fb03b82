"""Devices on real time, by lower bounds only."""

import asyncio
from typing import Any

import pytest
from swarm_peer.simulations.devices import TimedDevice
from swarm_peer.swarm.compute import BACKGROUND, BACKWARD, FORWARD

SECONDS = {FORWARD: 0.02, BACKWARD: 0.04}


@pytest.mark.parametrize("phase", [FORWARD, BACKWARD])
def test_a_timed_device_is_no_faster_than_it_is_told(phase: str) -> None:
    async def main() -> tuple[Any, float]:
        device = TimedDevice(SECONDS[FORWARD], SECONDS[BACKWARD])
        try:
            began = asyncio.get_running_loop().time()
            return await device.run(phase, lambda: "done"), asyncio.get_running_loop().time() - began
        finally:
            device.close()

    result, took = asyncio.run(main())
    assert result == "done"
    assert took >= SECONDS[phase] - 1e-3  # the loop's clock has a resolution


def test_what_closes_a_step_takes_a_timed_device_only_as_long_as_it_takes() -> None:
    async def main() -> str:
        device = TimedDevice(3600.0, 3600.0)
        try:
            async with asyncio.timeout(300.0):
                return await device.run(BACKGROUND, lambda: "done")
        finally:
            device.close()

    assert asyncio.run(main()) == "done"
