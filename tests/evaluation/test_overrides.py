"""What --set can change, and to what."""

import pytest

from simclr_jax.config import rules
from simclr_jax.configs import base
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation.overrides import with_overrides

CONFIG = {
    "evaluation": {"knn_k": [200, 20], "l2_penalties": [0.1], "sgd_epochs": 90.0},
    "loss": {"temperature": 1.0},
    "data": {"data_dir": None},
}


def test_overrides_take_keys_of_the_config():
    result = with_overrides(
        CONFIG,
        [
            "evaluation.sgd_epochs=3",
            "data.data_dir=/data",
            "data.data_dir=a=b",
            "evaluation.l2_penalties=[1, 0.5]",
        ],
    )
    assert result.evaluation.sgd_epochs == 3.0
    assert result.data.data_dir == "a=b"
    assert list(result.evaluation.l2_penalties) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("said", "expected"), [("20", (20,)), ("[20]", (20,)), ("[5, 20]", (5, 20))]
)
def test_one_number_of_neighbours_stands_for_a_list_of_it(said, expected):
    result = with_overrides(CONFIG, [f"evaluation.knn_k={said}"])
    assert tuple(result.evaluation.knn_k) == expected


@pytest.mark.parametrize("overrides", [[], ["evaluation.knn_k=[200]"]])
def test_runs_of_before_have_one_number_of_neighbours(overrides):
    config = {**CONFIG, "evaluation": {"knn_k": 200}}
    assert with_overrides(config, overrides).evaluation.knn_k == (200,)


@pytest.mark.parametrize(
    "bad",
    [
        "evaluation.k=20",
        "evaluation.knn_k",
        "evaluation.knn_k=2.5",
        "evaluation.knn_k=[20, 2.5]",
        "evaluation.knn_k=true",
        "evaluation.knn_k=null",
        "evaluation.sgd_epochs=long",
        "loss.temperature=1",
    ],
)
def test_other_keys_and_values_are_refused(bad):
    with pytest.raises(ConfigError, match=r"--set=") as error:
        with_overrides(CONFIG, [bad])
    assert bad in str(error.value)


@pytest.mark.parametrize("ks", [(), (20, 0), (2.5,), 0, -3])
def test_numbers_of_neighbours_are_checked(ks):
    config = base.get_config()
    with config.ignore_type():
        config.evaluation.knn_k = ks
    with pytest.raises(ConfigError, match=r"config\.evaluation\.knn_k=.* at least 1"):
        rules.validate(config)


def test_one_number_of_neighbours_is_valid():
    config = base.get_config()
    with config.ignore_type():
        config.evaluation.knn_k = 20
    rules.validate(config)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "-" * 10])
def test_values_without_an_end_are_refused(text):
    with pytest.raises(
        ConfigError, match=r"^--set=seed=.*must be of type int"
    ) as error:
        with_overrides(base.get_config().to_dict(), [f"seed={text}"])
    assert len(str(error.value)) < 300
