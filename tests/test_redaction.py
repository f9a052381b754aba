"""Texts without credentials."""

from __future__ import annotations

import string
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.redaction import check_overrides, credentials, escaped, redact, redacted
from trainyard.track.variables import VARIABLES

NAME = st.text(string.ascii_letters, min_size=1, max_size=8)
# A password that no other part of the URI can hold by chance; with the characters that separate parts of a URI.
SECRET = st.text(string.digits + "@/:+%", max_size=8).map(lambda text: f"Q-Z{text}")


@given(NAME, SECRET, st.sampled_from(["host", "127.0.0.1:5000", "host:5000/path", "host/db?x=1"]))
def test_no_password_is_left(name: str, secret: str, host: str) -> None:
    for uri in (f"http://{name}:{secret}@{host}", f"postgresql+psycopg://{name}:{secret}@{host}"):
        shown = redact(f"cannot reach {uri}: refused")
        assert "Q-Z" not in shown
        assert shown.endswith(": refused")
        assert redact(shown) == shown
        parts = urlsplit(escaped(uri))
        assert (parts.username, unquote(parts.password or "")) == (name, unquote(secret))
        assert parts.hostname in ("host", "127.0.0.1")
        assert escaped(escaped(uri)) == escaped(uri)
        assert redact(escaped(uri)) == redact(uri)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://token@host:5000/x", "http://***@host:5000/x"),
        ("https://host/x?password=abc&run=1", "https://host/x?password=***&run=1"),
        ("https://host/x?run=1&api_key=abc", "https://host/x?run=1&api_key=***"),
        ("s3://bucket/x?X-Amz-Signature=abc", "s3://bucket/x?X-Amz-Signature=***"),
    ],
)
def test_tokens_and_queries(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/a@b:c",
        "http://[::1]:5000/",
        "sqlite:////data/a@b.db",
        "git+https://github.com/a/b@v1",
        "mail bob@host about max_tokens=5",
        "https://host/x?page=2",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text


def test_keys_that_name_a_credential() -> None:
    config = {"hf_token": "a", "pad_token": "b", "store": {"api_key": "c", "uris": ["http://u:p@h"]}, "max_tokens": "5"}
    assert redacted(config) == {
        "hf_token": "***",
        "pad_token": "b",
        "store": {"api_key": "***", "uris": ["http://u:***@h"]},
        "max_tokens": "5",
    }
    assert dict(credentials(config)) == {"hf_token": "***", "store.api_key": "***", "store.uris.0": "http://u:***@h"}
    assert redacted({"token": "", "lr": 0.1, "password": None}) == {"token": "", "lr": 0.1, "password": None}


WORDS = st.lists(st.sampled_from(["my", "db", "aws", "http", "num", "x1"]), max_size=2)
OF_CREDENTIALS = [
    *(
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "api_key",
        "apikey",
        "access-key",
        "private_key",
        "api_keys",
    ),
    *("github_token", "hf_token", "hub_token", "session_token", "use_auth_token", "slack_bot_token", "wandb_token"),
]
OTHERS = [
    *("tokenizer", "num_tokens", "max_tokens", "token_dim", "pad_token", "eos_token", "mask_token", "cls_token"),
    *("image_token", "token_type", "tokens", "special_tokens", "author", "authors", "auth_type", "oauth2_url"),
    *(
        "key",
        "keys",
        "sort_key",
        "num_keys",
        "key_dim",
        "passes",
        "forward_pass",
        "secretary",
        "private_key_path",
        "user",
    ),
    "credentials_file",
]


@given(WORDS, st.sampled_from([*OF_CREDENTIALS, "auth", "authorization", "credentials"]), st.sampled_from("_-"))
def test_a_key_that_ends_with_a_credential_is_redacted(words: list[str], last: str, sign: str) -> None:
    for key in (sign.join([*words, last]), sign.join([*words, last]).upper()):
        config = {"hub": {key: "Q", "list": [{key: ["Q", "Q"]}], "name": "n"}}
        assert redacted(config) == {"hub": {key: "***", "list": [{key: ["***", "***"]}], "name": "n"}}
        assert [place for place, _ in credentials(config)] == [
            f"hub.{key}",
            f"hub.list.0.{key}.0",
            f"hub.list.0.{key}.1",
        ]
        with pytest.raises(ConfigError):
            check_overrides([f"+hub.{key}=Q"])


@given(WORDS, st.sampled_from(OF_CREDENTIALS), st.sampled_from(["openai", "a.b", "token_dim"]))
def test_below_a_credential_all_texts_are_redacted(words: list[str], last: str, below: str) -> None:
    key = "_".join([*words, last])
    config: dict[str, object] = {key: {below: "Q", "more": [{"other": "Q"}]}, "other": "n"}
    assert redacted(config) == {key: {below: "***", "more": [{"other": "***"}]}, "other": "n"}
    assert [place for place, _ in credentials(config)] == [f"{key}.{below}", f"{key}.more.0.other"]
    with pytest.raises(ConfigError):
        check_overrides([f"+{key}.{below}=Q"])


@given(WORDS, st.sampled_from(OTHERS), st.sampled_from(["auth", "credentials", "token", "store"]))
def test_other_keys_are_not_redacted(words: list[str], last: str, above: str) -> None:
    key = "_".join([*words, last])
    config = {key: "n", "list": [{key: ["n"]}], above: {key: "n"}}
    assert redacted(config) == config
    assert not dict(credentials(config))
    check_overrides([f"+{key}=n", f"+{above}.{key}=n"])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("tracker.uri=http://bob:s3cret@host", "tracker.uri"),
        ("tracker.uri='http://bob:s3cret@host'", "tracker.uri"),
        ("tracker.uri=http://host,http://bob:s3cret@host", "tracker.uri"),
        ("++tracker.uri=http://s3cret@host", "tracker.uri"),
        ("+hub.hf_token=s3cret", "hub.hf_token"),
        ("hydra.job.env_set.AWS_SECRET_ACCESS_KEY=s3cret", "hydra.job.env_set.AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_an_override_with_a_credential_is_refused(override: str, key: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as error:
        check_overrides(["optim.lr=1", override])
    assert error.value.key == key
    assert "s3cret" not in str(error.value)


def test_other_overrides_pass() -> None:
    check_overrides(
        ["-m", "--cfg", "job", "~optim", "model=mlp", "+pad_token=x", "+hf_token=${oc.env:HF_TOKEN}", "a=", "x"]
    )


def test_no_variable_that_is_recorded_holds_a_credential() -> None:
    assert not [name for name in VARIABLES if any(part in name for part in ("KEY", "TOKEN", "SECRET", "PASS", "AUTH"))]
