"""Times: functions take turns, so that whatever else the machine does slows all of them down."""

import time
from functools import partial

import numpy as np


def timed(function, *args):
    """Return what a function returns, and the seconds that it took."""
    start = time.perf_counter()
    value = function(*args)
    return value, time.perf_counter() - start


def in_turns(functions, repeats, *, warm_up=0):
    """Return what each function returned in its turns, without those that warm up."""
    results = {name: [] for name in functions}
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            result = function()
            if turn >= warm_up:
                results[name].append(result)
    return results


def medians(functions, repeats):
    """Return the last value of each function, and its median time."""
    turns = in_turns({name: partial(timed, function) for name, function in functions.items()}, repeats)
    values = {name: results[-1][0] for name, results in turns.items()}
    return values, {name: float(np.median([seconds for _, seconds in results])) for name, results in turns.items()}
