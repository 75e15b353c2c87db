"""Media types, codings and wishes that the server does not serve."""

from __future__ import annotations

import gzip
import zlib

from abuse_case import SMALL, Case
from server_process import get, post

UNREAD, UNWANTED = "415 unsupported_media_type", "406 not_acceptable"


def typed(claim: str, media_type: str | None, answers: str = UNREAD, content: bytes = SMALL) -> Case:
    return Case(claim, post(content, media_type=media_type), answers)


def accepted(claim: str, accept: str, answers: str = UNWANTED, query: str = "op=round") -> Case:
    return Case(claim, post(SMALL, query, f"Accept: {accept}"), answers)


def coded(claim: str, coding: str, content: bytes, answers: str = UNREAD) -> Case:
    return Case(claim, post(content, "op=round", f"Content-Encoding: {coding}"), answers)


TYPES = [
    typed("no media type is refused", None),
    typed("an empty media type is refused", ""),
    typed("text is refused", "text/plain"),
    typed("a pickle is refused", "application/x-pickle"),
    typed("bytes of any kind are refused", "application/octet-stream"),
    typed("a form is refused", "application/x-www-form-urlencoded", content=b"op=round"),
    typed("a form of files is refused", "multipart/form-data; boundary=a", content=b"--a--"),
    typed("an npz file is refused", "application/zip"),
    typed("XML is refused", "application/xml", content=b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>"),
    typed("YAML is refused", "application/yaml", content=b"!!python/object:os.system"),
    typed("JSON of another kind is refused", "application/problem+json", content=b"{}"),
    typed("a range is no media type", "*/*"),
    typed("a type without its second half is refused", "application"),
    typed("a list of types is refused", "application/x-npy, application/json"),
    typed("a type of 10 KiB is refused in short", "a/" + "b" * 10_240),
    typed("a type in large letters is read", "APPLICATION/X-NPY", "200"),
    typed("a parameter of a type is ignored", "application/x-npy; charset=utf-8", "200"),
    Case("two media types are refused", post(SMALL, "op=round", "Content-Type: application/json"), "400 bad_framing"),
    typed("npy that calls itself JSON is no JSON", "application/json", "400 malformed_body"),
    typed("npy that calls itself msgpack is no msgpack", "application/msgpack", "400 malformed_body"),
    coded("gzip is not undone", "gzip", gzip.compress(SMALL)),
    coded("a bomb of gzip is not undone", "gzip", gzip.compress(bytes(10 * 2**20))),
    coded("deflate is not undone", "deflate", zlib.compress(SMALL)),
    coded("Brotli is not undone", "br", SMALL),
    coded("three codings are not undone", "gzip, gzip, gzip", SMALL),
    coded("an unknown coding is not undone", "rot13", SMALL),
    coded("no coding is none", "identity", SMALL, "200"),
    Case("two codings in two lines are refused", post(SMALL, "op=round", *["Content-Encoding: identity"] * 2), "400 bad_framing"),
]

WISHES = [
    accepted("a picture cannot be had", "image/png"),
    accepted("text cannot be had", "text/*"),
    accepted("a pickle cannot be had", "application/x-pickle"),
    accepted("nothing cannot be had", "*/*;q=0"),
    accepted("everything but what there is cannot be had", "application/*;q=0, text/html"),
    accepted("a wish that is no media type cannot be had", "npy"),
    accepted("a wish of 5 000 commas is no wish that can be had", "," * 5000),
    accepted("5 000 wishes are read in time", "a/b;q=0.5, " * 1300 + "application/x-npy", "200"),
    accepted("5 000 parameters are read in time", "application/x-npy" + ";a=b" * 3000, "200"),
    accepted("a quality that is no number counts as one", "application/x-npy;q=much", "200"),
    accepted("a quality of nan counts as one", "application/x-npy;q=nan", "200"),
    accepted("a quality of a thousand digits is read", "application/x-npy;q=0." + "3" * 1000, "200"),
    accepted("a quality above one is one", "application/x-npy;q=9e999", "200"),
    accepted("a media type of bytes beyond ASCII cannot be had", "\xff\xfe/\xfd"),
    accepted("an empty wish is any", "", "200"),
    Case("100 wishes in 90 lines are one list", post(SMALL, "op=round", *["Accept: image/png"] * 90), UNWANTED),
    Case("the answer for people is only for people", get("/docs", "Accept: image/png"), "200"),
    Case("an answer in chunks is not offered", post(SMALL, "op=round", "TE: trailers, chunked"), "200"),
    Case("a key that nobody asked for is ignored", post(SMALL, "op=round", "Authorization: Bearer " + "a" * 8000), "200"),
    Case("two keys are refused", post(SMALL, "op=round", "Authorization: a", "Authorization: b"), "400 bad_framing"),
]

CASES = [*TYPES, *WISHES]
