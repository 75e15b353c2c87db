"""Triton's Python backend: tensors come and go through shared memory.

`as_numpy` is a view of the memory that the input lies in; the copy into the output tensor is the backend's own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton_python_backend_utils as triton

from benchmarks.peers.arithmetic import quantize


class TritonPythonModel:
    """The model, as the backend looks it up by this name."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        responses = []
        for request in requests:
            x = torch.from_numpy(triton.get_input_tensor_by_name(request, "x").as_numpy())
            responses.append(triton.InferenceResponse([triton.Tensor("y", quantize(x).numpy())]))
        return responses
