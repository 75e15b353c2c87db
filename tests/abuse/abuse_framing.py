"""Requests that are no HTTP/1.1, or hardly: lines, headers, lengths, chunks and other protocols."""

from __future__ import annotations

from abuse_case import SMALL, Case
from server_process import get, post

MIB = 2**20
HOST, TYPE, LENGTH = "Host: a", "Content-Type: application/x-npy", f"Content-Length: {len(SMALL)}"
HEALTH = get("/healthz")
BAD = "400 bad_framing"


def line(start: str | bytes) -> bytes:
    """A request with this first line and a `Host`."""
    return (start.encode("latin-1") if isinstance(start, str) else start) + b"\r\nHost: a\r\n\r\n"


def header(*lines: str | bytes, start: str = "GET /healthz HTTP/1.1") -> bytes:
    """A request with a `Host` and these lines, as they are."""
    encoded = [one.encode("latin-1") if isinstance(one, str) else one for one in (start, HOST, *lines)]
    return b"\r\n".join([*encoded, b"", b""])


def upload(*lines: str, body: bytes = SMALL, version: str = "1.1") -> bytes:
    """A call with these lines, which say how long its body is."""
    return header(TYPE, *lines, start=f"POST /quantize?op=round HTTP/{version}") + body


def chunked(body: bytes, *lines: str) -> bytes:
    """A call whose chunks are written out."""
    return upload("Transfer-Encoding: chunked", *lines, body=body)


WHOLE_CHUNK = b"%x\r\n%b\r\n" % (len(SMALL), SMALL)

REQUEST_LINES = [
    Case("HTTP/0.9, which has no version, is refused", b"GET /healthz\r\n\r\n", BAD),
    Case("HTTP/0.9 with headers is refused", line("GET /healthz"), BAD),
    Case("HTTP/0.9 by number is refused", line("GET /healthz HTTP/0.9"), BAD),
    Case("HTTP/0.9 on a hot path is refused", b"POST /quantize?op=round\r\n\r\n", BAD),
    Case("HTTP/1.2, which does not exist, is refused", line("GET /healthz HTTP/1.2"), BAD),
    Case("HTTP/2.0 in the letters of HTTP/1 is refused", line("GET /healthz HTTP/2.0"), BAD),
    Case("HTTP/2.0 on a hot path is refused", upload(LENGTH, version="2.0"), BAD),
    Case("HTTP/3 is refused", line("GET /healthz HTTP/3"), BAD),
    Case("a version of two digits is refused", line("GET /healthz HTTP/1.10"), BAD),
    Case("a version without a point is refused", line("GET /healthz HTTP/11"), BAD),
    Case("a version with a comma is refused", line("GET /healthz HTTP/1,1"), BAD),
    Case("a negative version is refused", line("GET /healthz HTTP/-1.1"), BAD),
    Case("a protocol in small letters is refused", line("GET /healthz http/1.1"), BAD),
    Case("a protocol that is no HTTP is refused", line("GET /healthz HTTPS/1.1"), BAD),
    Case("half a protocol is refused", line("GET /healthz HTT"), BAD),
    Case("a word behind the version is refused", line("GET /healthz HTTP/1.1 now"), BAD),
    Case("a method in small letters is refused", line("get /healthz HTTP/1.1"), BAD),
    Case("a method that nobody knows is refused", line("BREW /healthz HTTP/1.1"), BAD),
    Case("a method of 64 KiB is refused", line(b"A" * 65536 + b" / HTTP/1.1"), BAD),
    Case("a method with a NUL is refused", line(b"GE\0T /healthz HTTP/1.1"), BAD),
    Case("no method at all is refused", line(" /healthz HTTP/1.1"), BAD),
    Case("no target is refused", line("GET HTTP/1.1"), BAD),
    Case("an empty target is refused", line("GET  HTTP/1.1"), BAD),
    Case("a tab in place of a blank is refused", line("GET\t/healthz\tHTTP/1.1"), BAD),
    Case("a path without its slash is refused", line("GET healthz HTTP/1.1"), BAD),
    Case("a blank in the target is refused", line("GET /heal thz HTTP/1.1"), BAD),
    Case("a NUL in the target is refused", line(b"GET /heal\0thz HTTP/1.1"), BAD),
    Case("a DEL in the target is refused", line(b"GET /heal\x7fthz HTTP/1.1"), BAD),
    Case("a bare line feed in the target is refused", line(b"GET /heal\nthz HTTP/1.1"), BAD),
    Case("a bare carriage return in the target is refused", line(b"GET /heal\rthz HTTP/1.1"), BAD),
    Case("letters beyond ASCII in the target are refused", line("GET /h\xe9althz HTTP/1.1"), BAD),
    Case("the authority form is only for CONNECT", line("GET a:80 HTTP/1.1"), BAD),
    Case("CONNECT is no way through this server", line("CONNECT a:80 HTTP/1.1"), BAD),
    Case("TRACE tells nothing back", line("TRACE /healthz HTTP/1.1"), "405 method_not_allowed"),
    Case("TRACE of a hot path tells nothing back", line("TRACE /quantize HTTP/1.1"), "405 method_not_allowed"),
    Case("PUT stores nothing", line("PUT /quantize HTTP/1.1"), "405 method_not_allowed"),
    Case("PATCH changes nothing", line("PATCH /operators HTTP/1.1"), "405 method_not_allowed"),
    Case("DELETE deletes nothing", line("DELETE /healthz HTTP/1.1"), "405 method_not_allowed"),
    Case("PROPFIND finds nothing", line("PROPFIND /healthz HTTP/1.1"), "405 method_not_allowed"),
    Case("the asterisk is only for OPTIONS", line("GET * HTTP/1.1"), "404 not_found"),
    Case("the asterisk with OPTIONS is no path of ours", line("OPTIONS * HTTP/1.1"), "404 not_found"),
    Case("the absolute form is the path in it", line("GET http://elsewhere.example/healthz HTTP/1.1"), "200"),
    Case("the absolute form of another scheme does no harm", line("GET ftp://a/quantize HTTP/1.1"), "405 method_not_allowed"),
    Case("two slashes are not one", line("GET //healthz HTTP/1.1"), "404 not_found"),
    Case("dots are not resolved", line("GET /docs/../healthz HTTP/1.1"), "404 not_found"),
    Case("no file is served from above the assets", line("GET /docs/assets/../../../../etc/passwd HTTP/1.1"), "404 not_found"),
    Case("nor by encoded dots", line("GET /docs/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), "404 not_found"),
    Case("nor by encoded slashes", line("GET /docs/assets/..%2f..%2f..%2fetc%2fpasswd HTTP/1.1"), "404 not_found"),
    Case("nor by backslashes", line("GET /docs/assets/..%5c..%5cetc%5cpasswd HTTP/1.1"), "404 not_found"),
    Case("nor by a NUL in a file's name", line("GET /docs/assets/favicon.png%00.txt HTTP/1.1"), "404 not_found"),
    Case("nor by a name of 4 KiB", line(f"GET /docs/assets/{'a' * 4096} HTTP/1.1"), "404 not_found"),
    Case("an encoded NUL is no path", line("GET /%00 HTTP/1.1"), "404 not_found"),
    Case("half an escape in the path is no path", line("GET /%zz%2 HTTP/1.1"), "404 not_found"),
    Case("bytes that are no UTF-8 are no path", line("GET /%ff%fe HTTP/1.1"), "404 not_found"),
    Case("a fragment is no part of a target", line("GET /healthz#top HTTP/1.1"), "200"),
    Case("one byte too many in the target is too long", line("GET /" + "a" * 8192 + " HTTP/1.1"), "414 uri_too_long"),
    Case("a target of a mebibyte is too long", line("GET /" + "a" * MIB + " HTTP/1.1"), "414 uri_too_long"),
    Case("a target without end is too long", b"POST /quantize?" + b"&" * 60_000, "414 uri_too_long"),
    Case("a query of a mebibyte is too long", line("POST /quantize?op=" + "a" * MIB + " HTTP/1.1"), "414 uri_too_long"),
    Case("one empty line before a request is let pass", b"\r\n" + HEALTH, "200"),
    Case("many empty lines before a request are let pass", b"\r\n" * 50 + HEALTH, "200"),
    Case("nothing but empty lines is no request", b"\r\n" * 50, "", ends=True),
    Case("nothing at all is no request", b"", "", ends=True),
    Case("a request cut within its first line gets nothing", b"GET /hea", "", ends=True),
]

HEADERS = [
    Case("HTTP/1.1 without a Host is refused", b"GET /healthz HTTP/1.1\r\n\r\n", BAD),
    Case("a call without a Host is refused", upload(LENGTH).replace(b"Host: a\r\n", b""), BAD),
    Case("HTTP/1.0 needs no Host", b"GET /healthz HTTP/1.0\r\n\r\n", "200"),
    Case("two Hosts are refused", header("Host: b"), BAD),
    Case("two equal Hosts are refused", header(HOST), BAD),
    Case("two Hosts are refused in HTTP/1.0 too", header("host: b", start="GET /healthz HTTP/1.0"), BAD),
    Case("a Host with a blank in it is refused", b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n", BAD),
    Case("a Host with a path in it is refused", b"GET /healthz HTTP/1.1\r\nHost: a/b\r\n\r\n", BAD),
    Case("a Host with a user in it is refused", b"GET /healthz HTTP/1.1\r\nHost: me@a\r\n\r\n", BAD),
    Case("a list of Hosts is refused", b"GET /healthz HTTP/1.1\r\nHost: a, b:1\r\n\r\n", BAD),
    Case("a Host with half a bracket is refused", b"GET /healthz HTTP/1.1\r\nHost: [::1\r\n\r\n", BAD),
    Case("a Host whose port is none is refused", b"GET /healthz HTTP/1.1\r\nHost: a:b\r\n\r\n", BAD),
    Case("a Host beyond ASCII is refused on a hot path", upload(LENGTH).replace(b"Host: a", b"Host: \xff"), BAD),
    Case("an IPv6 address with its port is a Host", b"GET /healthz HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", "200"),
    Case("an empty Host is allowed", b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", "200"),
    Case("a blank before the colon is refused", header("X : 1"), BAD),
    Case("a blank before the colon of a length is refused", upload(f"Content-Length : {len(SMALL)}"), BAD),
    Case("a tab before the colon is refused", header("X\t: 1"), BAD),
    Case("a line without a colon is refused", header("X 1"), BAD),
    Case("a header without a name is refused", header(": 1"), BAD),
    Case("a name with a NUL is refused", header(b"X\0Y: 1"), BAD),
    Case("a name with brackets is refused", header("X(Y): 1"), BAD),
    Case("a name beyond ASCII is refused", header(b"X\xe9: 1"), BAD),
    Case("a value with a NUL is refused", header(b"X: a\0b"), BAD),
    Case("a value with a bare carriage return is refused", header(b"X: a\rY: b"), BAD),
    Case("a value with a bell is refused", header(b"X: a\x07b"), BAD),
    Case("a value with bytes beyond ASCII is let pass", header(b"X: \xe9\xff"), "200"),
    Case("a value with a tab is let pass", header(b"X: a\tb"), "200"),
    Case("an empty value is let pass", header("X:"), "200"),
    Case("a folded line is refused", header("X: 1", " 2"), BAD),
    Case("a folded length is refused", upload("Content-Length:", f" {len(SMALL)}"), BAD),
    Case("a first header that is folded is refused", b"GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n", BAD),
    Case("lines that end with a bare line feed are refused", b"GET /healthz HTTP/1.1\nHost: a\n\n", BAD),
    Case("one line that ends with a bare line feed is refused", b"GET /healthz HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", BAD),
    Case("lines that end with a bare carriage return are refused", b"GET /healthz HTTP/1.1\rHost: a\r\r", BAD),
    Case("100 headers are read", header(*(f"X-{i}: 1" for i in range(99))), "200"),
    Case("101 headers are too many", header(*(f"X-{i}: 1" for i in range(100))), "431 headers_too_large"),
    Case("101 headers of a call are too many", upload(LENGTH, *(f"X-{i}: 1" for i in range(98))), "431 headers_too_large"),
    Case("100 000 headers are too many", header(*["X: 1"] * 100_000), "431 headers_too_large"),
    Case("a header of 17 KiB is too large", header("X: " + "a" * 17 * 1024), "431 headers_too_large"),
    Case("a header name of 17 KiB is too large", header("X" * 17 * 1024 + ": 1"), "431 headers_too_large"),
    Case(
        "many headers of 17 KiB together are too large",
        header(*(f"X-{i}: {'a' * 340}" for i in range(50))),
        "431 headers_too_large",
    ),
    Case("a header of a mebibyte is too large", header("X: " + "a" * MIB), "431 headers_too_large"),
    Case("a cookie of 15 KiB is nobody's business", header("Cookie: " + "a" * 15 * 1024), "200"),
    Case("a request name that is too long is not given back", header("X-Request-Id: " + "a" * 4096), "200"),
    Case("a deadline that is no number is refused", upload(LENGTH, "X-Request-Timeout: 1e9"), "400 bad_request"),
    Case("a negative deadline is refused", upload(LENGTH, "X-Request-Timeout: -1"), "400 bad_request"),
    Case("a deadline of a million digits is refused", upload(LENGTH, "X-Request-Timeout: " + "9" * 10_000), "400 bad_request"),
    Case("two deadlines are refused", upload(LENGTH, "X-Request-Timeout: 1", "X-Request-Timeout: 2"), BAD),
    Case("a broken traceparent is nobody's business", upload(LENGTH, "traceparent: 00-zz-zz-zz"), "200"),
    Case("a Range is not served in parts", upload(LENGTH, "Range: bytes=0-0,1-1,2-2"), "200"),
    Case("a Connection header of nonsense is let pass", header("Connection: \xe9, ,,keep-alive"), "200"),
    Case("a request cut within its headers gets nothing", header("X: 1")[:-4], "", ends=True),
]

LENGTHS = [
    Case("a call without a length is told so", upload(body=b""), "411 length_required"),
    Case("a negative length is refused", upload("Content-Length: -1"), BAD),
    Case("a length with a plus is refused", upload(f"Content-Length: +{len(SMALL)}"), BAD),
    Case("a length in hexadecimal is refused", upload(f"Content-Length: 0x{len(SMALL):x}"), BAD),
    Case("a length with an exponent is refused", upload("Content-Length: 1e2"), BAD),
    Case("a length with a point is refused", upload(f"Content-Length: {len(SMALL)}.0"), BAD),
    Case("a length with a blank inside is refused", upload("Content-Length: 1 36"), BAD),
    Case("a length with an underscore is refused", upload("Content-Length: 1_36"), BAD),
    Case("a length in superscripts is refused", upload("Content-Length: \xb9\xb3\xb6"), BAD),
    Case("an empty length is refused", upload("Content-Length:"), BAD),
    Case("a word for a length is refused", upload("Content-Length: all"), BAD),
    Case("a list of equal lengths is refused", upload(f"Content-Length: {len(SMALL)}, {len(SMALL)}"), BAD),
    Case("two equal lengths are refused", upload(LENGTH, LENGTH), BAD),
    Case("two lengths are refused, the smaller one first", upload("Content-Length: 0", LENGTH), BAD),
    Case("two lengths are refused, the smaller one last", upload(LENGTH, "Content-Length: 0"), BAD),
    Case("two lengths are refused on other paths", header("Content-Length: 0", "Content-Length: 5") + b"hello", BAD),
    Case("a length and chunks are refused", upload(LENGTH, "Transfer-Encoding: chunked"), BAD),
    Case("chunks and a length are refused", upload("Transfer-Encoding: chunked", LENGTH, body=WHOLE_CHUNK + b"0\r\n\r\n"), BAD),
    Case(
        "chunks and a length are refused on other paths",
        header("Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        BAD,
    ),
    Case("a length of 2**64 is refused", upload(f"Content-Length: {2**64}"), BAD),
    Case("a length of 2**64 and the right one is refused", upload(f"Content-Length: {2**64 + len(SMALL)}"), BAD),
    Case("a length of 2**63 is too large", upload(f"Content-Length: {2**63}", body=b""), BAD),
    Case("a length of a thousand digits is refused", upload("Content-Length: " + "1" * 1000), BAD),
    Case("a length of 100 GiB is too large", upload(f"Content-Length: {100 * 2**30}", body=b""), "413 body_too_large"),
    Case("a length one above the limit is too large", upload(f"Content-Length: {256 * MIB + 1}", body=b""), "413 body_too_large"),
    Case("leading zeros are digits", upload(f"Content-Length: 000{len(SMALL)}"), "200"),
    Case("a length that is too small leaves garbage behind", upload("Content-Length: 100"), "400 malformed_body; 400 bad_framing"),
    Case("a length that is too large is never filled", upload("Content-Length: 1000"), "", ends=True),
    Case("a length of zero is an empty body", upload("Content-Length: 0", body=b""), "400 malformed_body"),
    Case("a length on a probe is skipped", header("Content-Length: 5") + b"hello", "200"),
    Case("a second request behind a good one is its own", upload(LENGTH) + HEALTH, "200; 200"),
    Case("garbage behind a good request is refused", upload(LENGTH) + b"\0\1\2\3garbage\r\n\r\n", "200; 400 bad_framing"),
    Case("a body that looks like a request is a body", upload(f"Content-Length: {len(HEALTH)}", body=HEALTH), "400 malformed_body"),
]

CHUNKS = [
    Case("chunks are read", chunked(WHOLE_CHUNK + b"0\r\n\r\n"), "200"),
    Case("the word chunked in other letters is read", upload("Transfer-Encoding: CHUNKED", body=WHOLE_CHUNK + b"0\r\n\r\n"), "200"),
    Case("chunks of one byte are read", chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in SMALL) + b"0\r\n\r\n"), "200"),
    Case("leading zeros of a size are read", chunked(b"000%b0000\r\n\r\n" % WHOLE_CHUNK), "200"),
    Case("no chunk but the last is an empty body", chunked(b"0\r\n\r\n"), "400 malformed_body"),
    Case("a negative size is refused", chunked(b"-1\r\n"), BAD),
    Case("a size with a plus is refused", chunked(b"+88\r\n" + SMALL), BAD),
    Case("a size with 0x is refused", chunked(b"0x88\r\n" + SMALL), BAD),
    Case("a size that is none is refused", chunked(b"zz\r\n"), BAD),
    Case("an empty size is refused", chunked(b"\r\n"), BAD),
    Case("a blank before a size is refused", chunked(b" 88\r\n" + SMALL), BAD),
    Case("a size of 17 digits is refused", chunked(b"f" * 17 + b"\r\n"), BAD),
    Case("a size beyond 2**64 is refused", chunked(b"1" + b"0" * 16 + b"\r\n"), BAD),
    Case("a size line with a bare line feed is refused", chunked(WHOLE_CHUNK.replace(b"\r\n", b"\n", 1) + b"0\r\n\r\n"), BAD),
    Case("a chunk longer than its size is refused", chunked(b"1\r\nxyz\r\n0\r\n\r\n"), BAD),
    Case("a chunk shorter than its size is never complete", chunked(b"ff\r\n" + SMALL), "", ends=True),
    Case("chunks without the last one are never complete", chunked(WHOLE_CHUNK), "", ends=True),
    Case("a chunk without its end is refused", chunked(b"%x\r\n%bxx0\r\n\r\n" % (len(SMALL), SMALL)), BAD),
    Case("an extension is skipped", chunked(WHOLE_CHUNK.replace(b"\r\n", b";name=value\r\n", 1) + b"0\r\n\r\n"), "200"),
    Case("an extension with a NUL is refused", chunked(b"1;a\0b\r\nx\r\n0\r\n\r\n"), BAD),
    Case("an extension with a bare line feed is refused", chunked(b"1;a\nb\r\nx\r\n0\r\n\r\n"), BAD),
    Case("trailers are skipped", chunked(WHOLE_CHUNK + b"0\r\nX: 1\r\n\r\n"), "200"),
    Case("a length in the trailers is refused", chunked(WHOLE_CHUNK + b"0\r\nContent-Length: 5\r\n\r\n"), BAD),
    Case("another coding in the trailers is refused", chunked(WHOLE_CHUNK + b"0\r\nTransfer-Encoding: gzip\r\n\r\n"), BAD),
    Case("a trailer with a NUL is refused", chunked(WHOLE_CHUNK + b"0\r\nX: \0\r\n\r\n"), BAD),
    Case(
        "a trailer of 64 KiB is too large", chunked(WHOLE_CHUNK + b"0\r\nX: " + b"a" * 65536 + b"\r\n\r\n"), "431 headers_too_large"
    ),
    Case("101 trailers are too many", chunked(WHOLE_CHUNK + b"0\r\n" + b"X: 1\r\n" * 101 + b"\r\n"), "431 headers_too_large"),
    Case(
        "chunked twice in one line is refused", upload("Transfer-Encoding: chunked, chunked", body=WHOLE_CHUNK + b"0\r\n\r\n"), BAD
    ),
    Case("chunked twice in two lines is refused", chunked(WHOLE_CHUNK + b"0\r\n\r\n", "Transfer-Encoding: chunked"), BAD),
    Case("gzip as a transfer coding is refused", upload("Transfer-Encoding: gzip"), BAD),
    Case("gzip and chunked is refused", upload("Transfer-Encoding: gzip, chunked", body=WHOLE_CHUNK + b"0\r\n\r\n"), BAD),
    Case("chunked and gzip is refused", upload("Transfer-Encoding: chunked, gzip", body=WHOLE_CHUNK + b"0\r\n\r\n"), BAD),
    Case("chunked with a parameter is refused", upload("Transfer-Encoding: chunked;q=1", body=WHOLE_CHUNK + b"0\r\n\r\n"), BAD),
    Case("identity as a transfer coding is refused", upload("Transfer-Encoding: identity"), BAD),
    Case("an unknown transfer coding is refused", upload("Transfer-Encoding: xchunked", body=WHOLE_CHUNK + b"0\r\n\r\n"), BAD),
    Case(
        "a vertical tab before chunked is refused", upload("Transfer-Encoding: \x0bchunked", body=WHOLE_CHUNK + b"0\r\n\r\n"), BAD
    ),
    Case("an empty transfer coding is refused", upload("Transfer-Encoding:", body=WHOLE_CHUNK + b"0\r\n\r\n"), BAD),
    Case("a transfer coding on a probe is refused", header("Transfer-Encoding: gzip") + SMALL, BAD),
    Case(
        "5 MiB of JSON in chunks is too large",
        post(b"", media_type="application/json", chunks=[b"[" * (64 * 1024)] * 80),
        "413 body_too_large",
    ),
]

OTHERS = [
    Case("an offer of h2c is ignored", header("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"), "200"),
    Case("an offer of a WebSocket is ignored", header("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA=="), "200"),
    Case("an offer of TLS is ignored", upload(LENGTH, "Connection: Upgrade", "Upgrade: TLS/1.2"), "200"),
    Case("an offer with a body that is too short is never filled", upload("Content-Length: 500", "Connection: Upgrade", "Upgrade: h2c"), "", ends=True),
    Case("the preface of HTTP/2 is refused", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), BAD),
    Case("a greeting of TLS is refused", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), BAD),
    Case("a greeting of SSLv2 is refused", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(36), BAD),
    Case("a greeting of SSH is refused", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", BAD),
    Case("a greeting of SMTP is refused", b"EHLO example.org\r\n\r\n", BAD),
    Case("a command of Redis is refused", b"*1\r\n$4\r\nPING\r\n", BAD),
    Case("a command of memcached is refused", b"stats\r\n", BAD),
    Case("the PROXY protocol is refused", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + HEALTH, BAD),
    Case("the PROXY protocol in bytes is refused", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12) + HEALTH, BAD),
    Case("a bare npy file is refused", SMALL, BAD),
    Case("a bare msgpack map is refused", b"\x81\xa1x\x83", BAD),
    Case("a bare JSON document is refused", b'{"x": [1, 2]}\r\n\r\n', BAD),
    Case("an answer in place of a request is refused", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", BAD),
    Case("64 KiB of zeros are refused", bytes(65536), BAD),
    Case("64 KiB of 0xff are refused", b"\xff" * 65536, BAD),
    Case("an expectation of 100 GiB is refused, not continued", upload(f"Content-Length: {100 * 2**30}", "Expect: 100-continue", body=b""), "413 body_too_large"),
    Case("an expectation of a call that is wrong is refused, not continued", header(TYPE, LENGTH, "Expect: 100-continue", start="POST /quantize?op=no HTTP/1.1"), "422 unknown_operator"),
    Case("an expectation of a body of no type is refused, not continued", header(LENGTH, "Expect: 100-continue", start="POST /quantize?op=round HTTP/1.1"), "415 unsupported_media_type"),
    Case("an expectation that is right is continued", upload(LENGTH, "Expect: 100-continue"), "100; 200"),
    Case("an expectation that nobody knows is ignored", upload(LENGTH, "Expect: the-unexpected"), "200"),
    Case("an expectation without a body is ignored", header("Expect: 100-continue"), "200"),
]  # fmt: skip

CASES = [*REQUEST_LINES, *HEADERS, *LENGTHS, *CHUNKS, *OTHERS]
