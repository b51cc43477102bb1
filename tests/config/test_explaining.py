"""Errors in config files and in `--config` flags name file, line and key."""

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from simclr_jax import cli

# Of ml_collections.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")
BASE = (
    "from simclr_jax.configs import base\ndef get_config():\n  c = base.get_config()\n"
)
# Content of a config file -> the line to name, what to say.
FILES = {
    "x = 1\n": (None, "has no function get_config"),
    "import nosuchmodule\n": (1, "No module named 'nosuchmodule'"),
    "\ndef get_config(:\n": (2, "invalid syntax"),
    f"{BASE}  c.batch.batch_sizes = 3\n": (4, 'Did you mean "batch_size"'),
    f"{BASE}  c.batch.batch_size = 'x'\n": (4, "'batch_size'"),
    "def get_config():\n  return 1\n": (None, "must return a ConfigDict, not int"),
    "def get_config():\n  raise RuntimeError('a\\nb')\n": (2, "RuntimeError: a b"),
    "get_config = 1\n": (None, "'int' object is not callable"),
    "raise SystemExit(0)\n": (1, "SystemExit: 0"),
    "x = '\0'\n": (None, "null bytes"),
}
# A flag and the message.
FLAGS = {
    "--config=smoke:foo": "smoke.py: get_config() takes no such argument ('foo')",
    "--config=imagenet:50xx": "imagenet.py:50xx: must be DEPTH",
    "--config=finetune:none,1": "finetune.py:none,1: must be NAME,SHARE",
    "--config=distill:../x": "distill.py:../x: must be the name of a file",
    "--config=configs": "--config=configs: must be a file FILE.py or one of",
    "--config=": "--config=: must be a file FILE.py or one of",
    "--config=\x1b[2J": "--config=\\x1b[2J: must be a file",
    "--config.batch.batch_size=x": "--config.batch.batch_size=x: invalid literal",
    "--config.batch.batch_sizes=3": "batch_sizes=3: there is no such key; did you mean",
    "--config.x.y=3": "--config.x.y=3: there is no such key",
    "--config.seed.y=3": "--config.seed.y=3: there is no such key",
    "--config.augment.device=host": "is now called config.augment.placement",
    "--nosuch=3": "Unknown command line flag 'nosuch'",
}


def message(arguments, monkeypatch, capsys):
    """What a command with these arguments says, in one line, before it ends with 2."""
    # ml_collections loads a file into what is left of the one before.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli._parse(sys.argv)
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("content", FILES)
def test_errors_of_a_file_name_it(content, tmp_path, monkeypatch, capsys):
    line, reason = FILES[content]
    path = tmp_path / "mine.py"
    path.write_text(content)
    text = message([f"--config={path}"], monkeypatch, capsys)
    place = f"{path}, line {line}: " if line else f"{path}: "
    assert text.startswith(f"error: --config={place}")
    assert reason in text


@pytest.mark.parametrize("flag", FLAGS)
def test_errors_of_a_flag_name_it(flag, monkeypatch, capsys):
    arguments = [flag] if flag.startswith("--config=") else ["--config=smoke", flag]
    assert FLAGS[flag] in message(arguments, monkeypatch, capsys)
