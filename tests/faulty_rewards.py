"""A reward that does what the completion says. Imported by path in reward workers."""

import os
import time
from pathlib import Path

from data.problems import Problem
from rewards.reward import Score


class Obedient:
    """ "die FILE": the process ends, unless FILE is there, which it makes; "die": always; "hang"; else a pass."""

    name = "obedient"

    def __call__(self, problem: Problem, completion: str) -> Score:
        order, _, file = completion.partition(" ")
        if order == "die" and not (file and Path(file).exists()):
            if file:
                Path(file).touch()
            os._exit(1)
        if order == "hang":
            time.sleep(600)
        return Score.passed(detail=completion)


class Unstartable:
    name = "unstartable"

    def __init__(self):
        os._exit(1)

    def __call__(self, problem: Problem, completion: str) -> Score:
        raise AssertionError("it never starts")
