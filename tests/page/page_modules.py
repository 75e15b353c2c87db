"""The modules of the page, run by Node; values go in and come out as JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "service" / "page"
DEADLINE_S = 30


class Modules:
    """Copies of the modules in a folder that Node takes for one of ES modules."""

    def __init__(self, node: Path, folder: Path) -> None:
        self._node = node
        self._folder = folder
        for module in PAGE.glob("*.js"):
            shutil.copy(module, folder)
        (folder / "package.json").write_text('{"type": "module"}')

    def run(self, module: str, body: str, given: object = None) -> Any:
        """What `body`, the body of a function of `given`, returns, with the exports of `module` at hand as `m`.

        Not-a-number and infinities come out as strings.
        """
        script = f"""
import {{ readFileSync }} from "node:fs";
import * as m from "./{module}";
const given = JSON.parse(readFileSync(0, "utf8"));
const bytes = (text) => {{
  const made = Buffer.from(text, "base64");
  return made.buffer.slice(made.byteOffset, made.byteOffset + made.length);
}};
const result = await (async () => {{ {body} }})();
const number = (value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value);
const plain = (_, value) => (ArrayBuffer.isView(value) ? [...value] : number(value));
process.stdout.write(JSON.stringify(result ?? null, plain));
"""
        done = subprocess.run(
            [self._node, "--input-type=module", "-e", script],
            cwd=self._folder,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
