"""Keys: which are accepted, what a file must hold, and that a reload takes effect whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import Unauthorized
from service.keys import Keys


def keys_of(file: Path, text: str | bytes) -> Keys:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Keys(file)


def is_known(keys: Keys, key: str, path: str = "/quantize") -> bool:
    try:
        keys.check(path, f"Bearer {key}")
    except Unauthorized:
        return False
    return True


def test_without_a_file_everyone_may_call() -> None:
    keys = Keys(None)
    keys.check("/quantize", None)
    keys.reload()
    keys.check("/metrics", "Basic nonsense")
    assert len(keys) == 0


def test_every_key_of_a_file_is_known_and_nothing_else_in_it(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", "# for the batch jobs\nfirst\n\n  second  \r\n#third\nfourth")
    assert len(keys) == 3
    assert all(is_known(keys, key) for key in ("first", "second", "fourth"))
    assert not any(
        is_known(keys, key) for key in ("third", "#third", "", "firs", "first second", "é", "\udcff", "# for the batch jobs")
    )


def test_a_reload_takes_new_keys_in_and_revoked_ones_out(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", "old\nlasting\n")
    (tmp_path / "keys").write_text("lasting\nnew\n")
    assert is_known(keys, "old")
    keys.reload()
    assert [is_known(keys, key) for key in ("old", "lasting", "new")] == [False, True, True]


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n\n", b"old\nspace in it\n", "schlüssel\n".encode(), b"nul\x00\n", b"\xef\xbb\xbfmark\n"]
)
def test_a_file_that_holds_no_keys_changes_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    keys = keys_of(file, "old\n")
    file.write_bytes(content)
    with pytest.raises(ValueError, match="keys") as caught:
        keys.reload()
    assert str(file) in str(caught.value)
    assert is_known(keys, "old")
    with pytest.raises(ValueError, match="keys"):
        Keys(file)


def test_what_is_wrong_with_a_file_is_said_by_its_line_and_without_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 3 of .*keys") as caught:
        keys_of(tmp_path / "keys", "good\n# comment\nsecret with blanks\n")
    assert "secret" not in str(caught.value)


def test_a_file_that_has_gone_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys = keys_of(file, "old\n")
    file.unlink()
    with pytest.raises(OSError, match="keys"):
        keys.reload()
    assert is_known(keys, "old")


def test_keys_are_not_kept_in_memory_as_they_are(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", "correct-horse-battery-staple\n")
    assert b"correct-horse" not in b"".join(keys._digests)
    assert {len(digest) for digest in keys._digests} == {32}


@pytest.mark.parametrize("path", ["/", "/page/a.js", "/healthz", "/readyz", "/docs", "/docs/assets/a.js", "/openapi.json"])
def test_probes_and_pages_need_no_key(tmp_path: Path, path: str) -> None:
    keys_of(tmp_path / "keys", "a\n").check(path, None)


def test_metrics_need_a_key_unless_they_were_opened(tmp_path: Path) -> None:
    keys = keys_of(tmp_path / "keys", "a\n")
    with pytest.raises(Unauthorized):
        keys.check("/metrics", None)
    keys.check("/metrics", "Bearer a")
    opened = Keys(tmp_path / "keys", metrics_are_open=True)
    opened.check("/metrics", None)
    for path in ("/quantize", "/operators", "/metrics/", "/metricsx"):
        with pytest.raises(Unauthorized):
            opened.check(path, None)
