"""launch/gke.py: the JobSet, and the thin commands around kubectl."""

import gke
import pytest
import yaml
from remote import Local, Result

NEEDED = {
    "--name": "a",
    "--image": "registry/simclr:1",
    "--accelerator": "tpu-v5-lite-podslice",
    "--topology": "4x4",
    "--chips_per_host": "4",
    "--bucket": "b",
    "--workdir": "/mnt/shared/runs/a",
    "--config": "configs/imagenet.py:50x1",
}


def arguments(changes: dict[str, str | None]) -> list[str]:
    settings = {**NEEDED, **changes}
    return [f"{name}={value}" for name, value in settings.items() if value is not None]


def manifest(capsys, *more: str, after: tuple[str, ...] = (), **changes) -> dict:
    changed = {f"--{name}": value for name, value in changes.items()}
    program = ["--", *after] if after else []
    assert gke.main(["manifest", *arguments(changed), *more, *program]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def pod_of(document: dict) -> dict:
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


def test_the_manifest_is_a_job_set(capsys):
    odd = '--config.note=it\'s: "#" ä'
    document = manifest(capsys, "--max_restarts=7", after=(odd,))
    assert document["kind"] == "JobSet"
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    spec = document["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 7
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "a"}
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 1
    assert (job["completions"], job["parallelism"]) == (4, 4)
    assert job["backoffLimit"] == 0, "one failed host fails the job, which starts anew"
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["resources"]["requests"] == {"google.com/tpu": 4}
    assert container["command"] == ["python", "-u", "-m", "simclr_jax.pretrain"]
    assert container["args"] == [
        "--config=configs/imagenet.py:50x1",
        "--workdir=/mnt/shared/runs/a",
        odd,
    ]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "shared": "/mnt/shared"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory"}
    assert volumes["shared"]["csi"]["volumeAttributes"]["bucketName"] == "b"
    annotations = job["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"}


def test_bad_input_fails_the_job_set_at_once(capsys):
    spec = manifest(capsys)["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (pods,) = job["podFailurePolicy"]["rules"]
    assert pods["action"] == "FailJob"
    assert pods["onExitCodes"]["operator"] == "In"
    assert pods["onExitCodes"]["values"] == [2]
    containers = job["template"]["spec"]["containers"]
    assert pods["onExitCodes"]["containerName"] == containers[0]["name"]


def test_spot_and_claims(capsys):
    document = manifest(
        capsys, "--spot", "--claim=disk", "--service_account=me", bucket=None
    )
    pod = pod_of(document)
    assert "metadata" not in pod
    assert pod["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    keys = [toleration["key"] for toleration in pod["spec"]["tolerations"]]
    assert "cloud.google.com/gke-spot" in keys
    shared = pod["spec"]["volumes"][1]
    assert shared["persistentVolumeClaim"] == {"claimName": "disk"}
    assert pod["spec"]["serviceAccountName"] == "me"
    plain = pod_of(manifest(capsys))["spec"]
    assert "cloud.google.com/gke-spot" not in plain["nodeSelector"]
    assert len(plain["tolerations"]) == 1


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("4x4", "4", 4), ("2x2x1", "4", 1), ("16x16", "4", 64), ("2x4", "8", 1)],
)
def test_hosts_are_counted(capsys, topology, chips, hosts):
    document = manifest(capsys, topology=topology, chips_per_host=chips)
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == hosts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--chips_per_host": "3"}, "--chips_per_host=3: must divide the 16 chips"),
        ({"--chips_per_host": "32"}, "--chips_per_host=32: must divide"),
        ({"--chips_per_host": "0"}, "--chips_per_host=0: must divide"),
        ({"--topology": "16"}, "--topology=16: must be such as"),
        ({"--topology": "4x0"}, "--topology=4x0: must be such as"),
        ({"--name": "A_b"}, "--name=A_b: must be"),
        ({"--name": "a" * 41}, "must be up to 40"),
        ({"--workdir": "/elsewhere/a"}, "--workdir=/elsewhere/a: must be gs://... or"),
        ({"--workdir": "/mnt/shared2/a"}, "or under --mount_path=/mnt/shared,"),
        ({"--workdir": "s4://b/a"}, "--workdir=s4://b/a: must be a path that all"),
        ({"--bucket": None}, "must be gs://..., or needs --bucket or --claim"),
    ],
)
def test_what_cannot_be_right_is_refused(capsys, changes, words):
    assert gke.main(["manifest", *arguments(changes)]) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""


def test_a_run_in_a_bucket_needs_no_mount(capsys):
    document = manifest(capsys, bucket=None, workdir="gs://b/runs/a")
    pod = pod_of(document)
    assert "metadata" not in pod
    (container,) = pod["spec"]["containers"]
    assert [mount["name"] for mount in container["volumeMounts"]] == ["shm"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["shm"]
    assert "--workdir=gs://b/runs/a" in container["args"]


def test_a_rehearsal_is_not_restarted(capsys):
    document = manifest(capsys, "--rehearse")
    assert document["spec"]["failurePolicy"]["maxRestarts"] == 0
    (container,) = pod_of(document)["spec"]["containers"]
    assert container["command"] == ["python", "-u", "-m", "simclr_jax.rehearse"]


@pytest.mark.parametrize("flag", ["config", "workdir"])
@pytest.mark.parametrize("after", ["--{}=/mnt/shared/b", "-{}=", "--{} b", "--{}"])
def test_config_and_workdir_are_given_once(capsys, flag, after):
    words = after.format(flag).split()
    assert gke.main(["manifest", *arguments({}), "--", "--x=1", *words]) == 1
    said = capsys.readouterr()
    assert f"--{flag}: must be given once, before `--`" in said.err
    assert said.out == ""


def test_settings_of_the_config_go_behind(capsys):
    after = ("--config.workdir=1", "--nodebug")
    (container,) = pod_of(manifest(capsys, after=after))["spec"]["containers"]
    assert tuple(container["args"][-2:]) == after


def test_the_manifest_goes_to_a_file(world, tmp_path, capsys):
    path = tmp_path / "a.json"
    asked = ["manifest", *arguments({}), f"--output={path}"]
    assert gke.main([*asked, "--dry_run"]) == 0
    assert not path.exists()
    assert "would write" in capsys.readouterr().out
    assert gke.main(asked) == 0
    assert yaml.safe_load(path.read_text())["kind"] == "JobSet"
    assert "4 hosts of 4 chips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("apply", ["--file=a.json"], ["apply", "-f", "a.json"]),
        ("status", ["--name=a"], ["get", "jobset", "a"]),
        ("logs", ["--name=a", "--lines=3"], ["--tail=3", "--prefix"]),
        ("delete", ["--name=a", "--yes"], ["delete", "jobset", "a"]),
    ],
)
def test_kubectl_is_called(world, capsys, command, options, words):
    where = ["--namespace=team", "--context=cluster"]
    assert gke.main([command, *options, *where, "--dry_run"]) == 0
    assert world.calls() == []
    assert "would run: kubectl --context cluster -n team" in capsys.readouterr().out
    assert gke.main([command, *options, *where]) == 0
    call = world.calls()[0]
    assert call[:5] == ["kubectl", "--context", "cluster", "-n", "team"]
    assert set(words) <= set(call)
    assert "kubectl's words" in capsys.readouterr().out
    world.fail("kubectl", "no such cluster")
    assert gke.main([command, *options, *where]) == 1
    assert "no such cluster" in capsys.readouterr().err


def test_deleting_may_take_longer_than_asking(world, monkeypatch):
    limits = []

    def note(self, argv, *, timeout_secs=120, **settings):
        limits.append(timeout_secs)
        return Result(0)

    monkeypatch.setattr(Local, "run", note)
    assert gke.main(["delete", "--name=a", "--yes"]) == 0
    assert gke.main(["apply", "--file=a.json"]) == 0
    deleting, applying = limits
    assert deleting >= 900, "kubectl waits for the pods"
    assert applying == 120


def test_delete_must_be_meant(world, capsys):
    assert gke.main(["delete", "--name=a"]) == 1
    assert world.calls() == []
    assert gke.main(["delete", "--name=a", "--yes"]) == 0
    assert "node pool costs until it scales" in capsys.readouterr().out
