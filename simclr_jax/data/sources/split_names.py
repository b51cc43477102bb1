"""Names of splits, as people give them to folders."""

import collections
import re
from collections.abc import Iterable, Mapping

from simclr_jax.errors import DataError

TRAIN, VAL, TEST = "train", "val", "test"
UNLABELED, EXTRA = "unlabeled", "extra"
_ORDER = (TRAIN, VAL, TEST, UNLABELED, EXTRA)
_WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating"), VAL),
    **dict.fromkeys(("dev", "eval", "evaluation", "holdout"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsupervised", "unsup"), UNLABELED),
    EXTRA: EXTRA,
}
# Words beside one of a split, which say nothing.
_FILLERS = {
    *("set", "sets", "split", "data", "dataset", "file", "files", "folder", "folders"),
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"),
    *("pics", "jpg", "jpeg", "jpegs", "png", "pngs"),
}
_YEAR = re.compile(r"(19|20)\d\d")
# Of 'TrainImages', 'train2017' and 'seg_train'.
_TOKENS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_a-zA-Z]+")
# The names that prepared datasets give to splits; others become the meaning.
_KEPT = ("valid", "validation")


def meaning(name: str) -> str | None:
    """What split a name stands for, one of the constants above; None for no split.

    Letter case, words such as 'set' or 'images' and a year say nothing: 'Training_Set',
    'trainset', 'TRAIN-images' and 'train2017' are all 'train'.
    """
    found = _parse(name)
    return found[0] if found and not found[1] else None


def says_nothing(name: str) -> bool:
    """Whether a name has but words such as 'images', 'unknown' and those of splits."""
    words = {token.lower() for token in _TOKENS.findall(name)}
    return words <= {*_FILLERS, *_WORDS, "all", "unknown"}


def _parse(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(meaning, other words that are no fillers) of a name with one word of a split."""
    meanings, others = [], []
    for token in _TOKENS.findall(name):
        word = token.lower()
        for filler in _FILLERS:  # as in 'trainset'
            if word not in _WORDS and word.removesuffix(filler) in _WORDS:
                word = word.removesuffix(filler)
        if word in _WORDS:
            meanings.append(_WORDS[word])
        elif word not in _FILLERS and not _YEAR.fullmatch(word):
            others.append(word)
    return (meanings[0], tuple(others)) if len(meanings) == 1 else None


def meanings(names: Iterable[str]) -> dict[str, str]:
    """Those of some names that stand for splits, with their meanings.

    In the order train, val, test, others. Names with another word, such as 'seg_train',
    count where the same word stands beside another split's: 'seg_test'.
    """
    groups: dict[tuple[str, ...], dict[str, str]] = collections.defaultdict(dict)
    for name in names:
        if found := _parse(name):
            groups[found[1]][name] = found[0]
    result: dict[str, str] = {}
    for others, group in groups.items():
        if not others or len(set(group.values())) > 1:
            result |= group
    return dict(sorted(result.items(), key=lambda item: (_ORDER.index(item[1]), item)))


def plain(name: str, means: str) -> str:
    """The name of a split in a prepared dataset: mostly its meaning."""
    return name.lower() if name.lower() in _KEPT else means


def find(wanted: str, splits: Mapping[str, str | None], *, what: str) -> str | None:
    """The split that a name of the config stands for; None if there is none.

    That of exactly this name, else the only one with the same meaning. Where a
    validation split is asked for and there is none, the test split takes its place.

    Args:
      wanted: such as 'val'.
      splits: the names that there are, with their meanings.
      what: the dataset, for messages.

    Raises:
      DataError: several have the meaning.
    """
    if wanted in splits:
        return wanted
    means = meaning(wanted)
    same = [name for name, other in splits.items() if other == means] if means else []
    if means == VAL and not same:
        same = [name for name, other in splits.items() if other == TEST]
    if len(same) > 1:
        raise DataError(
            f"dataset {what}: split {wanted!r} may be {' or '.join(same)}; give the "
            "exact name"
        )
    return same[0] if same else None


def to_train(splits: Mapping[str, str | None], *, what: str) -> list[str]:
    """The splits that split 'all' trains on: nothing that is held out.

    Args:
      splits: the names that there are, with their meanings.
      what: the dataset, for messages.

    Raises:
      DataError: there is none, or two have the same meaning.
    """
    chosen = [name for name, means in splits.items() if means not in (VAL, TEST)]
    if not chosen:
        raise DataError(
            f"dataset {what}: holds only the held-out splits {', '.join(splits)}, "
            "which split 'all' does not train on; choose one with config.data.split"
        )
    for means in (TRAIN, UNLABELED, EXTRA):
        same = [name for name in chosen if splits[name] == means]
        if len(same) > 1:
            raise DataError(
                f"dataset {what}: {' and '.join(same)} both mean the split {means!r}; "
                "choose one with config.data.split"
            )
    return chosen
