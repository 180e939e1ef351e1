"""Build wheel and sdist, install each into an environment of its own, run the README there: `make test-package`.

    python tests/try_package.py [--keep dist]

Needs `build`. What is installed comes from where pip takes it; constraints.txt holds torch.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_WHEEL = {"sk_avae/__init__.py", "sk_avae/py.typed", "sk_avae/data/mnist_sample.npz", "sk_avae/data/README.md"}
IN_SDIST = {
    *IN_WHEEL,
    *(
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CODE_OF_CONDUCT.md",
        "conftest.py",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        "constraints-oldest.txt",
        "pyproject.toml",
    ),
    *("docs/conf.py", "docs/images/rotated_digits.png", "docs/_static/style.css", "examples/rotated_digits.py"),
    *("tests/conftest.py", "tests/data/choices.npz", "benchmarks/shared/tables.py"),
}
NOT_PACKED = re.compile(r"(^|/)(\.venv|\.git/|__pycache__|_build|gallery|generated|cache|out|dist)(/|$)|\.pyc$")


def names_in(archive):
    """Return the files of a wheel, or those of an sdist without its first folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def check_contents(archive):
    names = names_in(archive)
    missing = (IN_WHEEL if archive.suffix == ".whl" else IN_SDIST) - names
    extra = sorted(name for name in names if NOT_PACKED.search(name))
    if archive.suffix == ".whl":
        extra += sorted(name for name in names if not re.match(r"sk_avae(/|-[\d.]+\w*\.dist-info/)", name))
    if missing or extra:
        sys.exit(f"{archive.name}: missing {sorted(missing)}, not to be there {extra}")
    print(f"{archive.name}: {len(names)} files, {archive.stat().st_size / 1e6:.1f} MB", flush=True)


def ten_lines():
    """Return the code of the README, with few epochs, and a last line that asks where the package came from."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    code = re.sub(r"max_epochs=\d+", "max_epochs=4", code)
    return f"{code}\nimport sk_avae\nprint(sk_avae.__version__, sk_avae.__file__)\n"


def try_it(archive, folder):
    """Install one archive into a new environment and run the README's code in an empty folder."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", archive, "pandas"], check=True)
    subprocess.run([*pip, "check"], check=True)
    empty = folder / "empty"
    empty.mkdir()
    (empty / "ten_lines.py").write_text(ten_lines(), encoding="utf-8")
    command = [python, "-W", "error", "ten_lines.py"]
    done = subprocess.run(command, cwd=empty, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(f"{archive.name}: the README says\n{done}", flush=True)
    if str(folder / "env") not in done.splitlines()[-1]:
        sys.exit(f"The code imported another sk_avae than the one installed in {folder / 'env'}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for wheel and sdist; left out, they are thrown away")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        target = keep or Path(temporary) / "dist"
        subprocess.run([sys.executable, "-m", "build", "--outdir", target, ROOT], check=True)
        archives = sorted([*target.glob("sk_avae-*.whl"), *target.glob("sk_avae-*.tar.gz")])
        if len(archives) != 2:
            sys.exit(f"{target} should hold one wheel and one sdist, has {[path.name for path in archives]}.")
        for archive in archives:
            check_contents(archive)
        for archive in archives:
            folder = Path(temporary) / archive.suffix[1:]
            folder.mkdir()
            try_it(archive, folder)


if __name__ == "__main__":
    main()
