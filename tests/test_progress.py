"""Progress: one bar or plain lines, and never a reason to fail."""

import io
import sys
import threading

import pytest

from sk_avae import progress
from sk_avae.progress import Progress, counting


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Broken(io.StringIO):
    def write(self, text):
        raise OSError("no space left")


def run(n_epochs=3):
    shown = Progress({"one": 1.0, "two": 3.0})
    shown.stage("one")
    for epoch in range(n_epochs):
        shown.step(epoch + 1, n_epochs, 100.0 - epoch)
    shown.stage("two")
    shown.step(1, 2)
    assert shown.share == pytest.approx(0.25 + 0.75 / 2)
    shown.end()
    with counting(20, 1) as more:
        more(20)


def test_lines_where_there_is_no_terminal(capsys):
    run()
    out = capsys.readouterr().out
    assert out.startswith("[1/2] one, 0:00 elapsed\n[1/2] one: epoch 3/3, loss 98, 0:00 elapsed, about 0:00 left\n")
    assert "[2/2] two" in out
    assert not {"\r", "\x1b"} & set(out)


def test_a_bar_on_a_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    run()
    shown = stream.getvalue()
    assert "[1/2] one" in shown
    assert "loss 98" in shown
    assert "done" in shown
    assert "100%" in shown
    assert "20/20" in shown
    assert "image/s" in shown


@pytest.mark.parametrize("stream", [None, Broken()])
def test_a_stream_that_is_gone_stops_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    run()


def test_a_closed_stream_stops_nothing(monkeypatch, small_avae, digits):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    stream.close()
    run()
    model = small_avae(max_epochs=1, learned_starts=False, verbose=1).fit(digits.X[:60])
    assert model.transform(digits.X[:3]).shape == (3, 785)


def test_nothing_is_shown_and_no_thread_begun_without_verbose(capsys):
    n = threading.active_count()
    shown = Progress({"one": 1.0}, verbose=0)
    shown.stage("one")
    shown.step(1, 1, 2.0)
    shown.end()
    with counting(20, 0) as more:
        more(20)
    assert capsys.readouterr().out == ""
    assert threading.active_count() == n


def test_a_stage_of_many_steps_says_little(capsys, monkeypatch):
    now = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now) / 10)
    shown = Progress({"one": 1.0})
    shown.stage("one")
    for step in range(200):
        shown.step(step + 1, 200)
    assert len(capsys.readouterr().out.splitlines()) == 11
