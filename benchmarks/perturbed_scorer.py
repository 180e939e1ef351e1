"""Which number of restarts a grid search takes: by upright folds, and by folds in other poses.

A pipeline of canonicalizer and logistic regression is searched over `n_restarts` on upright digits, by plain accuracy
and by `perturbed("accuracy")`; every candidate is then scored on rotated test digits. Search models are left out, so
that restarts matter. The bundled sample of MNIST, three seeds.

    python benchmarks/perturbed_scorer.py
"""

import numpy as np
from shared.command import parser
from shared.tables import environment, save_table
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from sk_avae import AffineCanonicalizer, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed
from sk_avae.scoring import perturbed

SEEDS = 3
N_TRAIN = 600
N_RESTARTS = (1, 2, 4, 16)


def accuracies(seed):
    """Return, per number of restarts, the accuracy of upright folds, of perturbed ones, and of rotated test digits."""
    X, y = load_mnist_sample("train")
    order = np.random.default_rng(seed).permutation(len(X))[:N_TRAIN]
    X, y = X[order] / np.float32(255), y[order]
    X_test, y_test = load_mnist_sample("test")
    X_test, _ = make_perturbed(X_test / np.float32(255), random_state=seed + 100)
    avae = AVAEEstimator(max_epochs=30, learned_starts=False, critic=False, random_state=seed)
    pipeline = Pipeline([("canon", AffineCanonicalizer(avae)), ("clf", LogisticRegression(C=0.05, max_iter=500))])
    grid = {"canon__estimator__n_restarts": list(N_RESTARTS)}
    scoring = {"upright": "accuracy", "perturbed": perturbed("accuracy", random_state=seed)}
    search = GridSearchCV(pipeline, grid, scoring=scoring, cv=3, refit=False).fit(X, y)
    test = [pipeline.set_params(canon__estimator__n_restarts=n).fit(X, y).score(X_test, y_test) for n in N_RESTARTS]
    found = search.cv_results_
    return found["mean_test_upright"], found["mean_test_perturbed"], np.array(test)


def main():
    options = parser(__doc__).parse_args()
    rows = []
    for seed in range(SEEDS):
        names = ("upright folds", "perturbed folds", "rotated test digits")
        for name, scores in zip(names, accuracies(seed), strict=True):
            rows.append((seed, name, *(f"{score:.3f}" for score in scores), N_RESTARTS[int(scores.argmax())]))
            print(*rows[-1], flush=True)
    header = ["seed", "accuracy of", *(f"{n} restarts" for n in N_RESTARTS), "best"]
    notes = [f"{N_TRAIN} upright training digits, three folds; 1,000 rotated test digits.", environment(seeds=SEEDS)]
    save_table(options.output / "perturbed_scorer", "Restarts that a grid search takes", header, rows, notes)


if __name__ == "__main__":
    main()
