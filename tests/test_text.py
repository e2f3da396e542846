from pathlib import Path

import pytest

from distill.corpus.text import expand_text, is_blank, iter_lines, text_root
from distill.errors import InputError


def write(path: Path, content: str | bytes = "文\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_linked_folders_are_followed_and_each_is_read_once(tmp_path: Path) -> None:
    """A corpus on another disk was left out without a word; a link to a folder above must not be followed for ever."""
    write(tmp_path / "disk/wiki/a.txt"), write(tmp_path / "train/b.txt"), write(tmp_path / "disk/.hidden/c.txt")
    (tmp_path / "train/wiki").symlink_to(tmp_path / "disk")
    (tmp_path / "train/wiki-again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/wiki/up").symlink_to(tmp_path / "train")
    (tmp_path / "train/gone.txt").symlink_to(tmp_path / "nowhere.txt")
    found = [str(file.relative_to(tmp_path)) for file in expand_text([tmp_path / "train"])]
    assert found == ["train/b.txt", "train/wiki/wiki/a.txt"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\rc\n", ["a", "b", "c"]),
        (b"a\n\n\nb\n", ["a", "", "", "b"]),
        (b"\xef\xbb\xbfa\n", ["a"]),
        ("a\u2028b\u0085c\x0bd\x0ce\x1cf\n".encode(), ["a\u2028b\u0085c\x0bd\x0ce\x1cf"]),
        (b"a\x00b\n", ["a\x00b"]),
        (b" a \n", [" a "]),
    ],
)
def test_lines_end_at_newlines_only(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    assert list(iter_lines(write(tmp_path / "x.txt", content))) == lines


def test_a_long_line_is_read_whole(tmp_path: Path) -> None:
    assert [len(line) for line in iter_lines(write(tmp_path / "x.txt", "天" * 300_000 + "\n气"))] == [300_000, 1]


def test_invalid_utf8_names_file_and_line(tmp_path: Path) -> None:
    file = write(tmp_path / "x.txt", "天\r\n气\r很\n".encode() + "好".encode("gb18030") + b"\n")
    with pytest.raises(InputError, match=r"x\.txt: line 4: not UTF-8 \(byte 0xba\)"):
        list(iter_lines(file))


def test_invalid_utf8_far_behind_is_found(tmp_path: Path) -> None:
    file = write(tmp_path / "x.txt", b"abc\n" * 50_000 + b"\xe5\xa4\n")
    with pytest.raises(InputError, match="line 50001: "):
        list(iter_lines(file))


def test_a_file_that_ends_inside_a_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: "):
        list(iter_lines(write(tmp_path / "x.txt", b"a\n\xe5\xa4")))


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(iter_lines(tmp_path / "none.txt"))


def test_blank_is_what_the_old_scripts_take_for_blank() -> None:
    assert [is_blank(line) for line in ("a", "", " \t\u3000", "\u200b")] == [False, True, True, False]


def test_folder_gives_text_below_it_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a.txt", "a/deep/x.txt", "notes.md", ".hidden.txt", ".git/x.txt"):
        write(tmp_path / name)
    found = [str(path.relative_to(tmp_path)) for path in expand_text([tmp_path])]
    assert found == ["a/deep/x.txt", "a/z.txt", "a.txt", "b.txt"]


def test_patterns_keep_their_order_and_name_each_file_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "d.md"):
        write(tmp_path / name)
    found = expand_text([str(tmp_path / "d.md"), str(tmp_path / "b.txt"), str(tmp_path / "**/*.txt"), str(tmp_path)])
    assert [path.name for path in found] == ["d.md", "b.txt", "a.txt", "c.txt"]


def test_a_name_with_brackets_is_taken_literally(tmp_path: Path) -> None:
    file = write(tmp_path / "wiki[1].txt")
    assert expand_text([file]) == [file]


def test_references_beside_their_text_are_no_text(tmp_path: Path) -> None:
    for name in ("a.txt", "a_ref.txt", "cross_ref.txt"):
        write(tmp_path / name)
    assert [path.name for path in expand_text([tmp_path])] == ["a.txt", "cross_ref.txt"]


@pytest.mark.parametrize("pattern", ["none.txt", "*.none", "empty_folder"])
def test_a_pattern_without_text_is_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty_folder").mkdir()
    with pytest.raises(InputError, match="no text found"):
        expand_text([tmp_path / pattern])


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty corpus"):
        expand_text([write(tmp_path / "a.txt", ""), write(tmp_path / "b.txt", "")])
    with pytest.raises(InputError, match="no text given"):
        expand_text([])


@pytest.mark.parametrize(
    ("patterns", "root"),
    [
        (["a"], "a"),
        (["a/x.txt"], "a"),
        (["a/x.txt", "b/x.txt"], ""),
        (["a", "b"], ""),
        (["a/*.txt"], "a"),
        (["**/*.txt"], ""),
        (["a/deep", "a/*.txt"], "a"),
    ],
)
def test_text_root_is_the_deepest_common_folder(tmp_path: Path, patterns: list[str], root: str) -> None:
    for name in ("a/x.txt", "b/x.txt", "a/deep/y.txt"):
        write(tmp_path / name)
    assert text_root([tmp_path / pattern for pattern in patterns]) == tmp_path / root
