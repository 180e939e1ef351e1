"""Sphinx builds the documentation from this folder: `make docs` with the gallery run, `make docs-fast` without."""

import importlib
import re
from pathlib import Path

import sk_avae
from sk_avae import plotting

HERE = Path(__file__).parent
ROOT = HERE.parent
GENERATED = HERE / "generated"

project = "sk_avae"
author = "The sk_avae developers"
copyright = author  # the name is Sphinx's
version = release = sk_avae.__version__

# ---------------------------------------------------------------- the API page
# A section for each module, of all that is in its `__all__`: a new public name needs no line here, a new module one.
API_MODULES = {
    "sk_avae": "Estimators, results and files",
    "sk_avae.datasets": "Data",
    "sk_avae.scoring": "Scores",
}
# What these modules hold for those who bring networks or likelihoods of their own, see `contributing.md`, and an
# attribute's class.
API_PARTS = [
    "sk_avae.vae.MLPVAE",
    "sk_avae.vae.ConvVAE",
    "sk_avae.likelihoods.Bernoulli",
    "sk_avae.likelihoods.Gaussian",
    "sk_avae.mixture.HypothesisMixture",
]


def public_names():
    """Return the sections of the API page: title to dotted names, each name once."""
    sections = {
        title: [f"{module}.{name}" for name in importlib.import_module(module).__all__]
        for module, title in API_MODULES.items()
    }
    displays = [f"sk_avae.{name}" for name in plotting.__all__]
    first, *rest = sections
    return {
        first: [name for name in sections[first] if name not in displays],
        "Displays": displays,
        **{title: sections[title] for title in rest},
        "Networks, likelihoods, mixtures": API_PARTS,
    }


def api_page():
    parts = [
        "API reference\n=============\n",
        "Public is what is on this page; the version numbers promise nothing about the rest. Estimators also have what",
        "scikit-learn gives to all: ``get_params``, ``set_params``, ``fit_transform``, ``set_output``.\n",
    ]
    for title, names in public_names().items():
        rows = "\n".join(f"   {name}" for name in names)
        parts.append(
            f"{title}\n{'-' * len(title)}\n\n.. autosummary::\n   :toctree: api\n   :nosignatures:\n\n{rows}\n"
        )
    return "\n".join(parts)


# ---------------------------------------------------------------- tables and tests as pages
# Pages link to ../benchmarks/results/*.md, ../tests/*.py and ../examples/*.py, which works where the files are read as
# files. Here these become pages of their own: folder, and suffix, by where they lie.
OUTSIDE = re.compile(r"\.\./(benchmarks/results|tests|examples)/(\w+)\.(?:md|py)")
INSIDE = {
    "benchmarks/results": ("generated/results", "md"),
    "tests": ("generated/tests", "rst"),
    "examples": ("gallery", "rst"),
}


def linked_tests():
    text = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("*.md"))
    return sorted({name for folder, name in OUTSIDE.findall(text) if folder == "tests"})


def write(path, text):
    """Write a generated file, but leave one that is there already, with its date: Sphinx then need not read it anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


write(GENERATED / "api.rst", api_page())
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
for table in RESULTS:
    write(GENERATED / "results" / table.name, table.read_text(encoding="utf-8"))
for picture in (ROOT / "benchmarks" / "results").glob("*.png"):
    target = GENERATED / "results" / picture.name
    if not target.exists() or target.read_bytes() != picture.read_bytes():
        target.write_bytes(picture.read_bytes())
for test in linked_tests():
    write(
        GENERATED / "tests" / f"{test}.rst",
        f":orphan:\n\n{test}.py\n{'=' * (len(test) + 3)}\n\n"
        f".. literalinclude:: ../../../tests/{test}.py\n   :linenos:\n",
    )


def point_inside(app, docname, source):
    """Let links out of this folder lead to the pages made of what lies there."""
    if "/" not in docname:
        source[0] = OUTSIDE.sub(lambda found: "{0}/{2}.{1}".format(*INSIDE[found[1]], found[2]), source[0])


def skip_what_scikit_learn_writes(app, what, name, obj, skip, options):
    """Leave out `set_<method>_request`, which scikit-learn writes into each class."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def setup(app):
    app.connect("source-read", point_inside)
    app.connect("autodoc-skip-member", skip_what_scikit_learn_writes)


# ---------------------------------------------------------------- Sphinx
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery/GALLERY_HEADER.rst"]
default_role = "literal"
nitpicky = False
autosummary_generate = True
numpydoc_show_class_members = False
# Every parameter documented, none that does not exist, in order; the rest is up to ruff's pydocstyle. What is below the
# estimators has a line per method; the fields of the result are attributes.
numpydoc_validation_checks = {"PR01", "PR02", "PR03", "PR04", "SS01", "GL08"}
numpydoc_validation_exclude = {r"^sk_avae\.(vae|likelihoods)\.", r"\.AlignmentResult$"}
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a table of results may begin with a heading of the second level

html_theme = "pydata_sphinx_theme"
html_title = "sk_avae"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "header_links_before_dropdown": 5,
    "show_prev_next": False,
    "navigation_with_keys": False,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "tango",
}
# Pages without others below them have nothing to show at the left, and need the width for tables.
html_sidebars = {path.stem: [] for path in HERE.glob("*.md") if "{toctree}" not in path.read_text(encoding="utf-8")} | {
    "index": []
}
toc_object_entries_show_parents = "hide"  # so that names of methods are not cut
html_context = {"default_mode": "light"}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"^(rotated_digits|wrap_a_vae)\.py$",
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sk_avae",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 10_000,
    "show_memory": False,
    "write_computation_times": False,  # its page would load scripts from elsewhere
    "remove_config_comments": True,
}
