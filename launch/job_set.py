"""The manifest of a pretraining job on GKE: one JobSet on one TPU slice."""

import argparse
import math
import re

from check import is_store
from job import value_of
from remote import LaunchError
from supervise import BAD_INPUT

_CONTAINER = "simclr-jax"
# JobSet appends the job's name and indices, and 63 characters are the limit.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


def num_hosts(topology: str, chips_per_host: int) -> int:
    """How many hosts a slice has.

    Args:
      topology: such as `4x4` or `2x2x4`.
      chips_per_host: such as 4.

    Raises:
      LaunchError: not a topology, or not a whole number of hosts.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology, re.ASCII):
        raise LaunchError(f"--topology={topology}: must be such as 4x4 or 2x2x4")
    chips = math.prod(map(int, topology.split("x")))
    if chips_per_host < 1 or chips % chips_per_host:
        raise LaunchError(
            f"--chips_per_host={chips_per_host}: must divide the {chips} chips of "
            f"--topology={topology}"
        )
    return chips // chips_per_host


def manifest(args: argparse.Namespace, passed: list[str]) -> dict:
    """The manifest that `gke.py manifest` writes, from its arguments."""
    if not _NAME.fullmatch(args.name):
        raise LaunchError(
            f"--name={args.name}: must be up to 40 of a-z, 0-9 and -, beginning with "
            "a letter and not ending with -"
        )
    for flag in ("config", "workdir"):
        if value_of(flag, passed) is not None:
            raise LaunchError(f"--{flag}: must be given once, before `--`")
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": args.name,
            "namespace": args.namespace,
            "annotations": {
                # All pods on one slice.
                "alpha.jobset.sigs.k8s.io/exclusive-topology": (
                    "cloud.google.com/gke-nodepool"
                )
            },
        },
        "spec": {
            "failurePolicy": {
                # A rehearsal that failed would only fail again.
                "maxRestarts": 0 if args.rehearse else args.max_restarts,
                # The program's word for bad input, which no restart helps.
                "rules": [
                    {
                        "name": "badInput",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            # The headless service by whose names the hosts find each other.
            "network": {"enableDNSHostnames": True, "subdomain": args.name},
            "replicatedJobs": [
                {
                    "name": "workers",
                    "replicas": 1,
                    "template": {"spec": _job(args, passed)},
                }
            ],
        },
    }


def _job(args: argparse.Namespace, passed: list[str]) -> dict:
    """One pod per host; the first that fails ends all of them."""
    hosts = num_hosts(args.topology, args.chips_per_host)
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": [BAD_INPUT],
                    },
                }
            ]
        },
        "template": _pod(args, passed),
    }


def _pod(args: argparse.Namespace, passed: list[str]) -> dict:
    mount = args.mount_path.rstrip("/")
    mounted = bool(args.bucket or args.claim)
    if not is_store(args.workdir):
        if not mounted:
            raise LaunchError(
                f"--workdir={args.workdir}: must be gs://..., or needs --bucket or "
                "--claim, which are mounted on all hosts"
            )
        if not args.workdir.startswith(f"{mount}/"):
            raise LaunchError(
                f"--workdir={args.workdir}: must be gs://... or under --mount_path="
                f"{mount}, which all hosts share"
            )
    selector = {
        "cloud.google.com/gke-tpu-accelerator": args.accelerator,
        "cloud.google.com/gke-tpu-topology": args.topology,
    }
    tolerations = [
        {"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        )
    chips = {"google.com/tpu": args.chips_per_host}
    module = "simclr_jax.rehearse" if args.rehearse else "simclr_jax.pretrain"
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[dict] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if mounted:
        mounts.append({"name": "shared", "mountPath": mount})
        volumes.append(_volume(args))
    container = {
        "name": _CONTAINER,
        "image": args.image,
        "command": ["python", "-u", "-m", module],
        "args": [f"--config={args.config}", f"--workdir={args.workdir}", *passed],
        "resources": {"requests": chips, "limits": chips},
        "volumeMounts": mounts,
    }
    spec: dict = {
        "restartPolicy": "Never",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": volumes,
    }
    if args.service_account:
        spec["serviceAccountName"] = args.service_account
    pod: dict = {"spec": spec}
    if args.bucket:
        pod = {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, **pod}
    return pod


def _volume(args: argparse.Namespace) -> dict:
    if args.claim:
        source: dict = {"persistentVolumeClaim": {"claimName": args.claim}}
    else:
        attributes = {"bucketName": args.bucket, "mountOptions": "implicit-dirs"}
        source = {
            "csi": {
                "driver": "gcsfuse.csi.storage.gke.io",
                "volumeAttributes": attributes,
            }
        }
    return {"name": "shared", **source}
