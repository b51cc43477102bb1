"""launch/slurm.py: the batch script, run with stand-ins for srun and scontrol."""

import os
import shutil
import subprocess

import pytest
import slurm

NEEDED = {"--nodes": "2", "--gpus_per_node": "8", "--time": "24:00:00"}


def arguments(world, **changes) -> list[str]:
    changed = {f"--{name}": value for name, value in changes.items()}
    settings = {
        **NEEDED,
        "--workdir": f"{world.root}/shared/it's",
        "--checkout": str(world.root / "code"),
        **changed,
    }
    return [f"{name}={value}" for name, value in settings.items()]


def script(world, capsys, *behind: str, **changes) -> str:
    program = ["--", *behind] if behind else []
    assert slurm.main(["script", *arguments(world, **changes), *program]) == 0
    return capsys.readouterr().out


def directives(text: str) -> set[str]:
    lines = text.splitlines()
    return {line.removeprefix("#SBATCH ") for line in lines if "#SBATCH" in line}


def test_one_process_per_gpu_by_default(world, capsys):
    text = script(world, capsys, partition="gpu", cpus_per_task="12", account="me")
    assert directives(text) >= {
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=12",
        "--time=24:00:00",
        "--partition=gpu",
        "--account=me",
        "--requeue",
        "--open-mode=append",
        "--signal=TERM@120",
    }
    assert "JAX_LOCAL_DEVICE_IDS" not in text
    assert "coordinator" not in text


def test_one_process_per_node_takes_all_its_gpus(world, capsys):
    text = script(world, capsys, tasks_per_node="1")
    assert "--ntasks-per-node=1" in directives(text)
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n" in text


def test_without_gpus_one_process_per_node(world, capsys):
    text = script(world, capsys, gpus_per_node="0")
    assert "--ntasks-per-node=1" in directives(text)
    assert "gpus-per-node" not in text
    assert "JAX_LOCAL_DEVICE_IDS" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks_per_node": "4"}, "--tasks_per_node=4: must be 1, or"),
        ({"workdir": "runs/a"}, "--workdir=runs/a: must be an absolute"),
        ({"workdir": "hdfs://a"}, "--workdir=hdfs://a: must be a path that all"),
        ({"nodes": "0"}, "--nodes, --gpus_per_node: must be"),
        ({"partition": "a b"}, "'a b' in #SBATCH --partition"),
    ],
)
def test_what_cannot_be_right_is_refused(world, capsys, changes, words):
    assert slurm.main(["script", *arguments(world, **changes)]) == 1
    assert words in capsys.readouterr().err


def test_the_workdir_is_given_once(world, capsys):
    for behind in (["--workdir=/b"], ["--workdir", "/b"], ["--workdir="]):
        assert slurm.main(["script", *arguments(world), "--", *behind]) == 1
        assert "--workdir: must be given once" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
@pytest.mark.parametrize("tasks", ["1", "8"])
def test_shellcheck_has_nothing_to_say(world, capsys, tmp_path, tasks):
    path = tmp_path / "job.bash"
    path.write_text(script(world, capsys, "--config=a b", tasks_per_node=tasks))
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def execute(world, capsys, program: str, restarts: int = 0) -> tuple[int, list[str]]:
    """Runs the script with a program for .venv/bin/python; exit code and requeues."""
    python = world.root / "code/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/usr/bin/env bash\n{program}\n")
    python.chmod(0o755)
    text = script(world, capsys, '--config=a "b" $c', max_restarts="3")
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    if restarts:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(["bash", "-c", text], env=environment, timeout=30)
    assert not (world.root / "shared/it's/.bad_input_7").exists()
    return done.returncode, [" ".join(call) for call in world.calls()]


def test_tasks_get_the_arguments_as_they_are(world, capsys):
    out = world.root / "arguments"
    code, requeued = execute(world, capsys, f"printf '%s\\n' \"$@\" >> '{out}'")
    assert code == 0
    assert requeued == []
    one = [
        "-u",
        "-m",
        "simclr_jax.pretrain",
        f"--workdir={world.root}/shared/it's",
        '--config=a "b" $c',
    ]
    assert out.read_text().splitlines() == [*one, *one]


@pytest.mark.parametrize("code", [1, 134, 137, 143])
def test_what_was_cut_off_is_queued_again(world, capsys, code):
    assert execute(world, capsys, f"exit {code}") == (code, ["scontrol requeue 7"])


def test_bad_input_is_not_queued_again(world, capsys):
    # The other task is killed then, and its exit code is the higher one.
    program = "((SLURM_PROCID == 1)) && exit 2; exit 137"
    assert execute(world, capsys, program) == (2, [])


def test_a_run_in_a_bucket_has_its_marks_beside_the_log(world, capsys):
    text = script(world, capsys, workdir="gs://bucket/a", log_dir="/logs")
    assert "--workdir=gs://bucket/a" in text
    assert "\nmarks=/logs\n" in text
    assert "\nmarks=" + str(world.root / "code") in script(
        world, capsys, workdir="gs://bucket/a"
    )


def test_a_rehearsal_is_not_queued_again(world, capsys):
    rehearsal = slurm.main(["script", *arguments(world), "--rehearse"])
    text = capsys.readouterr().out
    assert rehearsal == 0
    assert "simclr_jax.rehearse" in text
    assert "simclr_jax.pretrain" not in text
    assert "\nmax_restarts=0\n" in text


def test_restarts_come_to_an_end(world, capsys):
    assert execute(world, capsys, "exit 137", restarts=3) == (137, [])


def test_the_program_may_take_its_time_to_end(world, capsys):
    # SIGTERM reaches all processes of a task; bash has to wait for the program's code.
    program = "trap 'sleep 0.2; exit 7' TERM; kill -TERM $PPID $$; sleep 5 & wait $!"
    assert execute(world, capsys, program) == (7, ["scontrol requeue 7"])


def test_submit_hands_the_script_to_sbatch(world, capsys):
    text = script(world, capsys, "--config=x")
    asked = ["submit", *arguments(world)]
    assert slurm.main([*asked, "--dry_run", "--", "--config=x"]) == 0
    assert world.calls() == []
    said = capsys.readouterr().out
    assert text in said
    assert "would run: sbatch" in said
    assert slurm.main([*asked, "--", "--config=x"]) == 0
    assert (world.root / "submitted").read_text() == text
    assert "Submitted batch job 7" in capsys.readouterr().out
    world.fail("sbatch", "invalid partition")
    assert slurm.main([*asked, "--", "--config=x"]) == 1
    assert "invalid partition" in capsys.readouterr().err


def test_the_script_goes_to_a_file(world, capsys, tmp_path):
    path = tmp_path / "job"
    asked = ["script", *arguments(world), f"--output={path}"]
    assert slurm.main([*asked, "--dry_run"]) == 0
    assert not path.exists()
    assert slurm.main(asked) == 0
    assert path.read_text().startswith("#!/usr/bin/env bash\n#SBATCH")
