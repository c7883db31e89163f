"""Answers that are made once for many: who waits for a new one, and who is given the last."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from tune_hpc.errors import FolderError
from tune_hpc.service import answers
from tune_hpc.service.answers import Answer, Kept


class Maker:
    """Makes answers, numbered; each when it may."""

    def __init__(self):
        self.count = 0
        self.may = threading.Event()
        self.may.set()
        self.error = None

    def __call__(self, before):
        assert self.may.wait(10)
        if self.error:
            raise self.error
        self.count += 1
        return Answer(b"%d" % self.count)


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock of the answers, in a list of one number."""
    now = [1000.0]
    # Only theirs: the loop in which they are made has the real one.
    monkeypatch.setattr(answers, "time", SimpleNamespace(monotonic=lambda: now[0], thread_time=lambda: 0.0))
    return now


def test_many_who_ask_at_once_are_given_one_answer(clock):
    async def ask():
        maker, kept = Maker(), Kept()
        got = await asyncio.gather(*(kept.get("key", maker) for _ in range(50)))
        assert {one.body for one in got} == {b"1"}
        assert (await kept.get("other", maker)).body == b"2"

    asyncio.run(ask())


def test_whoever_watches_never_waits_for_what_is_made_anew(clock):
    async def ask():
        maker, kept = Maker(), Kept()
        await kept.get("key", maker)
        clock[0] += kept.lasts_s + 1
        maker.may.clear()
        assert (await asyncio.wait_for(kept.get("key", maker), 5)).body == b"1"
        maker.may.set()
        while (await kept.get("key", maker)).body == b"1":
            await asyncio.sleep(0.01)
        assert maker.count == 2

    asyncio.run(ask())


def test_an_answer_that_is_looked_for_by_its_key_is_made_anew_in_time(clock):
    async def ask():
        maker, kept = Maker(), Kept()
        assert kept.watched("key") is None
        await kept.get("key", maker)
        clock[0] += kept.lasts_s + 1
        maker.may.clear()
        assert kept.watched("key").body == kept.watched("key").body == b"1"
        maker.may.set()
        while kept.watched("key").body == b"1":
            await asyncio.sleep(0.01)
        assert maker.count == 2
        clock[0] += kept.lasts_s + answers.WATCHED_S
        assert kept.watched("key") is None
        assert (await kept.get("key", maker)).body == b"3"
        kept.forget()
        assert kept.watched("key") is None

    asyncio.run(ask())


@pytest.mark.parametrize("why", ["away", "changed"])
def test_whoever_was_away_or_changed_something_is_told_what_is_so_now(clock, why):
    async def ask():
        maker, kept = Maker(), Kept()
        await kept.get("key", maker)
        if why == "away":
            clock[0] += kept.lasts_s + answers.WATCHED_S
        else:
            kept.forget()
        assert (await kept.get("key", maker)).body == b"2"

    asyncio.run(ask())


def test_what_was_changed_while_an_answer_was_made_is_looked_at_again(clock):
    async def ask():
        maker, kept = Maker(), Kept()
        maker.may.clear()
        first = asyncio.create_task(kept.get("key", maker))
        await asyncio.sleep(0.05)
        kept.forget()
        maker.may.set()
        assert (await first).body == b"1"
        assert (await kept.get("key", maker)).body == b"2"

    asyncio.run(ask())


def test_an_error_is_told_once_nobody_can_be_given_the_last_answer(clock):
    async def ask():
        maker, kept = Maker(), Kept()
        await kept.get("key", maker)
        maker.error = FolderError("gone")
        clock[0] += kept.lasts_s
        assert (await kept.get("key", maker)).body == b"1"
        clock[0] += answers.WATCHED_S
        await asyncio.sleep(0.1)
        with pytest.raises(FolderError, match="gone"):
            await kept.get("key", maker)

    asyncio.run(ask())
