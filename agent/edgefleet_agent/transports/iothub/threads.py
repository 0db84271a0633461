"""The SDK's network thread may die, and the SDK does not hear of it: we do.

paho 1.6.1 takes a TLS error that is no `ConnectionError` for a fault of its own, and its thread
ends with it. The SDK would go on to believe that it is connected. `threading.excepthook` is the
one place where that can be seen from outside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_lock = threading.Lock()
_watching: set[Watcher] = set()


class Watcher:
    """Looks after the network thread of one client.

    Args:
        lost: Told why the thread has died, in that thread.
    """

    def __init__(self, lost: Callable[[str], None]) -> None:
        self._lost = lost
        self.mine: set[threading.Thread] | None = None

    def open(self) -> None:
        """A thread is about to start; until it is `settled` any that dies may be ours."""
        with _lock:
            self.mine = None
            _watching.add(self)

    def settled(self) -> None:
        """Our thread runs: it is one that no other watcher has."""
        with _lock:
            taken = [w.mine or set() for w in _watching if w is not self]
            self.mine = {thread for thread in threading.enumerate() if _is_network(thread)}
            self.mine = self.mine.difference(*taken)

    def close(self) -> None:
        """Look no more."""
        with _lock:
            _watching.discard(self)

    def died(self, thread: threading.Thread | None, error: BaseException | None) -> bool:
        """Tell that a thread has died, if it may be ours; return whether it may."""
        if self.mine is not None and thread not in self.mine:
            return False
        self._lost(f"the connection broke: {error}")
        return True


def _is_network(thread: threading.Thread) -> bool:
    return "_thread_main" in thread.name or thread.name.startswith("paho-mqtt")


def _hook(args: threading.ExceptHookArgs) -> None:
    known = False
    if args.thread and _is_network(args.thread) and isinstance(args.exc_value, OSError):
        with _lock:
            watching = list(_watching)
        told = [watcher.died(args.thread, args.exc_value) for watcher in watching]  # all of them
        known = any(told)
    if not known:
        _before(args)


_before, threading.excepthook = threading.excepthook, _hook
