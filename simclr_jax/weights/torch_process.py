"""The program in which PyTorch opens an export; run by `torch_peers`.

A separate process, since PyTorch and TensorFlow in one process can crash it. It imports
nothing else of this package.

Reads one JSON object from stdin: `library`, `folder` and `weights` (a path). To compute
features also `inputs`, `h` and, with a classifier, `logits` (.npy files), `bottleneck`,
`depths`, `num_classes` and `small_stem`; to write a pickle also `pickled` (a path).
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


def _torchvision(request: dict[str, Any]) -> torch.nn.Module:
    from torchvision.models import resnet

    block = resnet.Bottleneck if request["bottleneck"] else resnet.BasicBlock
    classes = request["num_classes"]
    model = resnet.ResNet(block, request["depths"], num_classes=classes or 1)
    if classes is None:
        model.fc = torch.nn.Identity()
    if request["small_stem"]:
        model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = torch.nn.Identity()
    model.load_state_dict(load_file(request["weights"]), strict=True)
    return model


def _timm(request: dict[str, Any]) -> torch.nn.Module:
    import timm

    return timm.create_model(f"local-dir:{request['folder']}", pretrained=True)


def _transformers(request: dict[str, Any]) -> torch.nn.Module:
    import transformers

    kind = transformers.AutoModel
    if request["num_classes"] is not None:
        kind = transformers.AutoModelForImageClassification
    return kind.from_pretrained(request["folder"])


_OPEN = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}


def _write_features(request: dict[str, Any]) -> None:
    model = _OPEN[request["library"]](request).eval()
    inputs = np.load(request["inputs"]).transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(inputs))
    is_transformers = request["library"] == "transformers"
    if request["num_classes"] is None:
        with torch.inference_mode():
            h = model(images)
        h = h.pooler_output if is_transformers else h
    else:
        # The last linear layer is the classifier, and its input is h.
        *_, classifier = (m for m in model.modules() if isinstance(m, torch.nn.Linear))
        seen = []
        classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.inference_mode():
            logits = model(images)
        (h,) = seen
        logits = logits.logits if is_transformers else logits
        np.save(request["logits"], logits.numpy())
    np.save(request["h"], h.numpy().reshape(len(inputs), -1))


def main() -> None:
    """Answers the request on stdin."""
    request = json.load(sys.stdin)
    if "pickled" in request:
        torch.save(load_file(request["weights"]), pathlib.Path(request["pickled"]))
    else:
        _write_features(request)


if __name__ == "__main__":
    main()
