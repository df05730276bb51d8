"""A class for actors that are named by their import path."""


class Counter:
    def __init__(self, start: int, *, step: int):
        self.value, self.step = start, step

    def add(self, times: int) -> int:
        self.value += times * self.step
        return self.value

    def count(self, times: int):
        for _ in range(times):
            yield self.value
            self.value += self.step

    def fail(self) -> float:
        return 1 / 0
