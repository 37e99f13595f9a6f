"""One forward pass for the sessions that ask at about the same time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
PATIENCE = 0.25  # of a pass: how long the first of several may wait for the others


class Batcher(Generic[Ask, Answer]):
    """Answers from many threads, made by one thread that takes all that has come meanwhile.

    answer: asks -> an answer each.  most: asks at once.
    expected: how many are about to ask; while fewer have, the first waits for them, at most `PATIENCE` of the latest
        pass.
    """

    def __init__(
        self, answer: Callable[[Sequence[Ask]], Sequence[Answer]], most: int, expected: Callable[[], int]
    ) -> None:
        self._answer, self._most, self._expected = answer, most, expected
        self._asked: queue.SimpleQueue[tuple[Ask, Future[Answer]]] = queue.SimpleQueue()
        self._took = 0.0
        threading.Thread(target=self._work, name="forward passes", daemon=True).start()

    def __call__(self, ask: Ask) -> Answer:
        """Waits for the answer; raises what `answer` raised."""
        future: Future[Answer] = Future()
        self._asked.put((ask, future))
        return future.result()

    def _work(self) -> None:
        while True:
            batch = self._gathered()
            start = time.monotonic()
            self._settle(batch)
            self._took = time.monotonic() - start

    def _settle(self, batch: list[tuple[Ask, Future[Answer]]]) -> None:
        """What a pass of several fails of is one's fault: each is then asked alone."""
        try:
            answers = self._answer([ask for ask, _ in batch])
        except Exception as problem:
            if len(batch) == 1:
                return batch[0][1].set_exception(problem)
            for each in batch:
                self._settle([each])
        else:
            for (_, future), found in zip(batch, answers, strict=True):
                future.set_result(found)

    def _gathered(self) -> list[tuple[Ask, Future[Answer]]]:
        batch = [self._asked.get()]
        until = time.monotonic() + PATIENCE * self._took
        while len(batch) < self._most:
            patience = until - time.monotonic() if len(batch) < self._expected() else 0.0
            try:
                batch.append(self._asked.get(timeout=patience) if patience > 0 else self._asked.get_nowait())
            except queue.Empty:
                break
        return batch
