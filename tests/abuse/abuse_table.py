"""All cases of the suite; a new format or a new way in brings a module and a line here."""

from __future__ import annotations

import abuse_compact
import abuse_framing
import abuse_inference
import abuse_json
import abuse_media
import abuse_msgpack
import abuse_npy
import abuse_query
import abuse_safetensors
from abuse_case import Case

GROUPS: dict[str, list[Case]] = {
    "framing": abuse_framing.CASES,
    "npy": abuse_npy.CASES,
    "msgpack": abuse_msgpack.CASES,
    "json": abuse_json.CASES,
    "query": abuse_query.CASES,
    "media types": abuse_media.CASES,
    "safetensors": abuse_safetensors.CASES,
    "compact answers": abuse_compact.CASES,
    "inference protocol, page": abuse_inference.CASES,
}

CASES = [case for cases in GROUPS.values() for case in cases]
