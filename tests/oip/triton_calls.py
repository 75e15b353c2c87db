"""Calls as `tritonclient` makes them, sync and aio, with tensors as bytes, as JSON numbers and in shared memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.http
import tritonclient.http.aio
from http_bodies import to_numpy, to_torch
from server_process import ServerProcess
from torch import Tensor
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import np_to_triton_dtype, shared_memory

WAYS = ("binary", "JSON", "shared memory")
REGION_BYTES = 1 << 18
# Tensors in shared memory begin at odd places: nothing there is aligned.
GAP_BYTES = 3


class Sync:
    """The ordinary client; its methods as coroutines, so that both are called in the same way."""

    def __init__(self, server: ServerProcess) -> None:
        self.client = tritonclient.http.InferenceServerClient(server.url.removeprefix("http://"))

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """One method of the client."""
        return getattr(self.client, method)(*arguments, **options)

    def close(self) -> None:
        """End its connections."""
        self.client.close()


class Aio:
    """The client for asyncio, on a loop of its own."""

    def __init__(self, server: ServerProcess) -> None:
        self._runner = asyncio.Runner()
        self.client = self._run(self._made(server.url.removeprefix("http://")))

    async def _made(self, address: str) -> Any:
        return tritonclient.http.aio.InferenceServerClient(address)

    def _run(self, work: Any) -> Any:
        return self._runner.run(work)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """One method of the client, waited for."""
        return self._run(getattr(self.client, method)(*arguments, **options))

    def close(self) -> None:
        """End its connections and its loop."""
        self._run(self.client.close())
        self._runner.close()


CLIENTS: dict[str, type[Sync] | type[Aio]] = {"sync": Sync, "aio": Aio}


class Triton:
    """One of the clients, with two registered regions of shared memory where the server offers that."""

    def __init__(self, client: Sync | Aio, *, with_regions: bool = True) -> None:
        self.client = client
        self.calls = 0
        self._regions: dict[str, Any] = {}
        for name in ("in", "out") if with_regions else ():
            key = f"/stequant-test-{os.getpid()}-{id(self)}-{name}"
            self._regions[name] = shared_memory.create_shared_memory_region(name, key, REGION_BYTES, create_only=True)
            client.call("register_system_shared_memory", name, key, REGION_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name, region in self._regions.items():
            self.client.call("unregister_system_shared_memory", name)
            shared_memory.destroy_shared_memory_region(region)
        self.client.close()

    def infer(
        self, model: str, parameters: Mapping[str, Any], tensors: Mapping[str, Tensor], outputs: Mapping[str, Tensor], way: str
    ) -> dict[str, Tensor]:
        """The answer to a call whose tensors travel in one of `WAYS`; `outputs` are as large as what is wanted."""
        self.calls += 1
        inputs = self._inputs(tensors, way)
        wanted = self._outputs(outputs, way)
        result = self.client.call("infer", model, inputs, outputs=wanted, parameters=dict(parameters), request_id=str(self.calls))
        assert result.get_response()["id"] == str(self.calls)
        assert [one["name"] for one in result.get_response()["outputs"]] == list(outputs)
        return self._read(result, outputs, way)

    def _inputs(self, tensors: Mapping[str, Tensor], way: str) -> list[InferInput]:
        inputs = []
        at = GAP_BYTES
        for name, tensor in tensors.items():
            array = to_numpy(tensor)
            one = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            if way == "shared memory":
                shared_memory.set_shared_memory_region(self._regions["in"], [array.reshape(-1)], at)
                one.set_shared_memory("in", array.nbytes, at)
                at += array.nbytes + GAP_BYTES
            else:
                # The client refuses to send bfloat16 as JSON; answers it reads.
                one.set_data_from_numpy(array, binary_data=way == "binary" or one.datatype() == "BF16")
            inputs.append(one)
        return inputs

    def _outputs(self, outputs: Mapping[str, Tensor], way: str) -> list[InferRequestedOutput]:
        wanted = []
        for (name, like), at in zip(outputs.items(), self._places(outputs), strict=True):
            one = InferRequestedOutput(name, binary_data=way == "binary")
            if way == "shared memory":
                one.set_shared_memory("out", like.nbytes, at)
            wanted.append(one)
        return wanted

    def _places(self, outputs: Mapping[str, Tensor]) -> list[int]:
        ends = np.cumsum([GAP_BYTES, *(like.nbytes + GAP_BYTES for like in outputs.values())])
        return [int(end) for end in ends[:-1]]

    def _read(self, result: InferResult, outputs: Mapping[str, Tensor], way: str) -> dict[str, Tensor]:
        answer = {}
        for name, at in zip(outputs, self._places(outputs), strict=True):
            if way == "shared memory":
                described = result.get_output(name)
                dtype = tritonclient.utils.triton_to_np_dtype(described["datatype"])
                assert described.keys() == {"name", "datatype", "shape"}
                view = shared_memory.get_contents_as_numpy(self._regions["out"], dtype, described["shape"], at)
                answer[name] = to_torch(view)
                del view
            else:
                answer[name] = to_torch(result.as_numpy(name))
        return answer
