"""Text that others wrote: what of it is shown, and which secrets are not."""

import time

import pytest

from pytest_quantbudget.core.safetext import printable, quoted, redacted, safe, width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", "\ufffd[31mred\ufffd]0;title\ufffd"),
        ("\x9b31m", "\ufffd31m"),
        ("a\u202eb\u2066c\u200bd\ufeff", "a\ufffdb\ufffdc\ufffdd\ufffd"),
        ("a\rb\nc\u2028d\x85", "a\ufffdb\ufffdc\ufffdd\ufffd"),
        ("\ud800", "\ufffd"),
        ("a\tb\u00a0c\u3000d", "a b c d"),
        ("Grüße, 你好 🙂 ½", "Grüße, 你好 🙂 ½"),
        ("::error::no", "\ufffd:error::no"),
        (" \t::stop-commands::x", "  \ufffd:stop-commands::x"),
        ("b.yaml::nf4::max_vram", "b.yaml::nf4::max_vram"),
        ("so ##[error]no", "so \ufffd#[error]no"),
        ("##vso[task.setvariable]", "\ufffd#vso[task.setvariable]"),
        ("###[x] ## [y] # z", "#\ufffd#[x] ## [y] # z"),
    ],
)
def test_text_steers_neither_terminal_nor_ci(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_stay_lines_where_they_are_wanted() -> None:
    assert printable("a\r\n::b\n\x1bc\rd", lines=True) == "a\n\ufffd:b\n\ufffdc\ufffdd"


def test_a_quoted_log_forms_no_command() -> None:
    shown = quoted("loading\n::error::no\r\n##[group]x\n\x1b[2K token=t Bearer abcdefghijk")
    assert shown.split("\n") == [
        "| loading",
        "| \ufffd:error::no",
        "| \ufffd#[group]x",
        "| \ufffd[2K token=t Bearer ***",
    ]


ENVIRON = {
    "HF_TOKEN": "abc123",
    "MY_SECRET_VALUE": "two words",
    "db_password": "hunter22",
    "WANDB_API_KEY": "0123456789",
    "AWS_SECRET_ACCESS_KEY": "abc123longer",
    "SIGNING_PRIVATE_KEY": "-----BEGIN-----\nMIIEvQIBADANBgkqhkiG9w0B\n-----END-----",
    "GITHUB_PAT": "pat-pat-pat",
    "SHORT_TOKEN": "true",
    "MAX_TOKENS": "1024512",
    "TOKENIZERS_PARALLELISM": "parallel",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "PWD": "/workspace",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc123longer, abc123", "***, ***"),
        ("two words hunter22 0123456789 pat-pat-pat", "*** *** *** ***"),
        ("line MIIEvQIBADANBgkqhkiG9w0B of it", "line *** of it"),
        ("true 1024512 parallel /tmp/agent /workspace", "true 1024512 parallel /tmp/agent /workspace"),
        ("https://me:pa55@host/x", "https://***@host/x"),
        (f"https://{'t' * 40}@host/x", "https://***@host/x"),
        ("ssh://git@host/x, a@b.c", "ssh://git@host/x, a@b.c"),
        (f"hf_{'a1' * 17} hf_transfer ghp_{'x' * 36}", "*** hf_transfer ***"),
        ("Authorization: Basic dXNlcjpw", "Authorization: Basic ***"),
        ("{'Authorization': 'Bearer ab.cd-ef=='}", "{'Authorization': 'Bearer ***'}"),
        ("the bearer of Bearer bonds", "the bearer of Bearer bonds"),
        ("/x?token=abc&b=1&X-Amz-Signature=ff#c", "/x?token=***&b=1&X-Amz-Signature=***#c"),
        ("/x?access_token=abc&Key-Pair-Id=K&tokens=5", "/x?access_token=***&Key-Pair-Id=***&tokens=5"),
    ],
)
def test_secrets_are_taken_out(text: str, shown: str) -> None:
    assert redacted(text, ENVIRON) == shown


def test_secrets_go_before_the_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "very-secret-value")
    assert safe("x very-secret-value\x1b" + "y" * 100, 12) == "x ***\ufffdyyyyy…"
    assert safe("a\nb", lines=True) == "a\nb"


@pytest.mark.parametrize("text", ["://" * 50_000, "?" + "a" * 200_000, "Bearer " * 30_000, "hf_-" * 50_000])
def test_no_text_makes_redacting_slow(text: str) -> None:
    start = time.perf_counter()
    redacted(text, {})
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("text", "columns"),
    [("nf4", 3), ("数学", 4), ("\N{LATIN SMALL LETTER E}\N{COMBINING ACUTE ACCENT}", 1), ("ﾊﾝ", 2), ("", 0)],
)
def test_wide_characters_take_two_columns_and_marks_none(text: str, columns: int) -> None:
    assert width(text) == columns
