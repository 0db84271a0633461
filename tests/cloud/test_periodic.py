"""What is done again and again beside the API."""

from __future__ import annotations

import asyncio
import threading

from edgefleet_cloud.periodic import Periodic


def test_it_goes_on_after_a_failure(caplog):
    """An action that fails is logged, tried again, and called no more once it is stopped."""
    calls, thrice = [], threading.Event()

    def action():
        calls.append(threading.current_thread())
        if len(calls) == 1:
            raise OSError("no luck")
        if len(calls) >= 3:
            thrice.set()

    async def run():
        periodic = Periodic("a chore", 0.01, action)
        await periodic.start()
        assert await asyncio.to_thread(thrice.wait, 10)
        await periodic.stop()
        count = len(calls)
        await asyncio.sleep(0.05)
        assert len(calls) == count
        assert periodic.facts() == {}

    asyncio.run(run())
    assert "a chore failed" in caplog.text
    assert threading.main_thread() not in calls


def test_it_may_be_stopped_before_it_was_started():
    """Stopping what never ran is fine."""
    asyncio.run(Periodic("a chore", 1, lambda: None).stop())
