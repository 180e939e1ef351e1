"""The audit of `docs/reliability.md`: every parameter that has no effect, every method and what it cannot take.

A row is a call and what comes of it: a warning, an error, or the same answer, where the documentation says so.
"""

import inspect
import pickle
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import sk_avae
from sk_avae import AffineCanonicalizer, AlignmentDisplay, AVAEEstimator, CanonicalizedClassifier, ExpertSettings
from sk_avae.datasets import fetch_mnist, load_mnist_sample, make_perturbed
from sk_avae.scoring import cheapest_within_one_se, perturbed
from sk_avae.vae import MLPVAE

DOCS = Path(__file__).parents[1] / "docs" / "reliability.md"


def quick(**parameters):
    small = {"max_epochs": 1, "n_restarts": 4, "random_state": 0, "critic": False, "learned_starts": False}
    if parameters.get("module", "mlp") == "mlp":
        small["hidden_layer_sizes"] = (16,)
    return AVAEEstimator(2, **{**small, **parameters})


@pytest.fixture(scope="session")
def given():
    """What the rows are tried on: a fitted model `m`, bytes `X`, classes `y`, other pixels `Xt`."""
    X, y = load_mnist_sample("train")
    model = quick().fit(X[:40])
    return SimpleNamespace(m=model, state=pickle.dumps(model), X=X[:40], y=y[:40], Xt=X[40:46], tmp=None)


def fresh(given, **parameters):
    """Return a copy of the fitted model with other parameters."""
    return pickle.loads(given.state).set_params(**parameters)


def vae(n_latent=2):
    return MLPVAE((1, 28, 28), n_latent, (8,))


def wrapped(**parameters):
    return AVAEEstimator.from_vae(vae(), **{"image_shape": (28, 28), **parameters})


def expert(**parameters):
    return quick(expert=ExpertSettings(**parameters))


def said(pattern):
    return (UserWarning, pattern)


def same_as(first, second):
    """Return a call that returns whether two models transform alike."""
    return lambda g: assert_array_equal(first(g).transform(g.Xt), second(g).transform(g.Xt))


# Parameter and situation: the call, and a warning or an error with its text; None where nothing is told, since the
# documentation says what happens and the call checks it.
PARAMETERS = {
    "`latent_size` beside an instance of another size": (
        lambda g: quick(module=vae(3)).fit(g.X),
        (ValueError, "latent_size=2, but MLPVAE has 3"),
    ),
    "`family` on images of one row": (
        lambda g: quick(image_shape=(1, 784)).fit(g.X),
        (ValueError, "no pose that family"),
    ),
    "`image_shape` that is not the stack's": (
        lambda g: quick(image_shape=(14, 56)).fit(g.X.reshape(-1, 28, 28)),
        (ValueError, r"but image_shape is \(14, 56\)"),
    ),
    "`image_shape` missing, rows no square": (lambda g: quick().fit(g.X[:, :600]), (ValueError, r"perhaps \(24, 25\)")),
    "`max_epochs` in `partial_fit`, which takes one": (
        lambda g: quick(max_epochs=9).partial_fit(g.X).n_iter_ == 1 or pytest.fail("more than one epoch"),
        None,
    ),
    "`random_state` after `fit`, where nothing is drawn": (
        same_as(lambda g: fresh(g, random_state=9), lambda g: g.m),
        None,
    ),
    "`module` unknown": (lambda g: quick(module="cnn").fit(g.X), (ValueError, "module must be one of")),
    "`hidden_layer_sizes` beside another module": (
        lambda g: quick(module=MLPVAE, hidden_layer_sizes=(9,)).fit(g.X),
        said(r"hidden_layer_sizes=\(9,\) \(the module is not 'mlp'\)"),
    ),
    "`likelihood` Bernoulli, pixels beyond 1 and not rescaled": (
        lambda g: quick(likelihood="bernoulli", rescale=False).fit(g.X),
        (ValueError, "needs pixels between 0 and 1"),
    ),
    "`decoder_output` beside a Gaussian": (
        lambda g: quick(likelihood="gaussian", decoder_output="logits").fit(g.X),
        said("decoder_output='logits' .a Gaussian reads means"),
    ),
    "`decoder_output='probabilities'` of our own module": (
        lambda g: quick(decoder_output="probabilities").fit(g.X),
        (ValueError, "MLPVAE puts out logits"),
    ),
    "`pad` changed, `warm_start`": (
        lambda g: fresh(g, pad=3, warm_start=True).fit(g.X),
        (ValueError, r"pad=3 \(was 0\)"),
    ),
    "`pad` changed after `fit`, which alone reads it": (same_as(lambda g: fresh(g, pad=3), lambda g: g.m), None),
    "`padding` unknown": (lambda g: quick(padding="mirror").fit(g.X), (ValueError, "padding must be one of")),
    "`rescale` no flag": (lambda g: quick(rescale="yes").fit(g.X), (TypeError, "rescale must be 'image', True or F")),
    "`resolution` beyond the images' own": (same_as(lambda g: quick(resolution=99).fit(g.X), lambda g: g.m), None),
    "`resolution` changed, `warm_start`": (
        lambda g: fresh(g, resolution=14, warm_start=True).fit(g.X),
        (ValueError, r"resolution=.* \(was"),
    ),
    "`missing_values` unknown": (
        lambda g: quick(missing_values="drop").fit(g.X),
        (ValueError, "missing_values must be one of"),
    ),
    "`interpolation` unknown": (
        lambda g: fresh(g, interpolation="cubic").transform(g.Xt),
        (ValueError, "interpolation must be one of"),
    ),
    "`alpha_prior` of a parameter that the family lacks": (
        lambda g: quick(alpha_prior={"tx": 0.1}).fit(g.X),
        (ValueError, "tx"),
    ),
    "`alpha_prior` that freezes all": (
        lambda g: assert_array_equal(quick(alpha_prior={"angle": 0}).fit(g.X).align(g.Xt).alpha, 0),
        None,
    ),
    "`allow_reflection` set after a fit with a proposer": (
        lambda g: (
            AVAEEstimator(2, max_epochs=1, critic=False, random_state=0)
            .fit(load_mnist_sample()[0][:120])
            .set_params(allow_reflection=True)
            .align(g.Xt)
        ),
        said("learned for other poses than family='rotation.reflection'"),
    ),
    "`align_training` on images that are alike": (
        lambda g: quick(align_training=True, batch_size=8).fit(np.repeat(g.X[:1], 40, axis=0)),
        said("align_training=True learns little here: all 40 training images are alike"),
    ),
    "`n_restarts=0`": (lambda g: quick(n_restarts=0).fit(g.X), (ValueError, "n_restarts == 0")),
    "`n_refine` more than `n_restarts`": (
        same_as(lambda g: fresh(g, n_refine=9), lambda g: fresh(g, n_refine=4)),
        None,
    ),
    "`tol` negative": (lambda g: quick(tol=-1.0).fit(g.X), (ValueError, "tol == -1.0")),
    "`min_gain='auto'` with few images": (
        lambda g: quick(min_gain="auto").fit(g.X),
        (ValueError, "learned from at least 64 images"),
    ),
    "`min_gain='auto'` in `partial_fit`": (
        lambda g: quick(min_gain="auto").partial_fit(g.X),
        (ValueError, "learned in `fit` only"),
    ),
    "`learned_starts` set after `fit`": (
        lambda g: fresh(g, learned_starts=True).align(g.Xt),
        said("learned_starts=True has no effect"),
    ),
    "`critic` set after `fit`": (lambda g: fresh(g, critic=True).align(g.Xt), said("critic=True has no effect")),
    "`critic` with few images": (
        lambda g: quick(critic=True).fit(g.X),
        said("X has 40 images, and the critic learns from 64"),
    ),
    "`batch_size` more than there are images": (
        same_as(lambda g: quick(batch_size=999).fit(g.X), lambda g: quick(batch_size=40).fit(g.X)),
        None,
    ),
    "`lr=0`": (lambda g: quick(lr=0.0).fit(g.X), (ValueError, "lr == 0.0")),
    "`early_stopping` of one image": (
        lambda g: quick(early_stopping=True).fit(g.X[:1]),
        (ValueError, "train set will be empty"),
    ),
    "`warm_start` of a model that is not fitted": (
        same_as(lambda g: quick(warm_start=True).fit(g.X), lambda g: g.m),
        None,
    ),
    "`expert` a dict": (lambda g: quick(expert={"max_iter": 3}).fit(g.X), (TypeError, "expert must be ExpertSettings")),
    "`device` without numbers": (lambda g: quick(device="meta").fit(g.X), (ValueError, "device='meta' has no numbers")),
    "`device` that is not there": (lambda g: quick(device="cuda:99").fit(g.X), (ValueError, "not available here")),
    "`memory` without an int `random_state`": (
        lambda g: quick(memory=str(g.tmp), random_state=None).fit(g.X),
        said("memory=.* .random_state is no int"),
    ),
    "`memory` where no folder can be": (
        lambda g: quick(memory=__file__).fit(g.X),
        (OSError, "Not a directory"),
    ),
    "`verbose=None`": (lambda g: quick(verbose=None).fit(g.X), (TypeError, "verbose must be an instance of")),
    "`expert__max_iter=0`, which screens only": (
        lambda g: fresh(g, expert=ExpertSettings(max_iter=0)).align(g.Xt),
        None,
    ),
    "`expert__weight_decay` negative": (lambda g: expert(weight_decay=-1).fit(g.X), (ValueError, "weight_decay == -1")),
    "`expert__validation_fraction=1`": (
        lambda g: expert(validation_fraction=1.0).fit(g.X),
        (ValueError, "validation_fraction == 1.0"),
    ),
    "`expert__n_iter_no_change` without `early_stopping`": (
        lambda g: expert(n_iter_no_change=2).fit(g.X),
        said("expert__n_iter_no_change=2 .early_stopping is False"),
    ),
    "`expert__callbacks` that are none": (lambda g: expert(callbacks=[3]).fit(g.X), (TypeError, "skorch callbacks")),
    "`max_iter` where it was until 0.2": (
        lambda g: quick(max_iter=9).fit(g.X),
        (FutureWarning, "max_iter moved to ExpertSettings"),
    ),
    "`from_vae(scale=0)`": (lambda g: wrapped(scale=0.0), (ValueError, "scale must not be 0")),
    "`from_vae(background=nan)`": (lambda g: wrapped(background=np.nan), (ValueError, "background finite")),
    "`from_vae(X=few, min_gain='auto')`": (
        lambda g: wrapped(X=g.X / 255, min_gain="auto"),
        (ValueError, "learned from at least 64"),
    ),
    "`from_vae(module)` without a decoder": (
        lambda g: AVAEEstimator.from_vae(nn.Linear(3, 3), image_shape=(28, 28)),
        (TypeError, "Missing: `encode` and `decode`"),
    ),
    "`AffineCanonicalizer(random_state)` of a frozen aligner, which draws nothing": (
        same_as(
            lambda g: AffineCanonicalizer(FrozenEstimator(g.m), random_state=3).fit(g.X),
            lambda g: AffineCanonicalizer(FrozenEstimator(g.m)).fit(g.X),
        ),
        None,
    ),
    "`AffineCanonicalizer(estimator)` that cannot align": (
        lambda g: AffineCanonicalizer(KNeighborsClassifier()).fit(g.X),
        (TypeError, "estimator must be an AVAEEstimator"),
    ),
    "`CanonicalizedClassifier(calibrate)` with fewer than 50 images": (
        lambda g: assert_array_equal(
            *(
                CanonicalizedClassifier(KNeighborsClassifier(), FrozenEstimator(g.m), calibrate=calibrate)
                .fit(g.X, g.y)
                .predict_proba(g.Xt)
                for calibrate in (True, False)
            )
        ),
        None,
    ),
    "`CanonicalizedClassifier(classifier)` that is none": (
        lambda g: CanonicalizedClassifier(g.m).fit(g.X, g.y),
        (TypeError, "classifier must be a classifier"),
    ),
    "`sample_weight` for a classifier that takes none": (
        lambda g: CanonicalizedClassifier(KNeighborsClassifier(), FrozenEstimator(g.m)).fit(g.X, g.y, np.ones(40)),
        (TypeError, "takes no sample_weight"),
    ),
    "`make_perturbed(image_shape)` that is not the stack's": (
        lambda g: make_perturbed(g.X.reshape(-1, 28, 28), image_shape=(14, 56)),
        (ValueError, r"but image_shape is \(14, 56\)"),
    ),
    "`make_perturbed(ranges)` of a parameter that the family lacks": (
        lambda g: make_perturbed(g.X, ranges={"tx": 0.1}),
        (ValueError, r"ranges names \['tx'\]"),
    ),
    "`perturbed(scorer)` unknown": (lambda g: perturbed("acuracy"), (ValueError, "acuracy")),
    "`cheapest_within_one_se()` of nothing": (
        lambda g: cheapest_within_one_se(),
        (ValueError, "needs the name of a para"),
    ),
}


def with_nan(X):
    X = X.astype(float)
    X[1, 3] = np.nan
    return X


WRONG_IMAGES = {
    "gaps": (lambda g: with_nan(g.Xt), (ValueError, "missing_values='ignore'")),
    "masked values": (lambda g: np.ma.masked_less(g.Xt, 9), (ValueError, "is a masked array with")),
    "one image": (lambda g: g.Xt[0].reshape(28, 28), (ValueError, r"Pass X\[None\]")),
    "channels first": (lambda g: g.Xt.reshape(-1, 1, 28, 28), (ValueError, r"pass X.transpose\(0, 2, 3, 1\)")),
    "other units": (lambda g: g.Xt / 255, said("made for between 0 and 255")),
    "another offset": (lambda g: g.Xt + 1000.0, said("made for between 0 and 255")),
    "nothing": (lambda g: g.Xt[:0], (ValueError, "0 sample")),
}
IMAGE_METHODS = ("transform", "align", "score_samples", "encode", "reconstruct", "perturb", "transform_hypotheses")

# Method and input, in the same way.
METHODS = {
    **{
        f"`{method}` of {name}": (lambda g, method=method, wrong=wrong: getattr(g.m, method)(wrong(g)), outcome)
        for name, (wrong, outcome) in WRONG_IMAGES.items()
        for method in IMAGE_METHODS
    },
    "any of these before `fit`": (lambda g: quick().transform(g.Xt), (NotFittedError, "not fitted yet")),
    "`fit` of gaps": (lambda g: quick().fit(with_nan(g.X)), (ValueError, "missing_values='ignore'")),
    "`fit` of a hot pixel": (
        lambda g: quick().fit(np.where(np.arange(784 * 40).reshape(40, 784) == 900, 1e5, g.X)),
        said("1 of the 31360 pixels of X lie far outside the others"),
    ),
    "`fit` of channels first": (
        lambda g: quick().fit(np.repeat(g.X.reshape(-1, 1, 28, 28), 5, axis=1)),
        (ValueError, "channels came first"),
    ),
    "`transform(out=...)` of another shape": (
        lambda g: g.m.transform(g.Xt, out=np.empty((6, 784))),
        (ValueError, "out must be a writeable array"),
    ),
    "`decode` of too few columns": (lambda g: g.m.decode(np.zeros((2, 2))), (ValueError, "Z has 2 columns, but")),
    "`decode` of gaps": (lambda g: g.m.decode(np.full((2, 3), np.nan)), (ValueError, "Input Z contains NaN")),
    "`warp` of rows": (lambda g: g.m.warp(g.Xt, g.m.align(g.Xt)), (ValueError, "X must be images of shape")),
    "`warp` by poses of other images": (
        lambda g: g.m.warp(g.Xt.reshape(-1, 28, 28), np.zeros((1, 1))),
        (ValueError, "alpha must be finite numbers of shape"),
    ),
    "`inverse_transform` without the pose": (
        lambda g: g.m.inverse_transform(g.Xt),
        (ValueError, "X has 784 columns, but"),
    ),
    "`sample(0)`": (lambda g: g.m.sample(0), (ValueError, "n_samples == 0")),
    "`get_feature_names_out` of too few names": (
        lambda g: g.m.get_feature_names_out(["a"]),
        (ValueError, "input_features should have length"),
    ),
    "`negative_elbo(align='no')`": (lambda g: g.m.negative_elbo(g.Xt, align="no"), (TypeError, "align must be True")),
    "`AffineCanonicalizer.inverse_transform` without `append_alpha`": (
        lambda g: AffineCanonicalizer(FrozenEstimator(g.m)).fit(g.X).inverse_transform(g.Xt),
        (AttributeError, "inverse_transform"),
    ),
    "`CanonicalizedClassifier.fit` without y": (
        lambda g: CanonicalizedClassifier(KNeighborsClassifier()).fit(g.X, None),
        (ValueError, "requires y to be passed"),
    ),
    "`CanonicalizedClassifier.fit` of another number of classes": (
        lambda g: CanonicalizedClassifier(KNeighborsClassifier(), FrozenEstimator(g.m)).fit(g.X, g.y[:9]),
        (ValueError, "inconsistent numbers of samples"),
    ),
    "`AlignmentDisplay` of gaps": (
        lambda g: AlignmentDisplay.from_estimator(g.m, with_nan(g.Xt)),
        (ValueError, "missing_values='ignore'"),
    ),
    "`save` of a model that is not fitted": (
        lambda g: sk_avae.save(quick(), g.tmp / "m"),
        (NotFittedError, "not fitted"),
    ),
    "`load` of what is no model": (lambda g: sk_avae.load(__file__), (ValueError, "test_audit")),
    "`make_perturbed` of gaps": (lambda g: make_perturbed(with_nan(g.Xt)), (ValueError, "Input X contains NaN")),
    "`make_perturbed` of masked values": (
        lambda g: make_perturbed(np.ma.masked_less(g.Xt, 9)),
        (ValueError, "is a masked array"),
    ),
    "`load_mnist_sample` of an unknown subset": (lambda g: load_mnist_sample("all"), (ValueError, "subset must be")),
    "`fetch_mnist` from an empty folder": (lambda g: fetch_mnist(g.tmp), (FileNotFoundError, "has neither")),
}


def outcome_of(row, given, tmp_path):
    call, expected = row
    given.tmp = tmp_path
    if expected is None:
        call(given)
    elif issubclass(expected[0], Warning):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with pytest.warns(expected[0], match=expected[1]):
                call(given)
    else:
        with warnings.catch_warnings(action="ignore"), pytest.raises(expected[0], match=expected[1]):
            call(given)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_without_effect_is_named_or_documented(given, tmp_path, name):
    outcome_of(PARAMETERS[name], given, tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_cannot_take(given, tmp_path, name):
    before = pickle.dumps(given.m)
    outcome_of(METHODS[name], given, tmp_path)
    assert pickle.dumps(given.m) == before


def test_every_parameter_has_its_row():
    rows = " ".join(PARAMETERS)
    names = [
        *inspect.signature(AVAEEstimator).parameters,
        *(f"expert__{name}" for name in ExpertSettings().get_params()),
    ]
    moved = {"weight_decay", "validation_fraction", "n_iter_no_change", "callbacks"}
    assert not [name for name in names if name not in moved and not re.search(rf"`{name}\b", rows)]


def described(expected):
    """Return an outcome in the words of the documentation."""
    if expected is None:
        return "as documented"
    return "a warning" if issubclass(expected[0], Warning) else f"`{expected[0].__name__}`"


@pytest.mark.skipif(not DOCS.exists(), reason="an installed package has no documentation beside it")
def test_the_documentation_has_these_rows():
    text = DOCS.read_text(encoding="utf-8")
    rows = [(name, described(expected)) for table in (PARAMETERS, METHODS) for name, (_, expected) in table.items()]
    assert len(rows) >= 60
    missing = [row for row in rows if f"| {row[0]} | {row[1]} | [test_" not in text]
    assert not missing
