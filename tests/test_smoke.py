"""The smoke run as the README shows it: learning is visible in its table."""

import json

import commands
import pytest


@pytest.mark.slow
def test_the_smoke_run_learns(tmp_path):
    run = tmp_path / "run"
    code, _, err = commands.run(
        "pretrain",
        "--config=configs/smoke.py",
        f"--workdir={run}",
        optimized=True,
    )
    assert code == 0, err
    assert "Health: healthy" in err
    code, out, err = commands.run(
        "evaluate",
        f"--workdir={run}",
        "--protocol=knn,linear",
        "--baselines",
        optimized=True,
    )
    assert code == 0, err
    print(out)
    for protocol, margin in (("knn", 0.15), ("linear", 0.07)):
        receipt = json.loads((run / "eval" / f"{protocol}.json").read_text())
        best = max(receipt["baselines"].values())
        assert receipt["value"] > best + margin, protocol
