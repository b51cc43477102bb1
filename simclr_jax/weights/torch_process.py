"""The program in which PyTorch opens an export; run by `torch_peers`.

A separate process, since PyTorch and TensorFlow in one process can crash it. It imports
nothing else of this package.

Reads one JSON object from stdin: `library`, `folder` and `weights` (a path). To compute
features also `inputs` and `outputs` (.npy files), `bottleneck`, `depths` and
`small_stem`; to write a pickle also `pickled` (a path).
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
    model = resnet.ResNet(block, request["depths"])
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

    return transformers.AutoModel.from_pretrained(request["folder"])


_OPEN = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}


def _write_features(request: dict[str, Any]) -> None:
    model = _OPEN[request["library"]](request).eval()
    inputs = np.load(request["inputs"]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        h = model(torch.from_numpy(np.ascontiguousarray(inputs)))
    h = h.pooler_output if request["library"] == "transformers" else h
    np.save(request["outputs"], h.numpy().reshape(len(inputs), -1))


def main() -> None:
    """Answers the request on stdin."""
    request = json.load(sys.stdin)
    if "pickled" in request:
        torch.save(load_file(request["weights"]), pathlib.Path(request["pickled"]))
    else:
        _write_features(request)


if __name__ == "__main__":
    main()
