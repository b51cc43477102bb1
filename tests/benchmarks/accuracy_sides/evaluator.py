"""One evaluator for the features of both sides."""

import warnings

import numpy as np

KNN_K, KNN_TEMPERATURE = 200, 0.1
LOGISTIC_C, LOGISTIC_STEPS = 1.0, 2000


def knn_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = KNN_K,
    temperature: float = KNN_TEMPERATURE,
) -> float:
    """Weighted kNN of cosine similarities (Wu et al., 2018).

    Args:
      train: float32 [M, D].
      train_labels: integers [M].
      test: float32 [N, D].
      test_labels: integers [N].
      k: neighbours that vote, all where there are fewer.
      temperature: a neighbour's weight is exp(similarity / temperature).

    Returns:
      The share of test images that are classified correctly.
    """
    bank, queries = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (train, test)
    )
    k = min(k, len(bank))
    one_hot = np.eye(train_labels.max() + 1)[train_labels]
    correct = 0
    for start in range(0, len(queries), 1000):
        similar = queries[start : start + 1000] @ bank.T
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similar, nearest, 1) / temperature)
        votes = np.einsum("nk,nkc->nc", weights, one_hot[nearest])
        correct += int((votes.argmax(1) == test_labels[start : start + 1000]).sum())
    return correct / len(queries)


def linear_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """scikit-learn's logistic regression on standardised features.

    Arguments and result as in `knn_accuracy`; L2 penalty 1 / (2 C M) |w|^2 on the mean
    loss, L-BFGS until it converges.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=LOGISTIC_C, max_iter=LOGISTIC_STEPS)
    with warnings.catch_warnings():
        # Not converged: no figure.
        warnings.simplefilter("error")
        model.fit(scaler.transform(train), train_labels)
    return float(model.score(scaler.transform(test), test_labels))
