"""Rate limits: token buckets, one for each client."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from tune_hpc.errors import RequestError

#: Buckets that are remembered; the least recently used is dropped.
MAX_KEYS = 10_000


class TooManyRequestsError(RequestError):
    """A client sends too many requests.

    Args:
        message: What there was too much of.
        retry_after_s: Seconds after which a request may succeed.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, 429, "too-many-requests")
        self.retry_after_s = retry_after_s


class TokenBuckets:
    """Token buckets, one for each key.

    Args:
        per_s: Tokens that flow into each bucket a second.
        burst: Tokens that a bucket holds.
        clock: Returns seconds.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self.burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        level = self._level(key)
        self._store(key, level - 1 if level >= 1 else level)
        return 0.0 if level >= 1 else (1 - level) / self.per_s

    def draw(self, key: str, what: str) -> None:
        """Take a token.

        Raises:
            TooManyRequestsError: there is none.
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
    """The buckets of the service.

    Attributes:
        unauthenticated: Requests without valid credentials, by address.
        public: Requests for what needs no credentials, by address.
        reads: Requests of a session or token that read.
        changes: Requests of a session or token that change something.
    """

    unauthenticated: TokenBuckets = field(default_factory=lambda: TokenBuckets(5, 20))
    public: TokenBuckets = field(default_factory=lambda: TokenBuckets(200, 400))
    reads: TokenBuckets = field(default_factory=lambda: TokenBuckets(600, 1200))
    changes: TokenBuckets = field(default_factory=lambda: TokenBuckets(5, 20))
