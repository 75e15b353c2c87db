"""Triton: the server inside the package nvidia-pytriton, with the model of its Python backend that lies beside this file.

What was chosen, and why:

* The bare `tritonserver`, for pytriton's own API passes every tensor through one more process.
* Binary tensors over HTTP in both directions; one instance of the model, no batching (`models/k_bit_quantize`).
* Shared memory as the backend takes it, growing with the tensors: 256 MiB from the start gained nothing in any cell.
* No gRPC, no metrics: they would open ports that nobody asks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

MODELS = Path(__file__).with_name("models")
SHARED_MEMORY_BYTES = 268435456


def package() -> Path:
    """The folder of pytriton, found without its import."""
    found = find_spec("pytriton")
    if found is None or found.origin is None:
        raise SystemExit("nvidia-pytriton is not installed")
    return Path(found.origin).parent


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port

    root = package()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "tritonserver" / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        raise SystemExit(f"nvidia-pytriton has no Python backend for Python {python}")
    # The backend looks for its program beside itself; pytriton, too, copies the one for this Python there.
    if not (beside := root / "tritonserver" / "backends" / "python" / stub.name).exists():
        shutil.copy(stub, beside)

    libraries = [str(root.parent / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # where the backend finds this environment
        "LD_LIBRARY_PATH": ":".join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH")])),
    }
    binary = str(root / "tritonserver" / "bin" / "tritonserver")
    arguments = [
        f"--model-repository={MODELS}",
        f"--backend-directory={root / 'tritonserver' / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name=stequant-{os.getpid()}-",
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--log-info=false",
        "--exit-timeout-secs=5",
    ]
    os.execve(binary, [binary, *arguments], environment)


if __name__ == "__main__":
    main()
