"""TF-IDF of words and word pairs with logistic regression: the dull baseline that takes seconds.

Fixed settings, the ones of the usual tutorial with the regularisation chosen once on banking77's training rows (C=10).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from peers.peer import Job, main


def learn(job: Job) -> tuple[Sequence[str], dict[str, Any]]:
    """Fit on all training rows; the budget is never the limit here."""
    settings = {"ngrams": [1, 2], "sublinear_tf": True, "C": 10.0}
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000, random_state=job.seed),
    )
    model.fit(job.train.texts, job.train.labels)
    return list(model.predict(job.test.texts)), settings


if __name__ == "__main__":
    main(learn)
