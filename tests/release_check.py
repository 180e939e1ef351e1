"""Walk the release checklist: what can be checked is, what is left to do by hand is printed. `make release-check`.

    python tests/release_check.py [--quick]

With --quick the long steps (tests, oldest releases, packages, documentation) are left out.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG_STEPS = ("test", "test-oldest", "test-package", "docs", "docs-test")
BY_HAND = (
    "Push, and wait for the workflows to pass on all systems.",
    "Make a release with this tag on the repository's page: the workflow publishes to PyPI.",
    "In a new environment: pip install sk-avae, then the README's ten lines.",
    "Set the next version, with .dev0, in sk_avae/_version.py and docs/versions.json.",
)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def quick_checks():
    """Yield what should hold, whether it does, and what to do otherwise."""
    version = re.search(r'__version__ = "(.*)"', read("sk_avae/_version.py")).group(1)
    heading = re.search(
        rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", read("CHANGELOG.md"), flags=re.MULTILINE
    )
    citation = read("CITATION.cff")
    day = heading.group(1) if heading else "none"
    yield f"{version} is no development version", "dev" not in version, "set it in sk_avae/_version.py"
    yield f"CHANGELOG.md has a section [{version}] with a date", heading, "turn [Unreleased] into it"
    yield f"CITATION.cff has version {version}", f"version: {version}\n" in citation, "set it there"
    yield f"CITATION.cff has the changelog's date, {day}", f"date-released: {day}\n" in citation, "set it there"
    yield f"docs/versions.json has {version}", version in json.loads(read("docs/versions.json")), "add it"
    yield "nothing is left to commit", not git("status", "--porcelain"), "commit it"
    yield f"the tag v{version} is not taken", not git("tag", "--list", f"v{version}"), "choose the next version"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the long steps")
    quick = parser.parse_args().quick
    to_do = []
    for claim, holds, otherwise in quick_checks():
        print(f"[{'x' if holds else ' '}] {claim}", flush=True)
        if not holds:
            to_do.append(f"{claim}: {otherwise}")
    for step in () if quick else LONG_STEPS:
        done = subprocess.run(["make", step], cwd=ROOT, check=False).returncode == 0
        print(f"[{'x' if done else ' '}] make {step}", flush=True)
        if not done:
            to_do.append(f"make {step} passes")
    if to_do:
        sys.exit("Not ready. To do:\n" + "\n".join(f"  - {line}" for line in to_do))
    print("Ready. By hand:\n" + "\n".join(f"  {k}. {line}" for k, line in enumerate(BY_HAND, start=1)))


if __name__ == "__main__":
    main()
