"""
How many restarts? Ask GridSearchCV
===================================

More restarts find better poses and take longer. The score of an estimator is the mean ELBO at the poses that it found.
So a grid search can choose restarts as well as the network. With ``memory`` it trains each network once.
"""

# %%
# Held-out digits have to be rotated: upright ones need no search. `perturbed` makes such a scorer of any other; None is
# the estimator's own, the mean ELBO. In a pipeline the parameter is called ``canon__estimator__n_restarts``.

import tempfile

import matplotlib.pyplot as plt
from sklearn.model_selection import GridSearchCV

from sk_avae import AVAEEstimator
from sk_avae.datasets import load_mnist_sample
from sk_avae.scoring import perturbed

X = load_mnist_sample("train")[0][:800]

# %%
# Proposer and critic are left out here, to see what restarts do by themselves: with them most images need few.
# ``n_restarts`` belongs to the search, not to the network. With `memory` each fold trains once, not once per line of
# the grid.

with tempfile.TemporaryDirectory() as folder:
    avae = AVAEEstimator(
        learned_starts=False, critic=False, max_epochs=25, batch_size=64, memory=folder, random_state=0
    )
    grid = {"n_restarts": [1, 2, 4, 8, 16, 32]}
    search = GridSearchCV(avae, grid, scoring=perturbed(None, random_state=0), cv=2, refit=False).fit(X)

loss, seconds = -search.cv_results_["mean_test_score"], search.cv_results_["mean_score_time"]
print("restarts   loss, nats")
for n_restarts, nats in zip(grid["n_restarts"], loss, strict=True):
    print(f"{n_restarts:8}{nats:13.1f}")

# %%
# What to see: from 16 restarts on the loss hardly falls, and the time goes on growing.

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.plot(grid["n_restarts"], loss, "o-", color="#0072B2")
axis.set(xscale="log", xlabel="n_restarts", ylabel="loss of rotated digits (nats)")
axis.set_xticks(grid["n_restarts"], grid["n_restarts"])
axis.minorticks_off()
time_axis = axis.twinx()
time_axis.plot(grid["n_restarts"], 1000 * seconds / (len(X) / 2), "s--", color="#D55E00")
time_axis.set(ylim=(0, None))
time_axis.set_ylabel("ms per image", color="#D55E00")
plt.show()
