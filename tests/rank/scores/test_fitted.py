"""SFDA, PED and NLEEP, which fit something: against dense matrices, loops, and scikit-learn's mixture."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from regraft.errors import TaskError
from regraft.rank.scores import nleep, ped, sfda
from regraft.rank.scores.nleep import GAIN, ROUNDS, k_means, leading, posterior
from regraft.rank.scores.prepared import prepare
from regraft.rank.scores.transrate import transrate


def discriminant(features: np.ndarray, labels: np.ndarray, strength: float | None) -> tuple[np.ndarray, float]:
    """p(c | x) by the inverse of the dense regularised scatter, class by class."""
    count, columns = features.shape
    classes = sorted(set(labels.tolist()))
    scatter = np.zeros((columns, columns))
    for label in classes:
        group = features[labels == label]
        for row in group:
            scatter += np.outer(row - group.mean(axis=0), row - group.mean(axis=0)) / count
    if strength is None:
        strength = max(np.exp(-5 * np.linalg.eigvalsh(scatter)[-1]), 1e-10)
    inverse = np.linalg.inv((1 - strength) * scatter + strength * np.trace(scatter) / columns * np.eye(columns))
    logits = np.empty((count, len(classes)))
    for place, label in enumerate(classes):
        mean = features[labels == label].mean(axis=0)
        prior = np.log((labels == label).mean())
        logits[:, place] = features @ inverse @ mean - mean @ inverse @ mean / 2 + prior
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True), strength


def naive_sfda(features: np.ndarray, labels: np.ndarray) -> float:
    features = features - features.mean(axis=0)
    first, strength = discriminant(features, labels, None)
    mixed = np.empty_like(features)
    for i, label in enumerate(labels):
        soft = np.exp(first[i]) / np.exp(first[i]).sum()
        others = [features[labels == c].mean(axis=0) for c in sorted(set(labels.tolist())) if c != label]
        mixed[i] = soft[label] * features[i] + (1 - soft[label]) * np.mean(others, axis=0)
    second, _ = discriminant(mixed, labels, strength)
    return float(np.mean([second[i, label] for i, label in enumerate(labels)]))


def shrunk_enough(features: np.ndarray) -> np.ndarray:
    """Features in a unit in which the regularisation is not lost in rounding."""
    return features / np.sqrt(10 * (features - features.mean(axis=0)).var(axis=0).sum())


def test_sfda_is_its_definition(case) -> None:  # type: ignore[no-untyped-def]
    features, labels = case
    wanted = naive_sfda(shrunk_enough(features), labels)
    assert sfda(shrunk_enough(features), labels) == pytest.approx(wanted, rel=1e-7)


def test_sfda_of_features_in_their_own_unit_is_its_definition(case) -> None:  # type: ignore[no-untyped-def]
    features, labels = case
    constant = bool((features.std(axis=0) == 0).any())
    if constant or len(features) < 2 * features.shape[1]:
        pytest.skip("the dense scatter is singular up to the weakest regularisation")
    assert sfda(features, labels) == pytest.approx(naive_sfda(features, labels), rel=1e-7)


def test_sfda_leaves_what_it_is_given_alone() -> None:
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(30, 4)), np.arange(30) % 3
    kept = features.copy()
    assert sfda(features, labels) == sfda(features, labels)
    assert np.array_equal(features, kept)


@pytest.mark.parametrize("score", [sfda, ped])
def test_classes_without_spread_are_certain_and_equal_features_are_not(score) -> None:  # type: ignore[no-untyped-def]
    labels = np.arange(12) % 3
    assert score(np.eye(3)[labels], labels) == pytest.approx(1.0)
    assert score(np.ones((12, 2)), labels) == pytest.approx(1 / 3)


def naive_ped(features: np.ndarray, labels: np.ndarray, reference: np.ndarray, radius: float, step: float) -> float:
    middle, spread = reference.mean(axis=0), np.maximum(reference.std(axis=0), 1e-3)
    now = (features - middle) / spread
    classes = sorted(set(labels.tolist()))
    first = None
    for _ in range(6):
        push = {}
        for one in classes:
            push[one] = np.zeros(features.shape[1])
            for other in classes:
                if one == other:
                    continue
                mine, theirs = now[labels == one], now[labels == other]
                apart = mine.mean(axis=0) - theirs.mean(axis=0)
                distance = np.linalg.norm(apart)
                reach = radius * (np.sqrt(mine.var(axis=0).sum()) + np.sqrt(theirs.var(axis=0).sum()))
                overlap = max(reach - distance, 0.0)
                push[one] = push[one] + apart / distance * min(0.5 * step**2 * overlap, overlap)
        length = sum(np.abs(vector).sum() for vector in push.values())
        first = length if first is None else first
        if length <= 0.5 * first:
            break
        now = np.stack([row + push[label] for row, label in zip(now, labels.tolist(), strict=True)])
    return naive_sfda(now * spread + middle, labels)


@pytest.mark.parametrize(("radius", "step"), [(2.0, 0.1), (0.6, 0.1), (2.0, 0.7)])
def test_ped_is_its_definition(case, radius: float, step: float) -> None:  # type: ignore[no-untyped-def]
    features, labels = shrunk_enough(case[0]), case[1]
    wanted = naive_ped(features, labels, features, radius, step)
    assert ped(features, labels, radius=radius, time_step=step) == pytest.approx(wanted, rel=1e-6)


def test_ped_standardises_by_the_reference_that_it_is_given(case) -> None:  # type: ignore[no-untyped-def]
    features, labels = shrunk_enough(case[0]), case[1]
    reference = np.random.default_rng(9).normal(size=(50, features.shape[1])) * 0.2
    wanted = naive_ped(features, labels, reference, 2.0, 0.7)
    assert ped(features, labels, reference=reference, time_step=0.7) == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(TaskError, match="Reference features of shape"):
        ped(features, labels, reference=reference[:, 1:])


def test_ped_moves_overlapping_classes_apart_and_leaves_distant_ones() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(40) % 2
    noise = 0.3 * draw.normal(size=(40, 3))
    close, distant = noise + 0.1 * labels[:, None], noise + 50.0 * labels[:, None]
    assert ped(close, labels, time_step=1.0) > sfda(close, labels) + 0.05
    assert ped(distant, labels, radius=0.1) == pytest.approx(sfda(distant, labels), abs=1e-12)


def test_nleep_is_leep_of_scikit_learns_mixture(case) -> None:  # type: ignore[no-untyped-def]
    """The same start given to scikit-learn, then LEEP in loops."""
    features, labels = case
    points = leading(prepare(features, labels), 0.8)
    reduced = PCA(n_components=0.8, svd_solver="full").fit_transform(features)
    assert points.shape == reduced.shape
    assert np.allclose(np.abs(points), np.abs(reduced) / np.sqrt((reduced**2).mean()), atol=1e-7)
    count = min(5 * (int(labels.max()) + 1), len(labels))
    means, assigned = k_means(points, count, seed=3)
    mixture = GaussianMixture(len(means), covariance_type="diag", reg_covar=1e-6, tol=GAIN, max_iter=ROUNDS)
    shares = np.eye(len(means))[assigned]
    sums = shares.sum(axis=0)
    mixture.weights_init = sums / len(points)
    mixture.means_init = shares.T @ points / sums[:, None]
    squares = [((points - mean) ** 2 * part[:, None]).sum(axis=0)
               for mean, part in zip(mixture.means_init, shares.T, strict=True)]  # fmt: skip
    mixture.precisions_init = 1 / (np.stack(squares) / sums[:, None] + 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it has not converged, where it has not
        mixture.fit(points)
    ours = posterior(points, assigned, len(means))
    assert np.allclose(ours, mixture.predict_proba(points), atol=1e-7)
    joint = np.stack([ours[labels == label].sum(axis=0) for label in sorted(set(labels.tolist()))])
    total = 0.0
    for i, label in enumerate(labels):
        total += np.log(
            sum(joint[label, z] / joint[:, z].sum() * ours[i, z] for z in range(len(means)) if joint[:, z].sum() > 0)
        )
    assert nleep(features, labels, seed=3) == pytest.approx(total / len(labels), abs=1e-9)


def test_nleep_is_the_same_for_a_seed_and_another_for_others() -> None:
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(80, 6)), np.arange(80) % 3
    found = [nleep(features, labels, seed=seed) for seed in (0, 0, 1, 2)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_k_means_of_few_different_points_has_fewer_centres() -> None:
    points = np.repeat(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), 5, axis=0)
    means, assigned = k_means(points, 10, seed=0)
    assert len(means) == 3
    assert [len(set(assigned[start : start + 5].tolist())) for start in (0, 5, 10)] == [1, 1, 1]


def test_nleep_of_features_without_spread_is_the_entropy_of_the_labels() -> None:
    labels = [0, 0, 0, 1]
    assert nleep(np.ones((4, 2)), labels) == pytest.approx(0.75 * np.log(0.75) + 0.25 * np.log(0.25))


@pytest.mark.parametrize("score", [nleep, sfda, ped, transrate])
def test_a_prepared_input_gives_the_same_number(score) -> None:  # type: ignore[no-untyped-def]
    draw = np.random.default_rng(0)
    features, labels = draw.normal(size=(30, 5)), np.arange(30) % 3
    assert score(prepare(features, labels)) == score(features, labels)
