"""Sphinx builds the documentation from this folder: `make docs` with the gallery run, `make docs-fast` without."""

import json
import re
import zlib
from pathlib import Path

import sk_avae
from sk_avae import datasets, plotting, scoring

HERE = Path(__file__).parent
ROOT = HERE.parent
GENERATED = HERE / "generated"

project = "sk_avae"
author = "The sk_avae developers"
copyright = author  # the name is Sphinx's
version = release = sk_avae.__version__

# ---------------------------------------------------------------- the API page
# Every public name once, by what it is for. A new one of `sk_avae` needs its place here.
API = {
    "Align": ["AVAEEstimator", "AffineCanonicalizer", "CanonicalizedClassifier"],
    "What was found": ["AlignmentResult", "AlignmentReport"],
    "Displays": plotting.__all__,
    "Images": [f"datasets.{name}" for name in datasets.__all__],
    "Scores and searches": [f"scoring.{name}" for name in scoring.__all__],
    "Files": ["save", "load"],
    "Settings, versions": ["ExpertSettings", "show_versions"],
    # For those who bring networks or likelihoods of their own, see `contributing.md`, and an attribute's class.
    "Networks, likelihoods, mixtures": [
        *("vae.MLPVAE", "vae.ConvVAE", "likelihoods.Bernoulli", "likelihoods.Gaussian", "mixture.HypothesisMixture"),
    ],
}
assert set(sk_avae.__all__) <= {name for names in API.values() for name in names}, "a public name without a section"


def api_page():
    parts = [
        "API reference\n=============\n",
        "Only names on this page are public API and covered by semantic versioning.",
        "Estimators also have what scikit-learn gives to all:",
        "``get_params``, ``set_params``, ``fit_transform``, ``set_output``.\n",
    ]
    for title, names in API.items():
        rows = "\n".join(f"   sk_avae.{name}" for name in names)
        parts.append(
            f"{title}\n{'-' * len(title)}\n\n.. autosummary::\n   :toctree: api\n   :nosignatures:\n\n{rows}\n"
        )
    return "\n".join(parts)


# ---------------------------------------------------------------- links to other projects
# Sphinx reads names of other projects from inventories, which it would fetch. These are made here, of the names that
# the pages use, so that a build needs no network.
OTHERS = {
    "sklearn": (
        "https://scikit-learn.org/stable/",
        "modules/generated/{}.html",
        [
            *("sklearn.pipeline.Pipeline", "sklearn.pipeline.make_pipeline", "sklearn.model_selection.GridSearchCV"),
            *("sklearn.frozen.FrozenEstimator", "sklearn.linear_model.LogisticRegression", "sklearn.utils.Bunch"),
            *("sklearn.datasets.load_files", "sklearn.preprocessing.MinMaxScaler"),
        ],
    ),
    "numpy": ("https://numpy.org/doc/stable/", "reference/generated/{}.html", ["numpy.ndarray"]),
    "torch": ("https://docs.pytorch.org/docs/stable/", "generated/{}.html", ["torch.nn.Module"]),
    "pandas": ("https://pandas.pydata.org/docs/", "reference/api/{}.html", ["pandas.DataFrame"]),
    "matplotlib": ("https://matplotlib.org/stable/", "api/_as_gen/{}.html", ["matplotlib.axes.Axes"]),
}


def inventory(project, page, names):
    """Return the bytes of an inventory of version 2 (Sphinx's `objects.inv`)."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The rest is compressed with zlib.\n"
    kind = {True: "class", False: "function"}
    lines = (
        f"{n} py:{kind[n.split('.')[-1][0].isupper() or n == 'numpy.ndarray']} 1 {page.format(n)}#{n} -\n"
        for n in names
    )
    return head.encode() + zlib.compress("".join(lines).encode())


def made_inventories():
    mapping = {}
    for project, (address, page, names) in OTHERS.items():
        path = GENERATED / "inventories" / f"{project}.inv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(inventory(project, page, names))
        mapping[project] = (address, str(path))
    return mapping


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


def picture_first(app, docname, source):
    """Show an example's picture below its title; where the gallery was not run there is none."""
    name = docname.removeprefix("gallery/plot_")
    picture = HERE / "gallery" / "images" / f"sphx_glr_plot_{name}_001.png"
    if name == docname or not picture.exists():
        return
    marker = ".. GENERATED FROM PYTHON SOURCE LINES"
    title = re.search(r"^(.+)\n=+$", source[0], flags=re.MULTILINE).group(1)
    place = source[0].index(marker, source[0].index(marker) + 1)
    section = re.search(r"^.+\n-+$", source[0][:place], flags=re.MULTILINE)
    place = section.start() if section else place
    image = f".. image:: images/{picture.name}\n   :alt: {title}: the picture that this example draws\n\n"
    source[0] = source[0][:place] + image + source[0][place:]


def skip_what_scikit_learn_writes(app, what, name, obj, skip, options):
    """Leave out `set_<method>_request`, which scikit-learn writes into each class."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def setup(app):
    app.connect("source-read", point_inside)
    app.connect("source-read", picture_first)
    app.connect("autodoc-skip-member", skip_what_scikit_learn_writes)


# ---------------------------------------------------------------- Sphinx
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxext.opengraph",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery/GALLERY_HEADER.rst"]
default_role = "literal"
nitpicky = False
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say the types, in words
intersphinx_mapping = made_inventories()
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
ogp_site_url = "https://sk-avae.readthedocs.io/en/stable/"
ogp_image = "_images/rotated_digits.png"
ogp_social_cards = {"enable": False}
myst_enable_extensions = ["colon_fence"]
numpydoc_show_class_members = False
# Every parameter documented, none that does not exist, in order; the rest is up to ruff's pydocstyle. What is below the
# estimators has a line per method; the fields of the result are attributes.
numpydoc_validation_checks = {"PR01", "PR02", "PR03", "PR04", "SS01", "GL08"}
numpydoc_validation_exclude = {
    r"^sk_avae\.(vae|likelihoods)\.",
    r"\.(AlignmentResult|AlignmentReport|HypothesisMixture)$",
}
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a table of results may begin with a heading of the second level

html_theme = "pydata_sphinx_theme"
html_title = "sk_avae"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {
    "header_links_before_dropdown": 5,
    "navigation_with_keys": False,
    "navbar_end": ["versions", "theme-switcher", "navbar-icon-links"],
    "icon_links": [{"name": "The paper", "url": "https://arxiv.org/abs/1905.05300", "icon": "fa-solid fa-file-lines"}],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "secondary_sidebar_items": ["page-toc", "sourcelink"],
}
html_sidebars = {"index": []}
toc_object_entries_show_parents = "hide"  # so that names of methods are not cut
# Versions that are built, each into a folder of its name beside the others. The pages link to one another as files.
html_context = {"default_mode": "auto", "versions": json.loads((HERE / "versions.json").read_text(encoding="utf-8"))}

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"^(rotated_digits|wrap_a_vae)\.py$",
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sk_avae",),
    "abort_on_example_error": True,
    "default_thumb_file": str(HERE / "images" / "rotated_digits.png"),  # of those that are not run
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 10_000,
    "show_memory": False,
    "write_computation_times": False,  # its page would load scripts from elsewhere
    "remove_config_comments": True,
}
