"""The choice of threads follows what is faster, and notices when that changes."""

from __future__ import annotations

from collections import Counter

from tokkit.pipelines.threads import ThreadChooser


class Machine:
    """Steps take a time that depends on the number of threads."""

    def __init__(self, choices: list[int], seconds: dict[int, float]) -> None:
        self.now, self.seconds, self.used = 0.0, seconds, Counter[int]()
        self.threads = 0
        self.chooser = ThreadChooser(choices, self.apply, lambda: self.now)

    def apply(self, threads: int) -> None:
        self.threads = threads

    def work(self, steps: int) -> Counter[int]:
        self.used.clear()
        for _ in range(steps):
            self.used[self.threads] += 1
            self.now += self.seconds[self.threads]
            self.chooser.stepped()
        return self.used


def test_the_faster_choice_gets_almost_all_steps() -> None:
    assert Machine([2, 1], {2: 0.03, 1: 0.04}).work(3000)[2] > 2800
    assert Machine([2, 1], {2: 0.4, 1: 0.04}).work(3000)[1] > 2900


def test_a_change_of_the_surroundings_is_noticed() -> None:
    machine = Machine([2, 1], {2: 0.03, 1: 0.04})
    machine.work(1000)
    machine.seconds = {2: 0.4, 1: 0.04}
    machine.work(10)
    assert machine.work(1000)[1] > 900
    machine.seconds = {2: 0.03, 1: 0.04}
    machine.work(600)
    assert machine.work(1000)[2] > 900


def test_a_single_choice_is_kept() -> None:
    assert Machine([3, 3], {3: 0.1}).work(100) == {3: 100}
