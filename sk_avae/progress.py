"""How far something is: one bar on a terminal, plain lines elsewhere. A stream that is closed stops nothing."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

# Seconds between two lines of a stage where there is no terminal.
_EVERY = 2.0


class Progress:
    """The progress of `fit`, over all its stages.

    Parameters
    ----------
    stages : mapping from str to float
        What the stages are called, in their order, and how long each takes about, in any unit.
    verbose : int, default=1
        Shows nothing if 0.
    """

    def __init__(self, stages: Mapping[str, float], verbose: int = 1) -> None:
        self._weights = dict(stages)
        self._verbose = verbose > 0
        self._began = self._told = time.monotonic()
        self._stage = ""
        self._done = 0.0  # share of the stage
        self._bar: Any = None

    def stage(self, name: str) -> None:
        """Begin a stage; those before it are done, or left out."""
        self._stage, self._done = name, 0.0
        if name not in self._weights:
            self._weights[name] = 0.1 * sum(self._weights.values())
        self._tell("", always=True)

    def note(self, line: str) -> None:
        """Say something once, before the first stage."""
        if self._verbose:
            say(line)

    def step(self, n_done: int, n: int, loss: float | None = None, unit: str = "epoch") -> None:
        """Tell that so many steps of the stage are done, and the loss that they reached."""
        self._done = n_done / max(1, n)
        reached = "" if loss is None else f", loss {loss:.4g}"
        self._tell(f"{unit} {n_done}/{n}{reached}", always=n_done == n)

    def end(self) -> None:
        """Tell that all is done."""
        if not self._verbose:
            return
        if self._bar is not None:
            with _broken_streams():
                self._bar.set_description_str("done")
                self._bar.update(100 - self._bar.n)
                self._bar.close()
            self._bar = None
        else:
            say(f"Done in {_clock(time.monotonic() - self._began)}")

    @property
    def share(self) -> float:
        """Share of the whole that is done, about."""
        total, before = sum(self._weights.values()), 0.0
        for name, weight in self._weights.items():
            if name == self._stage:
                return (before + weight * self._done) / (total or 1.0)
            before += weight
        return 0.0

    def _tell(self, what: str, *, always: bool) -> None:
        now = time.monotonic()
        if not self._verbose or not (always or now - self._told >= _EVERY or self._bar is not None):
            return
        self._told = now
        names = list(self._weights)
        title = f"[{names.index(self._stage) + 1}/{len(names)}] {self._stage}" if self._stage else "training"
        if is_terminal():
            self._show(title, what)
            return
        elapsed, share = now - self._began, self.share
        left = f", about {_clock(elapsed * (1 - share) / share)} left" if share > 0.02 else ""
        say(f"{title}{what and f': {what}'}, {_clock(elapsed)} elapsed{left}")

    def _show(self, title: str, what: str) -> None:
        with _broken_streams():
            if self._bar is None:
                form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
                self._bar = tqdm(total=100, file=sys.stdout, bar_format=form, leave=True)
            self._bar.set_description_str(title, refresh=False)
            self._bar.set_postfix_str(what, refresh=False)
            self._bar.n = 100 * self.share
            self._bar.refresh()


SILENT = Progress({}, verbose=0)


@contextmanager
def counting(n: int, verbose: int) -> Iterator[Callable[[int], None]]:
    """Show how many of n images are aligned, with images per second; yields what tells that some more are.

    Nothing is shown, and no thread started, if `verbose` is 0.
    """
    if verbose <= 0:
        yield lambda _: None
    elif is_terminal():
        bar: Any = None
        with _broken_streams():
            bar = tqdm(total=n, desc="Aligning", unit="image", file=sys.stdout)

        def more(some: int) -> None:
            with _broken_streams():
                bar.update(some)

        try:
            yield more
        finally:
            with _broken_streams():
                bar.close()
    else:
        began = time.monotonic()
        yield lambda _: None
        seconds = time.monotonic() - began
        say(f"Aligned {n:,} images in {_clock(seconds)}, {n / max(seconds, 1e-9):,.0f} images/s")


def is_terminal() -> bool:
    """Tell whether what is printed is read on a terminal, or in a notebook."""
    with _broken_streams():
        return bool(sys.stdout.isatty()) or "ipykernel" in sys.modules
    return False


def say(line: str) -> None:
    """Print a line at once, in one piece; into a stream that is closed or gone nothing."""
    with _broken_streams():
        if sys.stdout is not None:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


def _broken_streams() -> Any:
    return contextlib.suppress(OSError, ValueError, AttributeError)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
