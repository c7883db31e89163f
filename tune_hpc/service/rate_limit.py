"""Rate limits: token buckets, one for each client."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from tune_hpc.errors import RequestError

#: Maximum number of buckets; the least recently used one is dropped.
MAX_KEYS = 10_000


class TooManyRequestsError(RequestError):
    """A client sends too many requests; a request may succeed after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, 429, "too-many-requests")
        self.retry_after_s = retry_after_s


class TokenBuckets:
    """Token buckets, one for each key.

    Args:
        per_s: Refill rate in tokens per second.
        burst: Capacity in tokens.
        clock: Function that returns seconds.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self.burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take a token; return 0, or the seconds until a token is available."""
        level = self._level(key)
        self._store(key, level - 1 if level >= 1 else level)
        return 0.0 if level >= 1 else (1 - level) / self.per_s

    def draw(self, key: str, what: str) -> None:
        """Take a token.

        Raises:
            TooManyRequestsError: The bucket is empty.
        """
        if wait_s := self.take(key):
            text = f"at most {self.per_s:g} {what} a second are allowed; wait {wait_s:.1f} s"
            raise TooManyRequestsError(text, wait_s)

    def give_back(self, key: str) -> None:
        """Return a token."""
        self._store(key, min(self.burst, self._level(key) + 1))

    def _level(self, key: str) -> float:
        level, moment = self._levels.get(key, (self.burst, self._clock()))
        return min(self.burst, level + (self._clock() - moment) * self.per_s)

    def _store(self, key: str, level: float) -> None:
        self._levels[key] = level, self._clock()
        self._levels.move_to_end(key)
        if len(self._levels) > MAX_KEYS:
            self._levels.popitem(last=False)


@dataclass
class RateLimits:
    """Rate limits of the service.

    Attributes:
        unauthenticated: Requests without valid credentials, by address.
        public: Requests of public routes, by address.
        reads: Read requests, by session or token.
        changes: Requests that change something, by session or token.
    """

    unauthenticated: TokenBuckets = field(default_factory=lambda: TokenBuckets(5, 20))
    public: TokenBuckets = field(default_factory=lambda: TokenBuckets(200, 400))
    reads: TokenBuckets = field(default_factory=lambda: TokenBuckets(600, 1200))
    changes: TokenBuckets = field(default_factory=lambda: TokenBuckets(5, 20))
