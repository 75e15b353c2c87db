"""Which files a job finds, and where their outputs go."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from service.batch.errors import BadUsage
from service.batch.sources import Found, Unreadable, find


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """in/{a.npy, b/c.npz, b/d.SAFETENSORS, b/notes.txt, empty/}."""
    root = tmp_path / "in"
    for name in ("a.npy", "b/c.npz", "b/d.SAFETENSORS", "b/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "empty").mkdir()
    return root


def found(*arguments: object, dest: Path | None = None, standard_input: str = "") -> dict[str, str]:
    """Outputs with their sources; no folder may be unreadable."""
    listed = find([str(one) for one in arguments], dest or Path("nowhere"), io.StringIO(standard_input))
    return {one.output: one.source for one in listed if isinstance(one, Found) or pytest.fail(str(one))}


def test_a_folder_is_mirrored(tree: Path) -> None:
    assert found(tree) == {
        "a.npy": str(tree / "a.npy"),
        "b/c.npz": str(tree / "b/c.npz"),
        "b/d.SAFETENSORS": str(tree / "b/d.SAFETENSORS"),
    }


def test_a_file_goes_under_its_own_name(tree: Path) -> None:
    assert list(found(tree / "b/c.npz")) == ["c.npz"]


def test_a_pattern_is_relative_to_what_precedes_its_first_wildcard(tree: Path) -> None:
    assert list(found(f"{tree}/**/*.npz")) == ["b/c.npz"]
    assert set(found(f"{tree}/b/*")) == {"c.npz", "d.SAFETENSORS"}
    assert list(found(f"{tree.parent}/i?/a.npy")) == ["in/a.npy"]


def test_a_name_with_brackets_is_a_file_where_there_is_one(tree: Path) -> None:
    (tree / "x[1].npy").touch()
    assert list(found(tree / "x[1].npy")) == ["x[1].npy"]


def test_a_list_names_one_source_a_line(tree: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"# files\n\n  {tree / 'a.npy'}  \n{tree / 'b'}\n", encoding="utf-8")
    assert set(found(f"@{listing}")) == {"a.npy", "c.npz", "d.SAFETENSORS"}
    assert list(found("@-", standard_input=f"{tree / 'a.npy'}\n")) == ["a.npy"]


def test_dest_is_never_read_wherever_it_lies(tree: Path) -> None:
    dest = tree / "b"
    assert list(found(tree, dest=dest)) == ["a.npy"]
    assert list(found(f"{tree}/**/*.np?", dest=dest)) == ["a.npy"]
    for source in (tree, tree / "a.npy", tree / "b"):
        with pytest.raises(BadUsage, match="lies in DEST"):
            found(source, dest=tree)


def test_links_to_files_and_folders_are_followed_but_not_in_circles(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "e.npy").touch()
    (tree / "link.npy").symlink_to(other / "e.npy")
    (tree / "linked").symlink_to(other)
    (tree / "b/up").symlink_to(tree)
    (other / "self").symlink_to(other)
    assert set(found(tree)) == {"a.npy", "b/c.npz", "b/d.SAFETENSORS", "link.npy", "linked/e.npy"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_told_and_the_others_are_read(tree: Path) -> None:
    (tree / "b").chmod(0)
    try:
        listed = list(find([str(tree)], Path("nowhere"), io.StringIO()))
    finally:
        (tree / "b").chmod(0o755)
    assert [type(one) for one in listed] == [Found, Unreadable]


@pytest.mark.parametrize("argument", ["nothing.npy", "@nothing.txt", "in/b/notes.txt"])
def test_what_names_nothing_that_can_be_read_is_refused(tree: Path, tmp_path: Path, argument: str) -> None:
    name = argument.replace("@", f"@{tmp_path}/") if argument.startswith("@") else f"{tmp_path}/{argument}"
    with pytest.raises(BadUsage, match=argument.strip("@").rpartition("/")[2]):
        found(name)
