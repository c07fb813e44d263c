from __future__ import annotations

import json
import string
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.rules.identity import canonical_config
from crashproof.rules.secrets.names import is_secret_text, kind_of_name
from crashproof.rules.secrets.texts import without_secrets

RANDOM = "q7Zt0Lw9Xk3Vb5Nm1Rp8"
HEX = "0123456789abcdef0123456789abcdef01234567"


def words_of(text: str) -> list[str]:
    return text.split()


SECRET_NAMES = words_of("""
    api_key API_KEY apiKey apikey x-api-key openai_api_key openai_key openaiKey OpenAIKey openaikey wandb_key
    WANDB_API_KEY anthropic_key teacher_key judge_key hf_token HF_TOKEN hfToken HFToken hf_auth huggingface_token
    use_auth_token access_token refresh_token github_token bot_token session_token AWS_SESSION_TOKEN
    AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID access_key secret_key private_key ssh_private_key signing_key
    encryption_key account_key license_key pw db_pw pwd passwd password db_password passwords passphrase smtp_pass
    PGPASSWORD dbpassword password_2 password_prod secret secrets client_secret secret_value bearer authorization
    Proxy-Authorization auth_header credentials creds aws_credentials cookie Set-Cookie webhook webhooks
    slack_webhook webhook_url alertWebhook dsn sentry_dsn jwt connection_string auth token api_key_old
""")

HARMLESS_NAMES = words_of("""
    max_tokens max_new_tokens max_token tokenizer tokenizer_name pad_token eos_token bos_token unk_token mask_token
    stop_token image_token special_tokens additional_special_tokens token_ids eos_token_id token_type num_tokens
    tokens_per_batch num_key_value_heads key_size key_value_heads key_dim primary_key foreign_key public_key
    sort_key cache_key prompt_key text_key label_key keys_to_ignore api_key_env api_key_file password_file
    password_length secret_santa secretary authors author auth_url authorization_url token_url passes forward_pass
    passage keyboard monkey turkey hotkey_name cookie_cutter_path webhook_timeout slack_channel credential_type
    bearer_format tokenize_chinese_chars model_name base_url lr optimizer patience signature_columns hook_every pwm
""")

SECRET_VALUES = [
    "sk-proj-abcdef1234567890",
    "sk-ant-api03-AbCdEf_gh-123456",
    f"sk-{RANDOM}",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "hf_abc123def456",
    f"ghp_{RANDOM}{RANDOM}",
    f"gho_{RANDOM}",
    f"github_pat_11ABC_{RANDOM}",
    "xoxb-123456789012-abcdefGHIJ",
    "xoxp-123456789012-abcdefGHIJ",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    f"glpat-{RANDOM}",
    f"gsk_{RANDOM}{RANDOM}",
    f"xai-{RANDOM}{RANDOM}",
    f"nvapi-{RANDOM}{RANDOM}",
    f"npm_{RANDOM}{RANDOM}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "https://hooks.slack.com/services/T000/B000/XXXXXXXX",
    "https://discord.com/api/webhooks/123/abcDEF",
    "https://acme.webhook.office.com/webhookb2/abc",
    "123456789:AAE4567890abcdefghijklmnopqrstuvwxy",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKC\nAQEA7\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----\\nb3BlbnNzaC1r\\n-----END OPENSSH PRIVATE KEY-----",
]

ORDINARY_TEXTS = [
    "pretrained=gpt2,tokenizer=gpt2-xl",
    "--max_tokens=4096",
    "--max-tokens 4096 --tokenizer gpt2-xl --pad-token <pad>",
    "sk-learn-random-forest",
    "scikit-learn",
    "hf_transformers",
    "hf_hub_download",
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "key_value_cache_implementation",
    "the task-force was asked",
    "Basic training is hard; the bearer of bad news.",
    "ValueError: invalid token: expected a comma",
    "KeyError: 'text'",
    "Unexpected token < in JSON at position 0",
    "401 Unauthorized: check the permissions of the API key.",
    "Use Bearer authentication.",
    "http://localhost:8000/v1",
    "https://host:8080/pkg@1.0",
    "git+ssh://git@github.com/org/repo.git@v1",
    "s3://bucket/path/checkpoint_1000.pt",
    "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    HEX,
    "2026-01-31T10:00:00Z loss=0.5 lr=3e-4 step=100",
    "<|im_start|>assistant: 2 + 2 = 4<|im_end|>",
    "sort_key=id, primary_key=id, key=value",
    "tokens: 5, token_ids: [1, 2], num_key_value_heads: 8",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "api_key=${OPENAI_API_KEY}",
    "webhook: env:ALERT_HOOK",
    "docker run --user 1000:1000 image",
]

TEXTS_AROUND = [
    "api_key={}",
    "--api-key={}",
    "train --api-key {} --lr 3",
    'curl -H "Authorization: Bearer {}" https://host/',
    "-H 'X-Api-Key: {}'",
    "Authorization: Basic {}",
    "Authorization: {}",
    "export OPENAI_KEY={} && run",
    '{{"password": "{}"}}',
    '{{\\"password\\": \\"{}\\", \\"lr\\": 1}}',
    "{{'hf_token': '{}', 'lr': 1}}",
    "Endpoint(base_url='x', api_key='{}')",
    "Settings(pw={}, n=1)",
    "https://host/path?api_key={}&x=1",
    "https://host/path?x=1&access_token={}",
    "postgresql://ann:{}@db.example/answers",
    "redis://:{}@cache.example/0",
    "Server=db;Password={};Timeout=3",
    "&quot;secret&quot;: &quot;{}&quot;",
    "client_secret%3D{}",
    "wandb login failed\nwandb_key: {}\n",
    "Cookie: session={}; other=1",
    "api key: {}",
    "curl -u ann:{} https://host/",
    "passwords: ['{}', 'other']",
]
secrets_of_any_kind = st.sampled_from(SECRET_VALUES[:-2]) | st.text(
    string.ascii_letters + string.digits, min_size=20, max_size=48
).map(lambda text: f"Q9{text}z7")


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_name_of_a_secret_is_known(name):
    assert is_secret_text(name, RANDOM if not name.endswith("url") else "https://host/hook")
    assert RANDOM not in str(canonical_config({"a": [{name: RANDOM}]})) or name.endswith("url")


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_a_name_that_only_resembles_a_secrets_is_harmless(name):
    assert not is_secret_text(name, RANDOM), kind_of_name(name)
    assert {name: "gpt2-xl"} == canonical_config({name: "gpt2-xl"})


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("key", HEX, True),
        ("key", "text", False),
        ("run_key", RANDOM, True),
        ("tracking_token", RANDOM, True),
        ("tracking_token", "word", False),
        ("slack", "https://proxy.example/hook/abc", True),
        ("slack", "#training", False),
        ("slack_url", "https://proxy.example/hook/abc", True),
        ("auth", "basic", False),
        ("token", "<s>", False),
        ("token", "[CLS]", False),
        ("token", "swordfish", True),
        ("password", "none", True),
        ("password", "${DB_PASSWORD}", False),
        ("api_key", "env:OPENAI_API_KEY", False),
        ("api_key", "$OPENAI_API_KEY", False),
        ("api_key", "{{ secrets.KEY }}", False),
        ("api_key", "***", False),
        ("api_key", " ", False),
        ("", RANDOM, False),
        ("_", RANDOM, False),
    ],
)
def test_a_doubtful_name_is_decided_by_its_value(name, value, expected):
    assert expected is is_secret_text(name, value)


@pytest.mark.parametrize("value", SECRET_VALUES)
def test_a_value_of_a_known_shape_is_hidden_under_any_name_and_in_any_text(value):
    canonical = canonical_config({"note": value, "list": [f"x {value} y"], value: 1})

    assert value not in str(canonical)
    assert "see (secret) there" == without_secrets(f"see {value} there")


@pytest.mark.parametrize("text", ORDINARY_TEXTS)
def test_an_ordinary_text_stays_as_it_is(text):
    assert text == without_secrets(text)
    assert {"note": text, "list": [text]} == canonical_config({"note": text, "list": [text]})


@pytest.mark.parametrize("around", TEXTS_AROUND)
@pytest.mark.parametrize("secret", ["Zm9vYmFyYmF6", "x", "p%ss", "a.b-c_d", "abc/def+g=="])
def test_a_secret_is_known_by_where_it_stands_in_a_text(around, secret):
    secret = quote(secret, safe="") if "://" in around else secret
    text = around.format(secret)
    before, _, after = around.format("\0").partition("\0")

    hidden = without_secrets(text)
    assert secret not in hidden.removeprefix(before).removesuffix(after)
    assert hidden != text
    assert hidden == without_secrets(hidden)
    assert hidden != text
    assert str(canonical_config({"argv": [text]})["argv"][0]) != text


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TEXTS_AROUND), secrets_of_any_kind, st.sampled_from(["", "x: 1, ", "a\n", "(", '"']))
def test_no_secret_survives_in_texts_and_configs(around, secret, before):
    text = before + around.format(secret)

    assert secret not in without_secrets(text)
    assert secret not in json.dumps(canonical_config({"deep": [{"er": (text, {text})}]}))


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.tuples(st.sampled_from(SECRET_NAMES), secrets_of_any_kind).map(lambda pair: {pair[0]: pair[1]}),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["train", "env", "x"]), inner, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=8,
    )
)
def test_no_secret_survives_in_a_nested_config(config):
    shown = (
        json.dumps(canonical_config({"config": config}))
        + without_secrets(json.dumps(config))
        + without_secrets(str(config))
    )

    def secrets_in(value):
        if isinstance(value, dict):
            for each in value.values():
                yield from [each] if isinstance(each, str) else secrets_in(each)
        else:
            for each in value:
                yield from secrets_in(each)

    # Under `webhook_url` only an address is one.
    assert [] == [secret for secret in secrets_in(config) if secret in shown]


words = st.sampled_from(
    words_of("the loss of step tokens tokenizer key keys a model 3 0.5 gpt2-xl is - token, was (not) better")
)


@settings(max_examples=300, deadline=None)
@given(st.lists(words, max_size=30).map(" ".join))
def test_prose_stays_as_it_is(text):
    assert text == without_secrets(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_hiding_twice_changes_nothing_more(text):
    hidden = without_secrets(text)

    assert hidden == without_secrets(hidden)


@pytest.mark.parametrize(
    "text, expected",
    [
        ('Authorization: Digest username="ann", response="0f"', "Authorization: Digest (secret)"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=a, Signature=b", "Authorization: AWS4-HMAC-SHA256 (secret)"),
        ("-H 'Cookie: a=\"b\"; c=d' -v", "-H 'Cookie: (secret)' -v"),
        ("Cookie: \n", "Cookie: \n"),
        ("Authorization: Bearer (secret)", "Authorization: Bearer (secret)"),
        ('password=""', 'password=""'),
        ("password='never closed\nlr: 3", "password='(secret)\nlr: 3"),
        ("token: \n", "token: \n"),
        ("secrets: []", "secrets: []"),
        ("key: [abc]", "key: [abc]"),
    ],
)
def test_values_of_an_unusual_form(text, expected):
    assert expected == without_secrets(text)


@pytest.mark.parametrize(
    "config, hidden",
    [
        (["--api-key", "X1"], ["--api-key", "(secret)"]),
        (["run", "--password", 1234, "--lr", "3"], ["run", "--password", "(secret)", "--lr", "3"]),
        (["--use-auth-token", "--lr", "3"], ["--use-auth-token", "--lr", "3"]),
        (["--max-tokens", "5", "--tokenizer", "gpt2"], ["--max-tokens", "5", "--tokenizer", "gpt2"]),
        (["--api-key=X1"], ["--api-key=(secret)"]),
        (["-H", "Authorization: Bearer X1"], ["-H", "Authorization: Bearer (secret)"]),
        (["API_KEY=X1", "LR=3"], ["API_KEY=(secret)", "LR=3"]),
        ([("Authorization", "X1")], [["Authorization", "(secret)"]]),
        ([("token", "label")], [["token", "label"]]),
        ([{"name": "API_KEY", "value": "X1"}], [{"name": "API_KEY", "value": "(secret)"}]),
        ([{"name": "LR", "value": "X1"}], [{"name": "LR", "value": "X1"}]),
        ([b"api_key=X1"], ["b'api_key=(secret)'"]),
        (
            [{"password": 1234, "max_token": 5, "api_key": 3}],
            [{"password": "(secret)", "max_token": 5, "api_key": 3}],
        ),
        (
            [{"credentials": {"a": 1}, "secrets": [], "auth": None}],
            [{"credentials": "(secret)", "secrets": [], "auth": None}],
        ),
        (["--api-key", ""], ["--api-key", ""]),
    ],
)
def test_a_secret_is_known_by_where_it_stands_in_a_list(config, hidden):
    assert {"argv": hidden} == canonical_config({"argv": config})


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "a=" * 300_000,
        "a://b:" * 100_000,
        "password " * 100_000,
        "\\" * 500_000,
        "key: [" * 100_000,
        "Bearer " * 100_000,
        "-----BEGIN PRIVATE KEY-----" * 20_000,
        "password='" * 50_000,
        "password='\\" * 50_000,
        "key=" * 100_000,
        "key='" * 50_001,
        "--token -" * 50_000,
        "token=[" * 50_000,
    ],
    ids=lambda text: text[:12],
)
def test_a_long_text_is_searched_in_time_proportional_to_its_length(text):
    """One of quadratic time would take an hour."""
    assert isinstance(without_secrets(text), str)
