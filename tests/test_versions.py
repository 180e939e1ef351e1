"""What is pasted into a bug report."""

import platform

import numpy as np

import sk_avae


def test_show_versions_names_what_is_needed_and_what_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr("sk_avae._versions._OPTIONAL", ("pandas", "no-such-package"))
    sk_avae.show_versions()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"python: {platform.python_version()}" in lines
    assert f"numpy: {np.__version__}" in lines
    assert "no-such-package: not installed" in lines
