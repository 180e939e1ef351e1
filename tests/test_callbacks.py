"""scikit-learn's callbacks: what they are told of, and that they change nothing."""

import subprocess
import sys

import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sk_avae import AffineCanonicalizer, AVAEEstimator, CanonicalizedClassifier
from sk_avae.learning import training_run
from sk_avae.scoring import elbo

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged", "few_lessons")

needs_callbacks = pytest.mark.skipif(
    not hasattr(AVAEEstimator, "set_callbacks"), reason="scikit-learn has callbacks since 1.9"
)


class Recorder:
    """Writes down what it is told of, by the names of estimator and task; may ask to stop after some epochs."""

    max_propagation_depth = None

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.calls = []

    def setup(self, estimator, context):
        self.calls.append("setup")

    def on_fit_task_begin(self, estimator, context):
        self.calls.append(f"+{context.estimator_name}.{context.task_name}")

    def on_fit_task_end(self, estimator, context):
        self.calls.append(f"-{context.estimator_name}.{context.task_name}")
        return context.task_name == "epoch" and context.task_id + 1 == self.stop_after

    def teardown(self, estimator, context):
        self.calls.append("teardown")

    def count(self, call):
        return self.calls.count(call)


class Scorer(Recorder):
    """Scores the model as it is after each task."""

    def __init__(self, X_seen):
        super().__init__()
        self.X_seen = X_seen
        self.scores = []
        self.models = []

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        assert len(X) > 0
        if fitted_estimator is not None:
            self.scores.append(fitted_estimator.score(self.X_seen))
            self.models.append(fitted_estimator)


@pytest.fixture
def tiny(small_avae):
    return small_avae(latent_size=4, max_epochs=3, n_restarts=4, n_refine=1)


def weights(model):
    state = model.__getstate__()
    return joblib.hash([state[name] for name in ("module_", "proposer_", "history_", "temperature_")])


@needs_callbacks
def test_fit_tells_of_each_epoch_and_of_what_is_learned_for_the_search(tiny, digits):
    recorder = Recorder()
    tiny.set_callbacks(recorder).fit(digits.X[:150])
    epoch = ["+AVAEEstimator.epoch", "-AVAEEstimator.epoch"]
    assert recorder.calls == [
        *("setup", "+AVAEEstimator.fit"),
        *epoch * 3,
        *("+AVAEEstimator.learn-search", "-AVAEEstimator.learn-search"),
        *("-AVAEEstimator.fit", "teardown"),
    ]
    tiny.transform(digits.X[:3])
    tiny.partial_fit(digits.X[:50])
    assert recorder.calls[-1] == "teardown"


@needs_callbacks
def test_callbacks_change_no_bit(tiny, digits):
    X = digits.X[:150]
    plain = clone(tiny).fit(X)
    assert weights(clone(tiny).set_callbacks(Recorder()).fit(X)) == weights(plain)
    assert weights(clone(tiny).set_callbacks(Scorer(X[:20])).fit(X)) == weights(plain)
    assert joblib.hash(tiny.set_callbacks(Recorder()).fit(X).set_callbacks()) == joblib.hash(plain)


@needs_callbacks
@pytest.mark.parametrize("settings", [{}, {"align_training": True, "family": "rigid"}, {"min_gain": "auto"}])
def test_callbacks_see_the_model_as_it_is_after_each_epoch(tiny, digits, settings):
    scorer = Scorer(digits.X_test[:30])
    model = tiny.set_params(max_epochs=4, lr=5e-3, batch_size=64, **settings).set_callbacks(scorer).fit(digits.X[:256])
    assert len(scorer.scores) == 4
    assert scorer.scores[-1] > scorer.scores[0]
    assert [seen.n_iter_ for seen in scorer.models] == [1, 2, 3, 4]
    assert scorer.models[1].history_ == model.history_[:2]
    if "align_training" in settings:  # else a few more epochs follow, on all images
        for name, tensor in model.module_.state_dict().items():
            assert_array_equal(scorer.models[-1].module_.state_dict()[name], tensor)
    else:
        before, after = (one.negative_elbo(digits.X[:256], align=False).mean() for one in (scorer.models[-1], model))
        assert after < before


@needs_callbacks
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_callback_stops_training(tiny, digits, early_stopping):
    X = digits.X[:150]
    model = tiny.set_params(max_epochs=50, early_stopping=early_stopping).set_callbacks(Recorder(stop_after=2)).fit(X)
    assert model.n_iter_ == len(model.history_) == 2
    assert model.proposer_ is not None
    assert model.transform(X[:3]).shape == (3, 785)


@needs_callbacks
def test_an_early_stop_ends_its_epoch(tiny, digits):
    recorder = Recorder()
    model = tiny.set_params(max_epochs=200, lr=0.02, early_stopping=True, learned_starts=False)
    model.set_params(expert__n_iter_no_change=1)
    model.set_callbacks(recorder).fit(digits.X[:200])
    assert recorder.count("+AVAEEstimator.epoch") == recorder.count("-AVAEEstimator.epoch") == model.n_iter_ < 200


@needs_callbacks
def test_epochs_are_told_through_search_pipeline_and_canonicalizer(tiny, digits):
    recorder = Recorder()
    pipeline = make_pipeline(AffineCanonicalizer(tiny), LogisticRegression(tol=0.1))
    grid = {"affinecanonicalizer__estimator__max_epochs": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=2).set_callbacks(recorder)
    search.fit(digits.X[:120] / 255, digits.y[:120])
    n_epochs = 2 * (1 + 2) + search.best_params_["affinecanonicalizer__estimator__max_epochs"]
    assert recorder.count("+AVAEEstimator.epoch") == recorder.count("-AVAEEstimator.epoch") == n_epochs
    assert recorder.count("setup") == recorder.count("teardown") == 1
    assert recorder.count("+AffineCanonicalizer.fit") == recorder.count("-AffineCanonicalizer.fit") == 5
    assert recorder.count("+AVAEEstimator.fit") == recorder.count("-AVAEEstimator.fit") == 5


@needs_callbacks
def test_a_classifier_tells_of_its_aligner_and_of_itself(tiny, digits):
    recorder = Recorder()
    model = CanonicalizedClassifier(LogisticRegression(tol=0.1), tiny).set_callbacks(recorder)
    model.fit(digits.X[:120] / 255, digits.y[:120])
    fits = [call for call in recorder.calls if call.endswith("fit")]
    assert fits == [
        *("+CanonicalizedClassifier.fit", "+AVAEEstimator.fit", "-AVAEEstimator.fit"),
        *("+LogisticRegression.fit", "-LogisticRegression.fit", "-CanonicalizedClassifier.fit"),
    ]
    assert recorder.count("-AVAEEstimator.epoch") == 3


@needs_callbacks
def test_a_frozen_aligner_takes_no_callbacks(fitted, digits):
    recorder, before = Recorder(), joblib.hash(fitted)
    AffineCanonicalizer(FrozenEstimator(fitted)).set_callbacks(recorder).fit(digits.X[:5])
    assert recorder.calls == [
        *("setup", "+AffineCanonicalizer.fit", "+AffineCanonicalizer.fit-estimator"),
        *("-AffineCanonicalizer.fit-estimator", "-AffineCanonicalizer.fit", "teardown"),
    ]
    assert joblib.hash(fitted) == before


@needs_callbacks
def test_a_failed_fit_tears_down_and_leaves_the_model_as_it_was(avae, digits):
    recorder, before = Recorder(), weights(avae)
    with pytest.raises(ValueError, match="Training diverged"):
        avae.set_params(lr=1e30).set_callbacks(recorder).fit(digits.X[:300])
    assert recorder.calls[0] == "setup"
    assert recorder.calls[-1] == "teardown"
    assert weights(avae) == before
    assert not [name for name in vars(avae) if "callback" in name and name != "_skl_callbacks" and name != "callbacks"]


@needs_callbacks
def test_what_callbacks_may_stop_is_not_remembered(tiny, digits, tmp_path, monkeypatch):
    calls = []
    train = training_run.train_vae
    monkeypatch.setattr(training_run, "train_vae", lambda *args, **kwargs: calls.append(1) or train(*args, **kwargs))
    tiny.set_params(memory=str(tmp_path), learned_starts=False)
    tiny.set_callbacks(Recorder(stop_after=1)).fit(digits.X[:60])
    assert tiny.set_callbacks().fit(digits.X[:60]).n_iter_ == 3
    tiny.fit(digits.X[:60])
    assert len(calls) == 2


@needs_callbacks
def test_a_progress_bar_shows_epochs_within_a_search(tiny, digits, capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    search = GridSearchCV(tiny, {"max_epochs": [2]}, cv=2, refit=False)
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(digits.X[:60])
    assert "AVAEEstimator" in capsys.readouterr().out


@needs_callbacks
def test_a_scoring_monitor_logs_every_epoch(tiny, digits):
    from sklearn.callback import ScoringMonitor

    monitor = ScoringMonitor(scoring={"elbo": elbo})
    tiny.set_callbacks(monitor).fit(digits.X[:60], digits.y[:60])
    logs = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(logs) == 3
    assert np.isfinite([row["elbo"] for row in logs]).all()


def test_a_scikit_learn_without_callbacks_will_do():
    script = """
import sys
import sklearn.linear_model, sklearn.model_selection, sklearn.pipeline
there = sys.modules.pop("sklearn.callback", None)
sys.modules["sklearn.callback"] = None  # as if there were none
import sk_avae
del sys.modules["sklearn.callback"]
if there is not None:
    sys.modules["sklearn.callback"] = there
from sk_avae.datasets import load_mnist_sample
X, y = load_mnist_sample("train")
avae = sk_avae.AVAEEstimator(2, hidden_layer_sizes=(8,), max_epochs=2, tol=1e3, learned_starts=False, critic=False)
model = sk_avae.CanonicalizedClassifier(estimator=avae)
model.fit(X[:60] / 255, y[:60])
assert model.estimator_.n_iter_ == 2
assert not hasattr(model, "set_callbacks") and not hasattr(avae, "set_callbacks")
assert sk_avae.AffineCanonicalizer(avae).fit(X[:60]).transform(X[:3]).shape == (3, 784)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
