"""Passes run without the interpreter's lock, can be stopped, and show how far they are."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import types

import pytest
from conftest import DEMO

import tuco

LONG = [[index % 2000, *range(300)] for index in range(2000)]


def test_other_threads_run_meanwhile(demo):
    done = threading.Event()
    seconds = []

    def work():
        start = time.perf_counter()
        demo.score(LONG[:100])
        seconds.append(time.perf_counter() - start)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    longest, last = 0.0, time.perf_counter()
    while not done.wait(0.001):
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    assert longest < max(0.3 * seconds[0], 0.05), f"blocked for {longest:.3f} of {seconds[0]:.3f} s"


def test_threads_take_turns(demo):
    expected = demo.score(LONG[:5]).tuco.tolist()
    found: list[list[float]] = []
    threads = [threading.Thread(target=lambda: found.append(demo.score(LONG[:5]).tuco.tolist())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no interval timers")
def test_ctrl_c_stops_a_pass(demo):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    start = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            demo.score(LONG)
    finally:
        signal.signal(signal.SIGALRM, before)
    stopped = time.perf_counter() - start
    assert len(demo.score("still works")) == 1
    start = time.perf_counter()
    demo.score(LONG[:100])
    assert stopped < 0.2 + 15 * (time.perf_counter() - start), "the whole was computed"


def test_calls_of_other_threads_are_cancelled(demo):
    ended: list[type] = []

    def work():
        try:
            demo.score(LONG, output_co=True)
            ended.append(demo.__class__)
        except tuco.CancelledError as error:
            assert error.exit_code == 75
            ended.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(2)]  # one of them waits for its turn
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    demo.cancel()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    cancelled = time.perf_counter() - start
    assert ended == [tuco.CancelledError] * 2
    start = time.perf_counter()
    demo.score(LONG[:100])
    assert cancelled < 15 * (time.perf_counter() - start), "the whole was computed"


def test_closing_waits_for_passes_of_other_threads():
    pair = tuco.Pair.from_pretrained(DEMO / "base", DEMO / "tuned", device="cpu")
    began, ended = threading.Event(), []

    def work():
        began.set()
        pair.score(LONG[:200])
        ended.append(time.perf_counter())

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    while not pair.closed:
        time.sleep(0.05)
        pair.close()
    closed = time.perf_counter()
    thread.join()
    assert ended and ended[0] <= closed


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no interval timers")
def test_ctrl_c_is_heard_while_others_have_their_turn_and_while_text_is_encoded(demo):
    def interrupt(*_):
        raise KeyboardInterrupt

    def work():
        with contextlib.suppress(tuco.CancelledError):
            demo.score(LONG)

    stop = threading.Thread(target=work)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        stop.start()
        time.sleep(0.1)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            demo.score("a")
        assert stop.is_alive(), "it was not waited for"
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            demo.encode(["word " * 300] * 30000)
        heard = time.perf_counter() - start
        start = time.perf_counter()
        demo.encode(["word " * 300] * 1500)
        assert heard < 0.2 + 10 * (time.perf_counter() - start), "all texts were encoded first"
    finally:
        signal.signal(signal.SIGALRM, before)
        demo.cancel()
        stop.join()


class Tqdm:
    """What tqdm is asked for."""

    made: list[Tqdm] = []

    def __init__(self, **options):
        self.options, self.tokens, self.closed = options, 0, False
        self.made.append(self)

    def update(self, more):
        self.tokens += more

    def close(self):
        self.closed = True


def test_progress_is_tqdm_s(demo, monkeypatch):
    module = types.ModuleType("tqdm.auto")
    module.tqdm = Tqdm
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    monkeypatch.setattr(Tqdm, "made", [])
    demo.score(LONG[:10], output_co=True, progress=True)
    demo.logits(LONG[:10])
    demo.score("a", progress=False)
    score, logits = Tqdm.made
    tokens = sum(map(len, LONG[:10]))
    assert score.closed and score.tokens == score.options["total"] == 2 * tokens
    assert score.options["disable"] is False and logits.options["disable"] is None
    assert logits.tokens == logits.options["total"] == tokens
    with pytest.raises(RuntimeError, match="broken bar"):
        monkeypatch.setattr(Tqdm, "update", lambda *_: (_ for _ in ()).throw(RuntimeError("broken bar")))
        demo.score("a", progress=True)


def test_tqdm_is_not_needed(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert len(demo.score("a")) == 1
    with pytest.raises(ImportError):
        demo.score("a", progress=True)
